// The other half of bindings.cpp's table: the ops that have a CUDA kernel. Pointers and streams
// come as integers; the GIL is released while a launch is prepared.
#ifdef VOSENGINE_CUDA

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cuda_target.h"

namespace py = pybind11;

namespace {

using vosengine::CudaTarget;
using vosengine::Element;

// Device index and stream.
using Target = std::tuple<int, uintptr_t>;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

CudaTarget target_of(const Target& target) {
  return {std::get<0>(target), pointer<void>(std::get<1>(target))};
}

Element element_of(int code) {
  VOS_CHECK(code >= 0 && code <= 2, "element", "0, 1 or 2", code);
  return static_cast<Element>(code);
}

}  // namespace

// What kind of tensors these kernels take, and the architectures that they are compiled for.
#ifndef VOSENGINE_CUDA_DEVICE_TYPE
#define VOSENGINE_CUDA_DEVICE_TYPE "cuda"
#endif

void bind_cuda(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("cuda_device_type", [] { return VOSENGINE_CUDA_DEVICE_TYPE; });
  module.def("cuda_archs", [] { return VOSENGINE_CUDA; });
}

#endif
