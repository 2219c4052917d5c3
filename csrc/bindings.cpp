// The one pybind11 file: a table with one entry per op. Pointers and streams come as integers, so
// nothing here knows torch; the GIL is released while an op runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "checks.h"
#include "correlate_frames.h"
#include "deform_conv.h"
#include "device.h"
#include "finish_masks.h"
#include "fit_target.h"
#include "group_centres.h"
#include "isa.h"
#include "match_proposals.h"
#include "pool_regions.h"
#include "prepare_frame.h"
#include "read_memory.h"

namespace py = pybind11;
using Strides = std::array<int64_t, 4>;
using Pair = std::array<int64_t, 2>;

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

void deform_conv_cpu(uintptr_t x, Strides x_stride, std::array<int64_t, 4> x_shape,
                     uintptr_t offset, uintptr_t mask, uintptr_t weight, uintptr_t bias,
                     uintptr_t out, std::array<int64_t, 3> out_shape, Pair kernel, Pair stride,
                     Pair padding, Pair dilation, int64_t groups, int64_t offset_groups,
                     int threads) {
  check_threads(threads);
  vosengine::DeformConv call{};
  call.x = pointer<const float>(x);
  for (int i = 0; i < 4; ++i) call.x_stride[i] = x_stride[i];
  call.offset = pointer<const float>(offset);
  call.mask = pointer<const float>(mask);
  call.weight = pointer<const float>(weight);
  call.bias = pointer<const float>(bias);
  call.out = pointer<float>(out);
  call.batch = x_shape[0];
  call.channels = x_shape[1];
  call.height = x_shape[2];
  call.width = x_shape[3];
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
  call.threads = threads;
  vosengine::deform_conv_cpu(call);
}

void finish_masks_cpu(uintptr_t logits, std::array<int64_t, 3> stride, std::array<int64_t, 3> shape,
                      uintptr_t ids, uintptr_t first, int64_t streams, std::array<int64_t, 2> size,
                      std::array<double, 4> region, uintptr_t labels, uintptr_t probabilities,
                      int threads) {
  check_threads(threads);
  vosengine::FinishMasks call{};
  call.logits = pointer<const void>(logits);
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
  call.threads = threads;
  vosengine::finish_masks_cpu(call);
}

void fit_target_cpu(uintptr_t features, std::array<int64_t, 3> feature_stride, uintptr_t bands,
                    std::array<int64_t, 3> band_stride, uintptr_t targets,
                    std::array<int64_t, 2> target_stride, uintptr_t sample_weight,
                    std::array<int64_t, 2> weight_stride, uintptr_t kernel, uintptr_t projection,
                    std::array<int64_t, 6> shape, const std::vector<int64_t>& iterations,
                    std::array<double, 2> ridge, int threads) {
  check_threads(threads);
  vosengine::FitTarget call{};
  call.features = pointer<const float>(features);
  call.bands = pointer<const float>(bands);
  call.targets = pointer<const float>(targets);
  call.sample_weight = pointer<const float>(sample_weight);
  for (int i = 0; i < 3; ++i) {
    call.feature_stride[i] = feature_stride[i];
    call.band_stride[i] = band_stride[i];
  }
  for (int i = 0; i < 2; ++i) {
    call.target_stride[i] = target_stride[i];
    call.weight_stride[i] = weight_stride[i];
  }
  call.kernel = pointer<float>(kernel);
  call.projection = pointer<float>(projection);
  call.tracks = shape[0];
  call.samples = shape[1];
  call.channels = shape[2];
  call.height = shape[3];
  call.width = shape[4];
  call.maps = shape[5];
  call.iterations = iterations.data();
  call.steps = static_cast<int64_t>(iterations.size());
  call.projection_ridge = ridge[0];
  call.kernel_ridge = ridge[1];
  call.threads = threads;
  vosengine::fit_target_cpu(call);
}

void group_centres_cpu(uintptr_t heatmap, std::array<int64_t, 2> heatmap_stride, uintptr_t offset,
                       std::array<int64_t, 3> offset_stride, uintptr_t foreground,
                       std::array<int64_t, 2> foreground_stride, std::array<int64_t, 3> shape,
                       double threshold, int64_t window, int64_t limit, uintptr_t labels,
                       uintptr_t centres, uintptr_t scores, int threads) {
  check_threads(threads);
  vosengine::GroupCentres call{};
  call.heatmap = pointer<const float>(heatmap);
  call.offset = pointer<const float>(offset);
  call.foreground = pointer<const uint8_t>(foreground);
  for (int i = 0; i < 2; ++i) call.heatmap_stride[i] = heatmap_stride[i];
  for (int i = 0; i < 3; ++i) call.offset_stride[i] = offset_stride[i];
  for (int i = 0; i < 2; ++i) call.foreground_stride[i] = foreground_stride[i];
  call.batch = shape[0];
  call.height = shape[1];
  call.width = shape[2];
  call.threshold = threshold;
  call.window = window;
  call.limit = limit;
  call.labels = pointer<uint8_t>(labels);
  call.centres = pointer<int32_t>(centres);
  call.scores = pointer<float>(scores);
  call.threads = threads;
  vosengine::group_centres_cpu(call);
}

void match_proposals_cpu(uintptr_t similarity, Pair stride, Pair shape, int64_t steps,
                         int64_t inner, float rate, bool mean, float equal, uintptr_t out) {
  vosengine::MatchProposals call{};
  call.similarity = pointer<const float>(similarity);
  for (int i = 0; i < 2; ++i) call.stride[i] = stride[i];
  call.objects = shape[0];
  call.proposals = shape[1];
  call.steps = steps;
  call.inner = inner;
  call.rate = rate;
  call.mean = mean;
  call.equal = equal;
  call.out = pointer<float>(out);
  vosengine::match_proposals_cpu(call);
}

// Of one source: maps, strides, [batch, channels, height, width], pixels per cell, per region.
using Source = std::tuple<uintptr_t, std::array<int64_t, 3>, std::array<int64_t, 4>, int64_t, bool>;

void pool_regions_cpu(const std::vector<Source>& sources, uintptr_t boxes, uintptr_t frame,
                      uintptr_t out, std::array<int64_t, 3> shape, bool aligned, int threads) {
  check_threads(threads);
  std::vector<vosengine::PooledMaps> pooled;
  for (const auto& [maps, stride, map_shape, pixels, per_region] : sources)
    pooled.push_back({pointer<const float>(maps),
                      {stride[0], stride[1], stride[2]},
                      map_shape[0],
                      map_shape[1],
                      map_shape[2],
                      map_shape[3],
                      pixels,
                      per_region});
  vosengine::PoolRegions call{};
  call.sources = pooled.data();
  call.source_count = static_cast<int64_t>(pooled.size());
  call.boxes = pointer<const double>(boxes);
  call.frame = pointer<const int32_t>(frame);
  call.out = pointer<float>(out);
  call.regions = shape[0];
  call.size = shape[1];
  call.sampling = shape[2];
  call.aligned = aligned;
  call.threads = threads;
  vosengine::pool_regions_cpu(call);
}

void prepare_frame_cpu(uintptr_t frame, bool bytes, int64_t row_stride,
                       std::array<int64_t, 2> shape, std::array<int64_t, 2> size,
                       std::array<int64_t, 4> padding, std::array<double, 3> mean,
                       std::array<double, 3> std, uintptr_t out, int threads) {
  check_threads(threads);
  vosengine::PrepareFrame call{};
  call.frame = pointer<const void>(frame);
  call.bytes = bytes;
  call.row_stride = row_stride;
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
  call.threads = threads;
  vosengine::prepare_frame_cpu(call);
}

template <typename Number, void (*kernel)(const vosengine::ReadMemoryOf<Number>&)>
void read_memory(uintptr_t query, Pair query_stride, uintptr_t query_of, uintptr_t key,
                 Pair key_stride, uintptr_t value, std::array<int64_t, 3> value_stride, int element,
                 uintptr_t pages, std::array<int64_t, 3> page_sizes, uintptr_t bias,
                 uintptr_t length, uintptr_t out, std::array<int64_t, 7> sizes, int64_t top_k,
                 float scale, int threads) {
  check_threads(threads);
  vosengine::ReadMemoryOf<Number> call{};
  call.query = pointer<const Number>(query);
  call.query_group = query_stride[0];
  call.query_row = query_stride[1];
  call.query_of = pointer<const int32_t>(query_of);
  call.key = pointer<const void>(key);
  call.key_page = key_stride[0];
  call.key_row = key_stride[1];
  call.value = pointer<const void>(value);
  call.value_page = value_stride[0];
  call.value_set = value_stride[1];
  call.value_row = value_stride[2];
  call.element = static_cast<vosengine::Element>(element);
  call.pages = {pointer<const int32_t>(pages), page_sizes[0], page_sizes[1], page_sizes[2]};
  call.bias = pointer<const float>(bias);
  call.length = pointer<const int32_t>(length);
  call.out = pointer<Number>(out);
  call.groups = sizes[0];
  call.sets = sizes[1];
  call.queries = sizes[2];
  call.positions = sizes[3];
  call.key_channels = sizes[4];
  call.value_channels = sizes[5];
  call.query_count = sizes[6];
  call.top_k = top_k;
  call.scale = scale;
  call.threads = threads;
  kernel(call);
}

}  // namespace

#ifdef VOSENGINE_CUDA
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

PYBIND11_MODULE(_C, module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.doc() = "vosengine's compiled kernels on raw pointers; called through vosengine.kernels";
  module.def("build_info", &vosengine::build_info);
  module.def("isa", &vosengine::isa_name);
  module.def("choose_isa", &vosengine::choose_isa);
  module.def("correlate_frames_cpu", &correlate_frames_cpu, Release());
  module.def("deform_conv_cpu", &deform_conv_cpu, Release());
  module.def("finish_masks_cpu", &finish_masks_cpu, Release());
  module.def("fit_target_cpu", &fit_target_cpu, Release());
  module.def("group_centres_cpu", &group_centres_cpu, Release());
  module.def("match_proposals_cpu", &match_proposals_cpu, Release());
  module.def("pool_regions_cpu", &pool_regions_cpu, Release());
  module.def("prepare_frame_cpu", &prepare_frame_cpu, Release());
  module.def("read_memory_cpu", &read_memory<float, vosengine::read_memory_cpu>, Release());
  module.def("read_memory_top_k_cpu", &read_memory<float, vosengine::read_memory_top_k_cpu>,
             Release());
  module.def("read_memory_amx", &read_memory<uint16_t, vosengine::read_memory_amx>, Release());
#ifdef VOSENGINE_CUDA
  bind_cuda(module);
#endif
}
