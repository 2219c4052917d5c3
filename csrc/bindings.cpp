// The one pybind11 file: a table with one entry per op. Pointers and streams come as integers, so
// nothing here knows torch; the GIL is released while an op runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "checks.h"
#include "correlate_frames.h"
#include "device.h"
#include "isa.h"

namespace py = pybind11;
using Strides = std::array<int64_t, 4>;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check_threads(int threads) { VOS_CHECK(threads > 0, "threads", "at least 1", threads); }

void correlate_frames_cpu(uintptr_t query, Strides query_stride, uintptr_t previous,
                          Strides previous_stride, uintptr_t out, Strides shape, int64_t radius,
                          float temperature, bool exclude_outside, int threads) {
  check_threads(threads);
  vosengine::CorrelateFrames call{};
  call.query = pointer<const float>(query);
  call.previous = pointer<const float>(previous);
  call.out = pointer<float>(out);
  for (int i = 0; i < 4; ++i) {
    call.query_stride[i] = query_stride[i];
    call.previous_stride[i] = previous_stride[i];
  }
  call.batch = shape[0];
  call.channels = shape[1];
  call.height = shape[2];
  call.width = shape[3];
  call.radius = radius;
  call.temperature = temperature;
  call.exclude_outside = exclude_outside;
  call.threads = threads;
  vosengine::correlate_frames_cpu(call);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.doc() = "vosengine's compiled kernels on raw pointers; called through vosengine.kernels";
  module.def("build_info", &vosengine::build_info);
  module.def("isa", &vosengine::isa_name);
  module.def("choose_isa", &vosengine::choose_isa);
  module.def("correlate_frames_cpu", &correlate_frames_cpu, Release());
}
