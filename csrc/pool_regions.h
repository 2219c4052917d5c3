// ROIAlign: boxes cropped from several maps, each resampled to size x size bins; the contract is in
// kernels/pool_regions/reference.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda_target.h"
#include "host_device.h"

namespace vosengine {

struct PooledMaps {
  const float* maps;  // element (b, c, y, x) at maps + b*stride[0] + c*stride[1] + y*stride[2] + x
  int64_t stride[4];  // the last is 1
  int64_t batch, channels, height, width;
  int64_t pixels;   // per cell
  bool per_region;  // region r reads map r, not map frame[r]
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

struct PooledMapsCuda {
  const void* maps;   // as above, of the call's `element`
  int64_t stride[4];  // the last is any
  int64_t batch, height, width;
  int channels;
  int64_t pixels;
  bool per_region;
};

constexpr int MOST_POOLED_MAPS = 16;

struct PoolRegionsCuda {
  PooledMapsCuda sources[MOST_POOLED_MAPS];
  int source_count;
  Element element;
  const double* boxes;
  const int32_t* frame;
  void* out;  // of `element`
  int64_t regions;
  int size, sampling;
  bool aligned;
  CudaTarget target;
};

void pool_regions_cuda(const PoolRegionsCuda& call);

// The samples of one axis, in cells; NaN if the box is not finite.
struct SampledAxis {
  double first, extent;
  int64_t cells, sampling, samples;
};

// `from` is the side where the axis starts: 0 (left) for x, 1 (top) for y.
VOS_HOST_DEVICE inline SampledAxis sampled_axis(const double* box, int from, int64_t pixels,
                                                int64_t cells, int64_t size, int64_t sampling,
                                                bool aligned) {
  bool finite = true;
  for (int i = 0; i < 4; ++i) finite = finite && std::isfinite(box[i]);
  const double start = finite ? box[from] : NAN, end = finite ? box[from + 2] : NAN;
  const double extent = (end - start) / pixels, first = start / pixels;
  return {aligned ? first - 0.5 : first, aligned || !(extent < 1) ? extent : 1.0, cells, sampling,
          size * sampling};
}

VOS_HOST_DEVICE inline void add_tap(int32_t cell, float weight, int32_t* cells, float* weights,
                                    int32_t& count) {
  for (int32_t i = count - 1; i >= 0; --i)
    if (cells[i] == cell) {
      weights[i] += weight;
      return;
    }
  cells[count] = cell;
  weights[count++] = weight;
}

// Writes the distinct cells that a bin reads along an axis and their weights, at most two per
// sample; returns their number.
VOS_HOST_DEVICE inline int32_t read_bin(const SampledAxis& axis, int64_t bin, int32_t* cells,
                                        float* weights) {
  int32_t count = 0;
  for (int64_t k = bin * axis.sampling; k < (bin + 1) * axis.sampling; ++k) {
    double position = axis.first + axis.extent * (2 * k + 1) / (2 * axis.samples);
    if (!(position >= -1 && position <= axis.cells)) continue;
    const double last = axis.cells - 1;
    position = position < 0 ? 0 : position > last ? last : position;
    const double low = std::floor(position), fraction = position - low;
    const int32_t cell = static_cast<int32_t>(low);
    add_tap(cell, static_cast<float>((1 - fraction) / axis.sampling), cells, weights, count);
    add_tap(cell + (low < last), static_cast<float>(fraction / axis.sampling), cells, weights,
            count);
  }
  return count;
}

}  // namespace vosengine
