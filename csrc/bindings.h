// What bindings.cpp and bindings_cuda.cpp share: the arguments as Python gives them, and the ops
// whose kernels take the same ones on both. Pointers and streams come as integers, so nothing here
// knows torch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
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

namespace vosengine {

// Sizes along axes, to be tied to as many fields.
using Two = std::tuple<int64_t, int64_t>;
using Three = std::tuple<int64_t, int64_t, int64_t>;
using Four = std::tuple<int64_t, int64_t, int64_t, int64_t>;

// Sets a field to an address, or an array to numbers.
template <typename T>
void set(T*& field, uintptr_t address) {
  field = reinterpret_cast<T*>(address);
}

template <typename T, size_t COUNT>
void set(T (&field)[COUNT], const std::array<T, COUNT>& numbers) {
  std::copy(numbers.begin(), numbers.end(), field);
}

// Device index and stream.
using Target = std::tuple<int, uintptr_t>;

// The last arguments of an op, which its two kernels do not share: on the CPU the number of threads
// (without one, a single thread), on a GPU the element type and the target, and a few of single
// ops.
template <typename Call>
void set_place(Call& call, int threads) {
  VOS_CHECK(threads > 0, "threads", "at least 1", threads);
  call.threads = threads;
}

inline void set_place(MatchProposals&) {}

template <typename Call>
void set_place(Call& call, int element, const Target& target) {
  VOS_CHECK(element >= 0 && element <= 2, "element", "0, 1 or 2", element);
  call.element = static_cast<Element>(element);
  call.target.device = std::get<0>(target);
  set(call.target.stream, std::get<1>(target));
}

inline void set_place(GroupCentresCuda& call, uintptr_t peaks, int lists, int element,
                      const Target& target) {
  VOS_CHECK(call.limit >= 1 && call.limit <= 255, "limit", "1 to 255", call.limit);
  VOS_CHECK(lists >= 1, "lists", "at least 1", lists);
  set(call.peaks, peaks);
  call.lists = lists;
  set_place(call, element, target);
}

inline void set_place(PrepareFrameCuda& call, bool channels_last, int element,
                      const Target& target) {
  call.channels_last = channels_last;
  set_place(call, element, target);
}

// Kernel, stride, padding and dilation, each (y, x); groups and offset groups.
using Pair = std::array<int64_t, 2>;
using Convolution = std::tuple<Pair, Pair, Pair, Pair, int64_t, int64_t>;

inline void set_sizes(DeformConvSizes& call, Four shape, Three out_shape,
                      const Convolution& convolution) {
  std::tie(call.batch, call.channels, call.height, call.width) = shape;
  std::tie(call.outputs, call.out_height, call.out_width) = out_shape;
  const auto& [kernel, stride, padding, dilation, groups, offset_groups] = convolution;
  set(call.kernel, kernel);
  set(call.stride, stride);
  set(call.padding, padding);
  set(call.dilation, dilation);
  call.groups = groups;
  call.offset_groups = offset_groups;
}

template <typename Call, void (*kernel)(const Call&), typename... Place>
void finish_masks(uintptr_t logits, std::array<int64_t, 3> stride, Three shape, uintptr_t ids,
                  uintptr_t first, int64_t streams, Two size,
                  std::tuple<double, double, double, double> region, uintptr_t labels,
                  uintptr_t probabilities, Place... place) {
  Call call{};
  set(call.logits, logits);
  set(call.stride, stride);
  std::tie(call.objects, call.cells_y, call.cells_x) = shape;
  set(call.ids, ids);
  set(call.first, first);
  call.streams = streams;
  std::tie(call.height, call.width) = size;
  std::tie(call.top, call.left, call.region_height, call.region_width) = region;
  set(call.labels, labels);
  set(call.probabilities, probabilities);
  set_place(call, place...);
  kernel(call);
}

template <typename Call, void (*kernel)(const Call&), typename... Place>
void group_centres(uintptr_t heatmap, std::array<int64_t, 3> heatmap_stride, uintptr_t offset,
                   std::array<int64_t, 4> offset_stride, uintptr_t foreground,
                   std::array<int64_t, 3> foreground_stride, Three shape, double threshold,
                   int64_t window, int limit, uintptr_t labels, uintptr_t centres, uintptr_t scores,
                   Place... place) {
  Call call{};
  set(call.heatmap, heatmap);
  set(call.heatmap_stride, heatmap_stride);
  set(call.offset, offset);
  set(call.offset_stride, offset_stride);
  set(call.foreground, foreground);
  set(call.foreground_stride, foreground_stride);
  std::tie(call.batch, call.height, call.width) = shape;
  call.threshold = threshold;
  call.window = window;
  call.limit = limit;
  set(call.labels, labels);
  set(call.centres, centres);
  set(call.scores, scores);
  set_place(call, place...);
  kernel(call);
}

template <typename Call, void (*kernel)(const Call&), typename... Place>
void match_proposals(uintptr_t similarity, std::array<int64_t, 2> stride, Two shape, int64_t steps,
                     int64_t inner, float rate, bool mean, float equal, uintptr_t out,
                     Place... place) {
  Call call{};
  set(call.similarity, similarity);
  set(call.stride, stride);
  std::tie(call.objects, call.proposals) = shape;
  call.steps = steps;
  call.inner = inner;
  call.rate = rate;
  call.mean = mean;
  call.equal = equal;
  set(call.out, out);
  set_place(call, place...);
  kernel(call);
}

// Of one source: maps, strides, [batch, channels, height, width], pixels per cell, per region.
using Source = std::tuple<uintptr_t, std::array<int64_t, 4>, Four, int64_t, bool>;

inline void set_sources(PoolRegions& call, const std::vector<PooledMaps>& sources) {
  call.sources = sources.data();
  call.source_count = static_cast<int64_t>(sources.size());
}

inline void set_sources(PoolRegionsCuda& call, const std::vector<PooledMapsCuda>& sources) {
  call.source_count = static_cast<int>(sources.size());
  VOS_CHECK(call.source_count <= MOST_POOLED_MAPS, "sources", "at most 16", call.source_count);
  std::copy(sources.begin(), sources.end(), call.sources);
}

template <typename Call, typename Maps, void (*kernel)(const Call&), typename... Place>
void pool_regions(const std::vector<Source>& sources, uintptr_t boxes, uintptr_t frame,
                  uintptr_t out, Three shape, bool aligned, Place... place) {
  std::vector<Maps> pooled;
  for (const auto& [address, stride, map_shape, pixels, per_region] : sources) {
    Maps& maps = pooled.emplace_back();
    set(maps.maps, address);
    set(maps.stride, stride);
    std::tie(maps.batch, maps.channels, maps.height, maps.width) = map_shape;
    maps.pixels = pixels;
    maps.per_region = per_region;
  }
  Call call{};
  set_sources(call, pooled);
  set(call.boxes, boxes);
  set(call.frame, frame);
  set(call.out, out);
  std::tie(call.regions, call.size, call.sampling) = shape;
  call.aligned = aligned;
  set_place(call, place...);
  kernel(call);
}

template <typename Call, void (*kernel)(const Call&), typename... Place>
void prepare_frame(uintptr_t frame, bool bytes, Three stride, Two shape, Two size, Four padding,
                   std::array<double, 3> mean, std::array<double, 3> std, uintptr_t out,
                   Place... place) {
  Call call{};
  set(call.frame, frame);
  call.bytes = bytes;
  std::tie(call.row_stride, call.pixel_stride, call.channel_stride) = stride;
  std::tie(call.height, call.width) = shape;
  std::tie(call.resized_height, call.resized_width) = size;
  std::tie(call.left, call.right, call.top, call.bottom) = padding;
  set_normalisation(call, mean, std);
  set(call.out, out);
  set_place(call, place...);
  kernel(call);
}

}  // namespace vosengine
