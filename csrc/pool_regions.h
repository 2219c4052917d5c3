// Boxes cut out of several maps at once, each resampled to size x size bins (ROIAlign); the
// contract is in kernels/pool_regions/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct PooledMaps {
  const float* maps;  // element (b, c, y, x) at maps + b*stride[0] + c*stride[1] + y*stride[2] + x
  int64_t stride[3];
  int64_t batch, channels, height, width;
  int64_t pixels;   // per cell
  bool per_region;  // region r is cut out of map r, not out of map frame[r]
};

struct PoolRegions {
  const PooledMaps* sources;
  int64_t source_count;
  const double* boxes;   // [regions, 4] left, top, right, bottom
  const int32_t* frame;  // [regions], or null for image 0
  float* out;            // [regions, sum of channels, size, size]
  int64_t regions, size, sampling;
  bool aligned;
  int threads;
};

void pool_regions_cpu(const PoolRegions& call);

}  // namespace vosengine
