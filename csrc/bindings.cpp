// The one pybind11 table, with one entry per op; bindings_cuda.cpp is its other half. The GIL is
// released while an op runs.
#include "bindings.h"

#include "correlate_frames.h"
#include "deform_conv.h"
#include "device.h"
#include "fit_target.h"
#include "isa.h"
#include "read_memory.h"

namespace py = pybind11;

namespace vosengine {
namespace {

void correlate_frames(uintptr_t query, std::array<int64_t, 4> query_stride, uintptr_t previous,
                      std::array<int64_t, 4> previous_stride, uintptr_t out, Four shape,
                      int64_t radius, float temperature, bool exclude_outside, int threads) {
  CorrelateFrames call{};
  set(call.query, query);
  set(call.query_stride, query_stride);
  set(call.previous, previous);
  set(call.previous_stride, previous_stride);
  set(call.out, out);
  std::tie(call.batch, call.channels, call.height, call.width) = shape;
  call.radius = radius;
  call.temperature = temperature;
  call.exclude_outside = exclude_outside;
  set_place(call, threads);
  correlate_frames_cpu(call);
}

void deform_conv(uintptr_t x, std::array<int64_t, 4> x_stride, Four x_shape, uintptr_t offset,
                 uintptr_t mask, uintptr_t weight, uintptr_t bias, uintptr_t out, Three out_shape,
                 const Convolution& convolution, int threads) {
  DeformConv call{};
  set(call.x, x);
  set(call.x_stride, x_stride);
  set(call.offset, offset);
  set(call.mask, mask);
  set(call.weight, weight);
  set(call.bias, bias);
  set(call.out, out);
  set_sizes(call, x_shape, out_shape, convolution);
  set_place(call, threads);
  deform_conv_cpu(call);
}

void fit_target(uintptr_t features, std::array<int64_t, 3> feature_stride, uintptr_t bands,
                std::array<int64_t, 3> band_stride, uintptr_t targets,
                std::array<int64_t, 2> target_stride, uintptr_t sample_weight,
                std::array<int64_t, 2> weight_stride, uintptr_t kernel, uintptr_t projection,
                std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> shape,
                const std::vector<int64_t>& iterations, std::tuple<double, double> ridge,
                int threads) {
  FitTarget call{};
  set(call.features, features);
  set(call.feature_stride, feature_stride);
  set(call.bands, bands);
  set(call.band_stride, band_stride);
  set(call.targets, targets);
  set(call.target_stride, target_stride);
  set(call.sample_weight, sample_weight);
  set(call.weight_stride, weight_stride);
  set(call.kernel, kernel);
  set(call.projection, projection);
  std::tie(call.tracks, call.samples, call.channels, call.height, call.width, call.maps) = shape;
  call.iterations = iterations.data();
  call.steps = static_cast<int64_t>(iterations.size());
  std::tie(call.projection_ridge, call.kernel_ridge) = ridge;
  set_place(call, threads);
  fit_target_cpu(call);
}

template <typename Number, void (*kernel)(const ReadMemoryOf<Number>&)>
void read_memory(uintptr_t query, Two query_stride, uintptr_t query_of, uintptr_t key,
                 Two key_stride, uintptr_t value, Three value_stride, int element, uintptr_t pages,
                 Three page_sizes, uintptr_t bias, uintptr_t length, uintptr_t out,
                 std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> sizes,
                 int64_t top_k, float scale, int threads) {
  ReadMemoryOf<Number> call{};
  set(call.query, query);
  std::tie(call.query_group, call.query_row) = query_stride;
  set(call.query_of, query_of);
  set(call.key, key);
  std::tie(call.key_page, call.key_row) = key_stride;
  set(call.value, value);
  std::tie(call.value_page, call.value_set, call.value_row) = value_stride;
  call.element = static_cast<Element>(element);
  set(call.pages.table, pages);
  std::tie(call.pages.columns, call.pages.positions, call.pages.count) = page_sizes;
  set(call.bias, bias);
  set(call.length, length);
  set(call.out, out);
  std::tie(call.groups, call.sets, call.queries, call.positions, call.key_channels,
           call.value_channels, call.query_count) = sizes;
  call.top_k = top_k;
  call.scale = scale;
  set_place(call, threads);
  kernel(call);
}

}  // namespace
}  // namespace vosengine

#ifdef VOSENGINE_CUDA
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

PYBIND11_MODULE(_C, module) {
  using namespace vosengine;
  using Release = py::call_guard<py::gil_scoped_release>;
  module.doc() = "vosengine's compiled kernels on raw pointers; called through vosengine.kernels";
  module.def("build_info", &build_info);
  module.def("isa", &isa_name);
  module.def("choose_isa", &choose_isa);
  module.def("correlate_frames_cpu", &correlate_frames, Release());
  module.def("deform_conv_cpu", &deform_conv, Release());
  module.def("finish_masks_cpu", &finish_masks<FinishMasks, finish_masks_cpu, int>, Release());
  module.def("fit_target_cpu", &fit_target, Release());
  module.def("group_centres_cpu", &group_centres<GroupCentres, group_centres_cpu, int>, Release());
  module.def("match_proposals_cpu", &match_proposals<MatchProposals, match_proposals_cpu>,
             Release());
  module.def("pool_regions_cpu", &pool_regions<PoolRegions, PooledMaps, pool_regions_cpu, int>,
             Release());
  module.def("prepare_frame_cpu", &prepare_frame<PrepareFrame, prepare_frame_cpu, int>, Release());
  module.def("read_memory_cpu", &read_memory<float, read_memory_cpu>, Release());
  module.def("read_memory_top_k_cpu", &read_memory<float, read_memory_top_k_cpu>, Release());
  module.def("read_memory_amx", &read_memory<uint16_t, read_memory_amx>, Release());
#ifdef VOSENGINE_CUDA
  bind_cuda(module);
#endif
}
