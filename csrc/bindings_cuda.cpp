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
#include "deform_conv.h"
#include "finish_masks.h"
#include "group_centres.h"
#include "match_proposals.h"
#include "pool_regions.h"
#include "prepare_frame.h"

namespace py = pybind11;

namespace {

using vosengine::CudaTarget;
using vosengine::Element;
using Strides = std::array<int64_t, 4>;
using Pair = std::array<int64_t, 2>;

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

void deform_conv_cuda(Target target, int element, std::tuple<uintptr_t, Strides, Strides> x,
                      std::tuple<uintptr_t, Strides> offset, std::tuple<uintptr_t, Strides> mask,
                      std::tuple<uintptr_t, Strides> weight, uintptr_t bias, uintptr_t out,
                      std::array<int64_t, 3> out_shape, Pair kernel, Pair stride, Pair padding,
                      Pair dilation, int64_t groups, int64_t offset_groups, uintptr_t packed,
                      uintptr_t weights, int64_t section, int64_t chunks, int64_t units) {
  vosengine::DeformConvCuda call{};
  const auto& shape = std::get<2>(x);
  call.batch = shape[0];
  call.channels = shape[1];
  call.height = shape[2];
  call.width = shape[3];
  call.outputs = out_shape[0];
  call.out_height = out_shape[1];
  call.out_width = out_shape[2];
  for (int i = 0; i < 2; ++i) {
    call.kernel[i] = kernel[i];
    call.stride[i] = stride[i];
    call.padding[i] = padding[i];
    call.dilation[i] = dilation[i];
  }
  call.groups = groups;
  call.offset_groups = offset_groups;
  call.element = element_of(element);
  call.x = pointer<const void>(std::get<0>(x));
  call.offset = pointer<const void>(std::get<0>(offset));
  call.mask = pointer<const void>(std::get<0>(mask));
  call.weight = pointer<const void>(std::get<0>(weight));
  for (int i = 0; i < 4; ++i) {
    call.x_stride[i] = std::get<1>(x)[i];
    call.offset_stride[i] = std::get<1>(offset)[i];
    call.mask_stride[i] = std::get<1>(mask)[i];
    call.weight_stride[i] = std::get<1>(weight)[i];
  }
  call.bias = pointer<const void>(bias);
  call.out = pointer<void>(out);
  call.packed = pointer<void>(packed);
  call.weights = pointer<void>(weights);
  call.section = section;
  call.chunks = chunks;
  call.units = units;
  call.target = target_of(target);
  vosengine::deform_conv_cuda(call);
}

void finish_masks_cuda(uintptr_t logits, int element, std::array<int64_t, 3> stride,
                       std::array<int64_t, 3> shape, uintptr_t ids, uintptr_t first,
                       int64_t streams, std::array<int64_t, 2> size, std::array<double, 4> region,
                       uintptr_t labels, uintptr_t probabilities, const Target& target) {
  vosengine::FinishMasksCuda call{};
  call.logits = pointer<const void>(logits);
  call.element = element_of(element);
  for (int i = 0; i < 3; ++i) call.stride[i] = stride[i];
  call.ids = pointer<const uint8_t>(ids);
  call.first = pointer<const int32_t>(first);
  call.streams = streams;
  call.objects = shape[0];
  call.cells_y = shape[1];
  call.cells_x = shape[2];
  call.height = size[0];
  call.width = size[1];
  call.top = region[0];
  call.left = region[1];
  call.region_height = region[2];
  call.region_width = region[3];
  call.labels = pointer<uint8_t>(labels);
  call.probabilities = pointer<float>(probabilities);
  call.target = target_of(target);
  vosengine::finish_masks_cuda(call);
}

void group_centres_cuda(uintptr_t heatmap, std::array<int64_t, 3> heatmap_stride, uintptr_t offset,
                        std::array<int64_t, 4> offset_stride, uintptr_t foreground,
                        std::array<int64_t, 3> foreground_stride, std::array<int64_t, 3> shape,
                        double threshold, int64_t window, int limit, uintptr_t labels,
                        uintptr_t centres, uintptr_t scores, uintptr_t peaks, int lists,
                        int element, const Target& target) {
  VOS_CHECK(limit >= 1 && limit <= 255, "limit", "1 to 255", limit);
  VOS_CHECK(lists >= 1, "lists", "at least 1", lists);
  vosengine::GroupCentresCuda call{};
  call.heatmap = pointer<const void>(heatmap);
  call.offset = pointer<const void>(offset);
  call.foreground = pointer<const uint8_t>(foreground);
  for (int i = 0; i < 3; ++i) {
    call.heatmap_stride[i] = heatmap_stride[i];
    call.foreground_stride[i] = foreground_stride[i];
  }
  for (int i = 0; i < 4; ++i) call.offset_stride[i] = offset_stride[i];
  call.element = element_of(element);
  call.batch = shape[0];
  call.height = static_cast<int>(shape[1]);
  call.width = static_cast<int>(shape[2]);
  call.threshold = threshold;
  call.window = window;
  call.limit = limit;
  call.labels = pointer<uint8_t>(labels);
  call.centres = pointer<int32_t>(centres);
  call.scores = pointer<void>(scores);
  call.peaks = pointer<uint64_t>(peaks);
  call.lists = lists;
  call.target = target_of(target);
  vosengine::group_centres_cuda(call);
}

void match_proposals_cuda(uintptr_t similarity, std::array<int64_t, 2> stride,
                          std::array<int, 2> shape, int64_t steps, int64_t inner, float rate,
                          bool mean, float equal, uintptr_t out, int element,
                          const Target& target) {
  vosengine::MatchProposalsCuda call{};
  call.similarity = pointer<const void>(similarity);
  for (int i = 0; i < 2; ++i) call.stride[i] = stride[i];
  call.element = element_of(element);
  call.objects = shape[0];
  call.proposals = shape[1];
  call.steps = steps;
  call.inner = inner;
  call.rate = rate;
  call.mean = mean;
  call.equal = equal;
  call.out = pointer<void>(out);
  call.target = target_of(target);
  vosengine::match_proposals_cuda(call);
}

// Of one source: maps, strides, [batch, channels, height, width], pixels per cell, per region.
using Source = std::tuple<uintptr_t, std::array<int64_t, 4>, std::array<int64_t, 4>, int64_t, bool>;

void pool_regions_cuda(const std::vector<Source>& sources, uintptr_t boxes, uintptr_t frame,
                       uintptr_t out, std::array<int64_t, 3> shape, bool aligned, int element,
                       const Target& target) {
  const int count = static_cast<int>(sources.size());
  VOS_CHECK(count <= vosengine::MOST_POOLED_MAPS, "sources", "at most 16", count);
  vosengine::PoolRegionsCuda call{};
  for (const auto& [maps, stride, map_shape, pixels, per_region] : sources) {
    vosengine::PooledMapsCuda& source = call.sources[call.source_count++];
    source.maps = pointer<const void>(maps);
    for (int i = 0; i < 4; ++i) source.stride[i] = stride[i];
    source.batch = map_shape[0];
    source.channels = static_cast<int>(map_shape[1]);
    source.height = map_shape[2];
    source.width = map_shape[3];
    source.pixels = pixels;
    source.per_region = per_region;
  }
  call.element = element_of(element);
  call.boxes = pointer<const double>(boxes);
  call.frame = pointer<const int32_t>(frame);
  call.out = pointer<void>(out);
  call.regions = shape[0];
  call.size = static_cast<int>(shape[1]);
  call.sampling = static_cast<int>(shape[2]);
  call.aligned = aligned;
  call.target = target_of(target);
  vosengine::pool_regions_cuda(call);
}

void prepare_frame_cuda(uintptr_t frame, bool bytes, std::array<int64_t, 3> stride,
                        std::array<int64_t, 2> shape, std::array<int64_t, 2> size,
                        std::array<int64_t, 4> padding, std::array<double, 3> mean,
                        std::array<double, 3> std, uintptr_t out, int element, bool channels_last,
                        const Target& target) {
  vosengine::PrepareFrameCuda call{};
  call.frame = pointer<const void>(frame);
  call.bytes = bytes;
  call.row_stride = stride[0];
  call.pixel_stride = stride[1];
  call.channel_stride = stride[2];
  call.height = shape[0];
  call.width = shape[1];
  call.resized_height = size[0];
  call.resized_width = size[1];
  call.left = padding[0];
  call.right = padding[1];
  call.top = padding[2];
  call.bottom = padding[3];
  for (int c = 0; c < 3; ++c) {
    call.scale[c] = static_cast<float>(1 / (std[c] * (bytes ? 255 : 1)));
    call.shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
  call.out = pointer<void>(out);
  call.element = element_of(element);
  call.channels_last = channels_last;
  call.target = target_of(target);
  vosengine::prepare_frame_cuda(call);
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
  module.def("deform_conv_cuda", &deform_conv_cuda, Release());
  module.def("finish_masks_cuda", &finish_masks_cuda, Release());
  module.def("group_centres_cuda", &group_centres_cuda, Release());
  module.def("match_proposals_cuda", &match_proposals_cuda, Release());
  module.def("pool_regions_cuda", &pool_regions_cuda, Release());
  module.def("prepare_frame_cuda", &prepare_frame_cuda, Release());
}

#endif
