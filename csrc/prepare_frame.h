// Resize, pad and normalise one image; the contract is in kernels/prepare_frame/reference.py.
#pragma once

#include <cstdint>

#include "cuda_target.h"
#include "host_device.h"

namespace vosengine {

struct PrepareFrame {
  const void* frame;  // element (y, x, c) at frame + y*row + x*pixel + c*channel, in elements
  bool bytes;         // uint8 elements, else float
  int64_t row_stride, pixel_stride, channel_stride;  // of any sign and size; on a CPU any, 3 and 1
  int64_t height, width;
  int64_t resized_height, resized_width;
  int64_t left, right, top, bottom;
  float scale[3], shift[3];  // out[c] = value * scale[c] + shift[c], so black is shift[c]
  void* out;    // [3, top + resized_height + bottom, left + resized_width + right], float
  int threads;  // on the CPU
};

struct PrepareFrameCuda : PrepareFrame {
  Element element;     // of `out`
  bool channels_last;  // whether `out` lies in memory as [height, width, 3]
  CudaTarget target;
};

// Folds the division of bytes by 255 into the normalisation.
template <typename Numbers>
void set_normalisation(PrepareFrame& call, const Numbers& mean, const Numbers& std) {
  for (int c = 0; c < 3; ++c) {
    const double spread = std[c];
    call.scale[c] = static_cast<float>(1 / (spread * (call.bytes ? 255 : 1)));
    call.shift[c] = static_cast<float>(-mean[c] / spread);
  }
}

void prepare_frame_cpu(const PrepareFrame& call);

#ifdef VOSENGINE_CUDA
void prepare_frame_cuda(const PrepareFrameCuda& call);
#endif

// The range of `cells` cells that output `index` averages: a triangle around its centre, with a
// half-width of `step` cells, at least one. Rounding as in torch's antialias=True.
VOS_HOST_DEVICE inline void triangle_range(int64_t index, double step, int64_t cells,
                                           int64_t* first, int64_t* end) {
  const double centre = (static_cast<double>(index) + 0.5) * step;
  const double support = step > 1 ? step : 1;
  *first = static_cast<int64_t>(centre - support + 0.5);
  *end = static_cast<int64_t>(centre + support + 0.5);
  if (*first < 0) *first = 0;
  if (*end > cells) *end = cells;
}

// The weight of one of these cells, before they are divided by their sum.
VOS_HOST_DEVICE inline double triangle_weight(int64_t index, double step, int64_t cell) {
  const double centre = (static_cast<double>(index) + 0.5) * step;
  const double support = step > 1 ? step : 1;
  const double distance = (static_cast<double>(cell) + 0.5 - centre) / support;
  const double weight = 1 - (distance < 0 ? -distance : distance);
  return weight > 0 ? weight : 0;
}

// The same in float: the distance of the range's first cell from the centre, in cells, and the
// weight of cell first + k from that distance, with slope = 1 / support. Double is slow on many
// GPUs; here it is used a few times per output, not per cell.
VOS_HOST_DEVICE inline float triangle_start(int64_t index, double step, int64_t first) {
  const double centre = (static_cast<double>(index) + 0.5) * step;
  return static_cast<float>(static_cast<double>(first) + 0.5 - centre);
}

VOS_HOST_DEVICE inline float triangle_at(float start, int k, float slope) {
  const float distance = (start + static_cast<float>(k)) * slope;
  const float weight = 1 - (distance < 0 ? -distance : distance);
  return weight > 0 ? weight : 0;
}

}  // namespace vosengine
