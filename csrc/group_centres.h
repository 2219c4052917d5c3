// Peaks of a heat map and the pixels that point to them; the contract is in
// kernels/group_centres/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct GroupCentres {
  const float* heatmap;       // element (b, y, x) at heatmap + b*sb + y*sy + x
  const float* offset;        // element (b, c, y, x) at offset + b*sb + c*sc + y*sy + x
  const uint8_t* foreground;  // element (b, y, x) like the heat map, 0 or not
  int64_t heatmap_stride[2], offset_stride[3], foreground_stride[2];
  int64_t batch, height, width;
  double threshold;
  int64_t window, limit;
  uint8_t* labels;   // [batch, height, width]
  int32_t* centres;  // [batch, limit, 2], (y, x)
  float* scores;     // [batch, limit]
  int threads;
};

void group_centres_cpu(const GroupCentres& call);

}  // namespace vosengine
