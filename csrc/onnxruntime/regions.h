// The kernels on regions and objects as operators of onnxruntime, as those of ops.h.
#pragma once

#include <cmath>

#include "checks.h"
#include "group_centres.h"
#include "pool_regions.h"
#include "tensors.h"

namespace vosengine::onnx {

struct PoolRegionsOp {
  static constexpr const char* NAME = "pool_regions";
  // boxes, frame, planes, levels
  static constexpr Port INPUTS[] = {
      {DOUBLE}, {INT32, Kind::optional}, {FLOAT, Kind::optional}, {FLOAT, Kind::variadic}};
  static constexpr Port OUTPUTS[] = {{FLOAT}};

  explicit PoolRegionsOp(const Attributes& attributes)
      : strides(attributes.integers("strides")),
        plane_stride(attributes.integer("plane_stride")),
        size(attributes.integer("size")),
        sampling(attributes.integer("sampling")),
        aligned(attributes.integer("aligned") != 0) {
    for (int64_t each : strides) VOS_CHECK(each > 0, "strides", "at least 1", each);
    VOS_CHECK(plane_stride > 0, "plane_stride", "at least 1", plane_stride);
    VOS_CHECK(size > 0, "size", "at least 1", size);
    VOS_CHECK(sampling >= 1 && sampling <= 8, "sampling", "1 to 8", sampling);
  }

  void run(const Call& call) const {
    const Tensor boxes = call.input(0), frame = call.input(1), planes = call.input(2);
    const size_t levels = call.input_count() - 3;
    VOS_CHECK(levels == strides.size(), "levels", "as many as strides", levels);
    Sizes sizes;
    sizes.match("boxes", boxes, {"R", "4"});
    sizes.match("frame", frame, {"R"});
    sizes.match("planes", planes, {"R", "H", "W"});
    std::vector<PooledMaps> sources;
    int64_t channels = 0;
    for (size_t i = 0; i < levels; ++i) {
      const Tensor maps = call.input(3 + i);
      Sizes own;
      own.match("levels", maps, {"B", "C", "H", "W"});
      for (int64_t side : {own["B"], own["H"], own["W"]})
        VOS_CHECK(side > 0, "levels", "at least one cell", side);
      sources.push_back(source(maps.as<float>(), maps.shape, strides[i], false));
      VOS_CHECK(frame.given || own["B"] == 1 || sizes["R"] == 0, "frame",
                "the image of every region, with several images", own["B"]);
      channels += own["C"];
    }
    if (planes.given) {
      std::vector<int64_t> shape = planes.shape;
      shape.insert(shape.begin() + 1, 1);
      sources.push_back(source(planes.as<float>(), shape, plane_stride, true));
      ++channels;
    }
    PoolRegions pool{};
    pool.sources = sources.data();
    pool.source_count = static_cast<int64_t>(sources.size());
    pool.boxes = boxes.as<double>();
    pool.frame = frame.as<int32_t>();
    pool.regions = sizes["R"];
    pool.size = size;
    pool.sampling = sampling;
    pool.aligned = aligned;
    pool.out = call.output<float>(0, {pool.regions, channels, size, size});
    pool.threads = call.threads;
    pool_regions_cpu(pool);
  }

  static PooledMaps source(const float* maps, const std::vector<int64_t>& shape, int64_t pixels,
                           bool per_region) {
    PooledMaps found{maps, {}, shape[0], shape[1], shape[2], shape[3], pixels, per_region};
    set_strides(shape, found.stride);
    return found;
  }

  std::vector<int64_t> strides;
  int64_t plane_stride, size, sampling;
  bool aligned;
};

struct GroupCentresOp {
  static constexpr const char* NAME = "group_centres";
  // heatmap, offset, foreground, threshold (float64, as it is compared)
  static constexpr Port INPUTS[] = {{FLOAT}, {FLOAT}, {BOOL}, {DOUBLE}};
  static constexpr Port OUTPUTS[] = {{UINT8}, {INT32}, {FLOAT}};  // labels, centres, scores

  explicit GroupCentresOp(const Attributes& attributes)
      : window(attributes.integer("window")), limit(attributes.integer("limit")) {
    VOS_CHECK(window > 0 && window % 2 == 1, "window", "an odd number of cells", window);
    VOS_CHECK(limit >= 1 && limit <= 255, "limit", "1 to 255", limit);
  }

  void run(const Call& call) const {
    const Tensor heatmap = call.input(0), offset = call.input(1), foreground = call.input(2);
    const Tensor threshold = call.input(3);
    Sizes sizes;
    sizes.match("heatmap", heatmap, {"B", "H", "W"});
    sizes.match("offset", offset, {"B", "2", "H", "W"});
    sizes.match("foreground", foreground, {"B", "H", "W"});
    sizes.match("threshold", threshold, {});
    VOS_CHECK(sizes["H"] > 0 && sizes["W"] > 0, "heatmap", "at least one pixel", 0);
    GroupCentres group{};
    group.heatmap = heatmap.as<float>();
    group.offset = offset.as<float>();
    group.foreground = foreground.as<uint8_t>();
    group.batch = sizes["B"];
    group.height = sizes["H"];
    group.width = sizes["W"];
    set_strides(heatmap.shape, group.heatmap_stride);
    set_strides(offset.shape, group.offset_stride);
    set_strides(foreground.shape, group.foreground_stride);
    group.threshold = *threshold.as<double>();
    VOS_CHECK(!std::isnan(group.threshold), "threshold", "a number", group.threshold);
    group.window = window;
    group.limit = limit;
    group.labels = call.output<uint8_t>(0, {group.batch, group.height, group.width});
    group.centres = call.output<int32_t>(1, {group.batch, limit, 2});
    group.scores = call.output<float>(2, {group.batch, limit});
    group.threads = call.threads;
    group_centres_cpu(group);
  }

  int64_t window, limit;
};

}  // namespace vosengine::onnx
