// finish_masks on the CPU. A coarse row is interpolated to the output width once and used for all
// output rows that read it; the aggregation uses odds, so that an object costs one exponential per
// pixel.
#ifndef VOS_ISA

#include "finish_masks.h"

#include <cstring>
#include <vector>

using vosengine::FinishMasks;

namespace {

// For every output along an axis: element offsets of its two cells and the weight of the second.
struct Axis {
  const int64_t* low;
  const int64_t* high;
  const float* weight;
};

struct AxisStorage {
  std::vector<int64_t> low, high;
  std::vector<float> weight;
};

Axis axis_for(int64_t count, double start, double extent, int64_t cells, int64_t stride,
              AxisStorage& storage) {
  storage.low.resize(count);
  storage.high.resize(count);
  storage.weight.resize(count);
  const double step = extent / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) {
    int64_t low;
    vosengine::bilinear_tap(i, step, start, cells, &low, &storage.weight[i]);
    storage.low[i] = low * stride;
    storage.high[i] = (low + 1 < cells ? low + 1 : cells - 1) * stride;
  }
  return {storage.low.data(), storage.high.data(), storage.weight.data()};
}

}  // namespace

#define VOS_BODY "finish_masks_cpu.cpp"
#include "for_each_isa.h"

static void finish_stream(const FinishMasks& call, const Axis& rows, const Axis& columns) {
  VOS_DISPATCH(finish, call, rows, columns);
}

void vosengine::finish_masks_cpu(const FinishMasks& call) {
  AxisStorage row_storage, column_storage;
  const Axis rows = axis_for(call.height, call.top, call.region_height, call.cells_y,
                             call.stride[1], row_storage);
  const Axis columns = axis_for(call.width, call.left, call.region_width, call.cells_x,
                                call.stride[2], column_storage);
  const int64_t plane = call.height * call.width;
  int64_t begin, end = 0;
  for (int64_t stream = 0; stream < call.streams; ++stream) {
    vosengine::rows_of(call, stream, &begin, &end);
    FinishMasks one = call;
    one.logits = static_cast<const float*>(call.logits) + begin * call.stride[0];
    one.ids += begin;
    one.objects = end - begin;
    one.labels += stream * plane;
    if (call.probabilities) one.probabilities += (begin + stream) * plane;
    finish_stream(one, rows, columns);
  }
  if (call.probabilities)
    memset(call.probabilities + (end + call.streams) * plane, 0,
           sizeof(float) * (call.objects - end) * plane);
}

#else

// Scratch of a thread: the coarse rows above and below the current output row, interpolated to
// `pitch` floats (a multiple of VOS_WIDTH) for all objects, the odds of one vector of pixels, and a
// row of labels.
struct Scratch {
  float* sides[2];     // [objects, pitch]
  int64_t offsets[2];  // offset of the coarse row in each side, as in the axis; -1 for none
  float* odds;         // [1 + objects, VOS_WIDTH]
  int32_t* labels;     // [pitch], of the current output row
};

static void widen_row(const FinishMasks& call, const Axis& columns, int64_t offset, int64_t pitch,
                      float* wide) {
  const float* logits = static_cast<const float*>(call.logits);
  for (int64_t o = 0; o < call.objects; ++o) {
    const float* row = logits + o * call.stride[0] + offset;
    for (int64_t x = 0; x < call.width; ++x) {
      const float low = row[columns.low[x]];
      wide[o * pitch + x] = low + (row[columns.high[x]] - low) * columns.weight[x];
    }
  }
}

// Loads the coarse rows `low` and `high` into sides[0] and sides[1]. Going down, the second side
// becomes the first, and only one row is interpolated.
static void move_to(const FinishMasks& call, const Axis& columns, int64_t low, int64_t high,
                    int64_t pitch, Scratch& scratch) {
  if (scratch.offsets[0] != low && scratch.offsets[1] == low) {
    float* const other = scratch.sides[0];
    scratch.sides[0] = scratch.sides[1];
    scratch.sides[1] = other;
    scratch.offsets[1] = scratch.offsets[0];
    scratch.offsets[0] = low;
  }
  const int64_t wanted[2] = {low, high};
  for (int side = 0; side < 2; ++side) {
    if (scratch.offsets[side] == wanted[side]) continue;
    widen_row(call, columns, wanted[side], pitch, scratch.sides[side]);
    scratch.offsets[side] = wanted[side];
  }
}

// Labels of VOS_WIDTH pixels from column x on; with KEEP also their odds.
//
// With e = exp(logit), an object's odds are e and the background's are 1 / D for
// D = product of (1 + e) - 1, accumulated without cancellation as D <- D + e (1 + D). An overflow
// gives D = inf and odds 0, which are clamped to the lowest odds.
template <bool KEEP>
VOS_INLINE vint label_pixels(const FinishMasks& call, const Scratch& scratch, int64_t pitch,
                             int64_t x, float weight) {
  const vfloat lowest = splat(vosengine::LOWEST_ODDS), highest = splat(vosengine::HIGHEST_ODDS);
  vfloat any = {}, best = {};
  vint label = {};
  for (int64_t o = 0; o < call.objects; ++o) {
    const vfloat upper = load(scratch.sides[0] + o * pitch + x);
    const vfloat lower = load(scratch.sides[1] + o * pitch + x);
    const vfloat raw = exponential(upper + (lower - upper) * weight);
    any += raw * (any + 1.0f);
    const vfloat odds = minimum(maximum(raw, lowest), highest);
    if (KEEP) store(scratch.odds + (1 + o) * VOS_WIDTH, odds);
    const vint better = odds > best;
    best = select(better, odds, best);
    label = better ? vint{} + call.ids[o] : label;
  }
  const vfloat background = minimum(maximum(1.0f / any, lowest), highest);
  if (KEEP) store(scratch.odds, background);
  return background >= best ? vint{} : label;
}

// Divides the odds by their sum and writes `count` of the VOS_WIDTH pixels of every plane.
VOS_INLINE void write_probabilities(const FinishMasks& call, const float* odds, int64_t count,
                                    float* out) {
  const int64_t plane = call.height * call.width;
  vfloat sum = {};
  for (int64_t o = 0; o <= call.objects; ++o) sum += load(odds + o * VOS_WIDTH);
  const vfloat scale = 1.0f / sum;
  for (int64_t o = 0; o <= call.objects; ++o) {
    const vfloat value = load(odds + o * VOS_WIDTH) * scale;
    if (count == VOS_WIDTH)
      store(out + o * plane, value);
    else
      memcpy(out + o * plane, &value, sizeof(float) * count);
  }
}

template <bool KEEP>
static void finish_row(const FinishMasks& call, const Scratch& scratch, int64_t pitch, int64_t y,
                       float weight) {
  for (int64_t x = 0; x < call.width; x += VOS_WIDTH) {
    const vint label = label_pixels<KEEP>(call, scratch, pitch, x, weight);
    memcpy(scratch.labels + x, &label, sizeof(label));
    const int64_t left = call.width - x;
    if (KEEP)
      write_probabilities(call, scratch.odds, left < VOS_WIDTH ? left : VOS_WIDTH,
                          call.probabilities + y * call.width + x);
  }
  uint8_t* __restrict__ out = call.labels + y * call.width;
  for (int64_t x = 0; x < call.width; ++x) out[x] = static_cast<uint8_t>(scratch.labels[x]);
}

static void finish(const FinishMasks& call, const Axis& rows, const Axis& columns) {
  const int64_t pitch = (call.width + VOS_WIDTH - 1) / VOS_WIDTH * VOS_WIDTH;
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    for (int side = 0; side < 2; ++side) {
      scratch.sides[side] = new float[call.objects * pitch]();
      scratch.offsets[side] = -1;
    }
    scratch.odds = new float[(1 + call.objects) * VOS_WIDTH];
    scratch.labels = new int32_t[pitch];
#pragma omp for schedule(dynamic, 16)
    for (int64_t y = 0; y < call.height; ++y) {
      move_to(call, columns, rows.low[y], rows.high[y], pitch, scratch);
      if (call.probabilities != nullptr)
        finish_row<true>(call, scratch, pitch, y, rows.weight[y]);
      else
        finish_row<false>(call, scratch, pitch, y, rows.weight[y]);
    }
    for (float* side : scratch.sides) delete[] side;
    delete[] scratch.odds;
    delete[] scratch.labels;
  }
}

#endif
