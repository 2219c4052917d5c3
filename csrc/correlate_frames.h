// Local cosine correlation with soft-argmax and maximum; the contract is in
// kernels/correlate_frames/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct CorrelateFrames {
  const float* query;     // element (b, c, y, x) at query + b*sb + c*sc + y*sy + x*sx
  const float* previous;  // likewise, with strides of its own
  int64_t query_stride[4], previous_stride[4];
  float* out;  // [batch, 3, height, width]
  int64_t batch, channels, height, width, radius;
  float temperature;
  bool exclude_outside;
  int threads;
};

void correlate_frames_cpu(const CorrelateFrames& call);

}  // namespace vosengine
