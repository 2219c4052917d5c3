// Peaks of a heat map and the pixels that point to them; the contract is in
// kernels/group_centres/reference.py.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "cuda_target.h"
#include "host_device.h"

namespace vosengine {

struct GroupCentres {
  const float* heatmap;       // element (b, y, x) at heatmap + b*sb + y*sy + x: sx is 1
  const float* offset;        // element (b, c, y, x) at offset + b*sb + c*sc + y*sy + x
  const uint8_t* foreground;  // element (b, y, x) like the heat map, 0 or not
  int64_t heatmap_stride[3], offset_stride[4], foreground_stride[3];
  int64_t batch, height, width;
  double threshold;
  int64_t window, limit;
  uint8_t* labels;   // [batch, height, width]
  int32_t* centres;  // [batch, limit, 2], (y, x)
  float* scores;     // [batch, limit]
  int threads;
};

void group_centres_cpu(const GroupCentres& call);

struct GroupCentresCuda {
  const void* heatmap;        // element (b, y, x) at heatmap + b*sb + y*sy + x*sx, of `element`
  const void* offset;         // element (b, c, y, x) likewise, of `element`
  const uint8_t* foreground;  // element (b, y, x) likewise, 0 or not
  int64_t heatmap_stride[3], offset_stride[4], foreground_stride[3];
  Element element;
  int64_t batch;
  int height, width;
  double threshold;
  int64_t window;
  int limit;
  uint8_t* labels;   // [batch, height, width]
  int32_t* centres;  // [batch, limit, 2], (y, x)
  void* scores;      // [batch, limit] of `element`
  uint64_t* peaks;   // [batch, lists, limit], scratch
  int lists;         // 1 or more: parts of an image that are searched independently
  CudaTarget target;
};

void group_centres_cuda(const GroupCentresCuda& call);

// The greatest float that is not above the threshold: heat > cutoff says exactly heat > threshold.
inline float cutoff_for(double threshold) {
  const float cutoff = static_cast<float>(threshold);
  return cutoff > threshold ? std::nextafter(cutoff, -INFINITY) : cutoff;
}

VOS_HOST_DEVICE inline bool is_greater(float other, float heat) {
  return other > heat && other <= FLT_MAX;
}
VOS_HOST_DEVICE inline bool is_no_less(float other, float heat) {
  return other >= heat && other <= FLT_MAX;
}

// Whether the heat read(y, x) is the peak of its window. Nearest cells first: on a slope the first
// or second comparison decides.
template <typename Read>
VOS_HOST_DEVICE inline bool is_peak(int64_t y, int64_t x, int64_t height, int64_t width,
                                    int64_t radius, const Read& read) {
  const float heat = read(y, x);
  const int64_t left = radius < x ? radius : x;
  const int64_t right = radius < width - 1 - x ? radius : width - 1 - x;
  for (int64_t d = 1; d <= left || d <= right; ++d) {
    if (d <= left && is_no_less(read(y, x - d), heat)) return false;
    if (d <= right && is_greater(read(y, x + d), heat)) return false;
  }
  const int64_t above = radius < y ? radius : y;
  const int64_t below = radius < height - 1 - y ? radius : height - 1 - y;
  for (int64_t d = 1; d <= above || d <= below; ++d)
    for (int64_t column = x - left; column <= x + right; ++column) {
      if (d <= above && is_no_less(read(y - d, column), heat)) return false;
      if (d <= below && is_greater(read(y + d, column), heat)) return false;
    }
  return true;
}

}  // namespace vosengine
