// Deformable convolution; the contract is in kernels/deform_conv/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct DeformConv {
  const float* x;  // element (b, c, y, x) at x + b*sb + c*sc + y*sy + x*sx
  int64_t x_stride[4];
  const float* offset;  // [batch, offset_groups, taps, 2, out_height, out_width]
  const float* mask;    // [batch, offset_groups, taps, out_height, out_width], or null: all 1
  const float* weight;  // [outputs, channels / groups, taps]
  const float* bias;    // [outputs], or null: all 0
  float* out;           // [batch, outputs, out_height, out_width]
  int64_t batch, channels, height, width;
  int64_t outputs, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // (y, x)
  int64_t groups, offset_groups;
  int threads;
};

void deform_conv_cpu(const DeformConv& call);

}  // namespace vosengine
