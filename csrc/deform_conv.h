// Deformable convolution; the contract is in kernels/deform_conv/reference.py.
#pragma once

#include <cstdint>

#include "cuda_target.h"

namespace vosengine {

struct DeformConvSizes {
  int64_t batch, channels, height, width;
  int64_t outputs, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // (y, x)
  int64_t groups, offset_groups;
};

struct DeformConv : DeformConvSizes {
  const float* x;  // element (b, c, y, x) at x + b*sb + c*sc + y*sy + x*sx
  int64_t x_stride[4];
  const float* offset;  // [batch, offset_groups, taps, 2, out_height, out_width]
  const float* mask;    // [batch, offset_groups, taps, out_height, out_width], or null: all 1
  const float* weight;  // [outputs, channels / groups, taps]
  const float* bias;    // [outputs], or null: all 0
  float* out;           // [batch, outputs, out_height, out_width]
  int threads;
};

void deform_conv_cpu(const DeformConv& call);

struct DeformConvCuda : DeformConvSizes {
  Element element;  // of every tensor
  const void *x, *offset, *mask, *weight;
  int64_t x_stride[4], offset_stride[4], mask_stride[4], weight_stride[4];
  const void* bias;  // contiguous, or null
  void* out;         // contiguous
  // Scratch, laid out as kernels/deform_conv/packing.py says, in units of 16 bytes.
  void *packed, *weights;
  int64_t section, chunks, units;
  CudaTarget target;
};

void deform_conv_cuda(const DeformConvCuda& call);

}  // namespace vosengine
