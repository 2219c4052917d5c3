// prepare_frame on the CPU: every output row is computed in one pass, as a weighted sum of frame
// rows (interleaved colours, wide vectors), then of its pixels (one vector per pixel).
#ifndef VOS_ISA

#include "prepare_frame.h"

#include <cstring>
#include <vector>

using vosengine::PrepareFrame;

namespace {

// Taps of one axis: output i is the sum over k < count of weights[i*count + k] * cell[first[i] +
// k].
struct Axis {
  int64_t count;
  const int64_t* first;
  const float* weights;
};

struct AxisStorage {
  std::vector<int64_t> first;
  std::vector<float> weights;
};

// Every output has as many taps as the widest one, padded with weight 0, for loops of constant
// length. first + count is at most `cells`, so no tap lies outside.
Axis axis_for(int64_t outputs, int64_t cells, AxisStorage& storage) {
  const double step = static_cast<double>(cells) / static_cast<double>(outputs);
  int64_t count = 0;
  for (int64_t i = 0; i < outputs; ++i) {
    int64_t first, end;
    vosengine::triangle_range(i, step, cells, &first, &end);
    if (end - first > count) count = end - first;
  }
  storage.first.resize(outputs);
  storage.weights.resize(outputs * count);
  for (int64_t i = 0; i < outputs; ++i) {
    int64_t first, end;
    vosengine::triangle_range(i, step, cells, &first, &end);
    double sum = 0;
    for (int64_t cell = first; cell < end; ++cell) sum += vosengine::triangle_weight(i, step, cell);
    const int64_t start = first + count <= cells ? first : cells - count;
    storage.first[i] = start;
    for (int64_t cell = first; cell < end; ++cell)
      storage.weights[i * count + cell - start] =
          static_cast<float>(vosengine::triangle_weight(i, step, cell) / sum);
  }
  return {count, storage.first.data(), storage.weights.data()};
}

}  // namespace

#define VOS_BODY "prepare_frame_cpu.cpp"
#include "for_each_isa.h"

void vosengine::prepare_frame_cpu(const PrepareFrame& call) {
  AxisStorage row_storage, column_storage;
  const Axis rows = axis_for(call.resized_height, call.height, row_storage);
  const Axis columns = axis_for(call.resized_width, call.width, column_storage);
  VOS_DISPATCH(prepare, call, rows, columns);
}

#else

using vpixel = float __attribute__((vector_size(16)));  // red, green, blue and one unused
using vpixel_unaligned = float __attribute__((vector_size(16), aligned(4), may_alias));

// sum[i] (+)= weight * row[i]. A plain loop: GCC 12 vectorises the conversion of bytes here, while
// its vector conversions go element by element (resizing 1080p: 3.1 ms, with them 11.6 ms).
template <bool FIRST, typename Value>
VOS_INLINE void add_row(const Value* row, float weight, int64_t length, float* __restrict__ sum) {
  for (int64_t i = 0; i < length; ++i) {
    const float value = static_cast<float>(row[i]) * weight;
    sum[i] = FIRST ? value : sum[i] + value;
  }
}

// sum[i] = sum over k of weights[k] * (row k)[i], `count` rows with stride `stride`, in blocks
// whose sums stay in the L1 cache.
template <typename Value>
static void add_rows(const Value* rows, int64_t stride, const float* weights, int64_t count,
                     int64_t length, float* sum) {
  constexpr int64_t BLOCK = 512;
  for (int64_t i = 0; i < length; i += BLOCK) {
    const int64_t size = length - i < BLOCK ? length - i : BLOCK;
    add_row<true>(rows + i, weights[0], size, sum + i);
    for (int64_t k = 1; k < count; ++k)
      add_row<false>(rows + k * stride + i, weights[k], size, sum + i);
  }
}

// Normalises interleaved pixels into three planes.
template <typename Value>
static void split_colours(const Value* pixels, const PrepareFrame& call, float* __restrict__ red,
                          float* __restrict__ green, float* __restrict__ blue) {
  const float scale[3] = {call.scale[0], call.scale[1], call.scale[2]};
  const float shift[3] = {call.shift[0], call.shift[1], call.shift[2]};
  for (int64_t x = 0; x < call.resized_width; ++x) {
    red[x] = static_cast<float>(pixels[3 * x]) * scale[0] + shift[0];
    green[x] = static_cast<float>(pixels[3 * x + 1]) * scale[1] + shift[1];
    blue[x] = static_cast<float>(pixels[3 * x + 2]) * scale[2] + shift[2];
  }
}

// Resamples the pixels of one interleaved row (readable one float past its end), normalises them.
static void resize_row(const float* pixels, const Axis& columns, const PrepareFrame& call,
                       float* red, float* green, float* blue) {
  const vpixel scale = {call.scale[0], call.scale[1], call.scale[2], 0};
  const vpixel shift = {call.shift[0], call.shift[1], call.shift[2], 0};
  for (int64_t x = 0; x < call.resized_width; ++x) {
    const float* from = pixels + 3 * columns.first[x];
    const float* weights = columns.weights + x * columns.count;
    vpixel total = {};
    for (int64_t k = 0; k < columns.count; ++k)
      total += *reinterpret_cast<const vpixel_unaligned*>(from + 3 * k) * weights[k];
    total = total * scale + shift;
    red[x] = total[0];
    green[x] = total[1];
    blue[x] = total[2];
  }
}

VOS_INLINE void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <typename Value>
static void prepare_rows(const PrepareFrame& call, const Axis& rows, const Axis& columns) {
  const Value* frame = static_cast<const Value*>(call.frame);
  const int64_t height = call.top + call.resized_height + call.bottom;
  const int64_t width = call.left + call.resized_width + call.right;
  const bool same_height = call.resized_height == call.height;
  const bool same_width = call.resized_width == call.width;
#pragma omp parallel num_threads(call.threads)
  {
    float* row = new float[3 * call.width + 1]();
#pragma omp for schedule(dynamic, 16)
    for (int64_t y = 0; y < height; ++y) {
      const int64_t source = y - call.top;
      const bool black = source < 0 || source >= call.resized_height;
      float* planes[3];
      for (int c = 0; c < 3; ++c) {
        float* line = static_cast<float*>(call.out) + (c * height + y) * width;
        planes[c] = line + call.left;
        fill(line, black ? width : call.left, call.shift[c]);
        fill(planes[c] + call.resized_width, black ? 0 : call.right, call.shift[c]);
      }
      if (black) continue;
      if (same_height && same_width) {
        split_colours(frame + source * call.row_stride, call, planes[0], planes[1], planes[2]);
        continue;
      }
      add_rows(frame + rows.first[source] * call.row_stride, call.row_stride,
               rows.weights + source * rows.count, rows.count, 3 * call.width, row);
      if (same_width)
        split_colours(row, call, planes[0], planes[1], planes[2]);
      else
        resize_row(row, columns, call, planes[0], planes[1], planes[2]);
    }
    delete[] row;
  }
}

static void prepare(const PrepareFrame& call, const Axis& rows, const Axis& columns) {
  if (call.bytes)
    prepare_rows<uint8_t>(call, rows, columns);
  else
    prepare_rows<float>(call, rows, columns);
}

#endif
