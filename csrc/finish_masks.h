// Upsample, softly aggregate and label the masks of all objects; the contract is in
// kernels/finish_masks/reference.py.
#pragma once

#include <cstdint>

#include "cuda_target.h"
#include "host_device.h"

namespace vosengine {

struct FinishMasks {
  const void* logits;  // float; element (o, y, x) at o*stride[0] + y*stride[1] + x*stride[2]
  int64_t stride[3];
  const uint8_t* ids;    // [objects]
  const int32_t* first;  // [streams + 1]: offsets of objects; null: one stream
  int64_t streams;
  int64_t objects, cells_y, cells_x;  // the coarse grid
  int64_t height, width;              // of the result
  double top, left, region_height, region_width;
  uint8_t* labels;       // [streams, height, width]
  float* probabilities;  // [streams + objects, height, width], or null
  int threads;           // on the CPU
};

struct FinishMasksCuda : FinishMasks {
  Element element;  // of the logits
  CudaTarget target;
};

void finish_masks_cpu(const FinishMasks& call);

#ifdef VOSENGINE_CUDA
void finish_masks_cuda(const FinishMasksCuda& call);
#endif

// odds(p) for p clamped to [1e-7, 1 - 1e-7].
constexpr float LOWEST_ODDS = 1.0000001e-7f;
constexpr float HIGHEST_ODDS = 9999999.0f;

// The stream's objects are rows `begin` to `end` (exclusive).
VOS_HOST_DEVICE inline void rows_of(const FinishMasks& call, int64_t stream, int64_t* begin,
                                    int64_t* end) {
  *begin = 0;
  *end = call.objects;
  if (!call.first) return;
  const int64_t low = call.first[stream], high = call.first[stream + 1];
  *begin = low < 0 ? 0 : low < call.objects ? low : call.objects;
  *end = high < *begin ? *begin : high < call.objects ? high : call.objects;
}

// The cells that output `index` lies between (low and min(low + 1, cells - 1)) and the weight of
// the second. `step` is the width of an output in cells.
VOS_HOST_DEVICE inline void bilinear_tap(int64_t index, double step, double start, int64_t cells,
                                         int64_t* low, float* weight) {
  double position = (static_cast<double>(index) + 0.5) * step + (start - 0.5);
  const double last = static_cast<double>(cells - 1);
  position = position < 0 ? 0 : position > last ? last : position;
  *low = static_cast<int64_t>(position);
  *weight = static_cast<float>(position - static_cast<double>(*low));
}

}  // namespace vosengine
