// The other half of bindings.cpp's table: the ops that have a CUDA kernel. The GIL is released
// while a launch is prepared.
#ifdef VOSENGINE_CUDA

#include "bindings.h"

namespace py = pybind11;

namespace vosengine {
namespace {

// A tensor: its address and strides.
template <size_t AXES>
using Tensor = std::tuple<uintptr_t, std::array<int64_t, AXES>>;

void deform_conv(Tensor<4> x, Four x_shape, Tensor<4> offset, Tensor<4> mask, Tensor<4> weight,
                 uintptr_t bias, uintptr_t out, Three out_shape, const Convolution& convolution,
                 uintptr_t packed, uintptr_t weights, Three packing, int element,
                 const Target& target) {
  DeformConvCuda call{};
  set(call.x, std::get<0>(x));
  set(call.x_stride, std::get<1>(x));
  set(call.offset, std::get<0>(offset));
  set(call.offset_stride, std::get<1>(offset));
  set(call.mask, std::get<0>(mask));
  set(call.mask_stride, std::get<1>(mask));
  set(call.weight, std::get<0>(weight));
  set(call.weight_stride, std::get<1>(weight));
  set(call.bias, bias);
  set(call.out, out);
  set_sizes(call, x_shape, out_shape, convolution);
  set(call.packed, packed);
  set(call.weights, weights);
  std::tie(call.section, call.chunks, call.units) = packing;
  set_place(call, element, target);
  deform_conv_cuda(call);
}

}  // namespace
}  // namespace vosengine

// What kind of tensors these kernels take, and the architectures that they are compiled for.
#ifndef VOSENGINE_CUDA_DEVICE_TYPE
#define VOSENGINE_CUDA_DEVICE_TYPE "cuda"
#endif

void bind_cuda(py::module_& module) {
  using namespace vosengine;
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("cuda_device_type", [] { return VOSENGINE_CUDA_DEVICE_TYPE; });
  module.def("cuda_archs", [] { return VOSENGINE_CUDA; });
  module.def("deform_conv_cuda", &deform_conv, Release());
  module.def("finish_masks_cuda", &finish_masks<FinishMasksCuda, finish_masks_cuda, int, Target>,
             Release());
  module.def("group_centres_cuda",
             &group_centres<GroupCentresCuda, group_centres_cuda, uintptr_t, int, int, Target>,
             Release());
  module.def("match_proposals_cuda",
             &match_proposals<MatchProposalsCuda, match_proposals_cuda, int, Target>, Release());
  module.def("pool_regions_cuda",
             &pool_regions<PoolRegionsCuda, PooledMapsCuda, pool_regions_cuda, int, Target>,
             Release());
  module.def("prepare_frame_cuda",
             &prepare_frame<PrepareFrameCuda, prepare_frame_cuda, bool, int, Target>, Release());
}

#endif
