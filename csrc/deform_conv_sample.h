// What deform_conv.cu's kernels share: the call in ints, and bilinear samples of the packed image.
#pragma once

#include <type_traits>

#include "cuda_launch.h"
#include "deform_conv.h"

namespace vosengine {
namespace {

constexpr int MARGIN = 2;    // zeros around a packed image, as in packing.py
constexpr int OUTPUTS = 64;  // of a tile
constexpr int PACK_THREADS = 256;
constexpr int THREADS = 128;
constexpr int TILE_PIXELS = 64;  // of a block
constexpr int TILES = 2;         // of 8 pixels, of a warp

template <typename T>
constexpr int UNIT = 16 / sizeof(T);
template <typename T>
constexpr int BLOCK_UNITS = std::is_same_v<T, float> ? 8 : 4;  // units per product

// The call in ints, and derived values.
struct Plan {
  int batch, height, width, outputs, out_width, pixels, groups;  // outputs: of a group
  int taps, taps_x, stride_y, stride_x, top, left, dilation_y, dilation_x;
  int section, side, chunks, units;
  int unit_blocks, output_blocks, pixel_blocks;
  int row, plane;  // packed pixels
  int64_t x[4], offset[4], mask[4], weight[4];
};

template <typename T>
Plan plan_for(const DeformConvCuda& call) {
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  Plan plan{};
  plan.batch = number(call.batch);
  plan.height = number(call.height);
  plan.width = number(call.width);
  plan.outputs = number(call.outputs / call.groups);
  plan.out_width = number(call.out_width);
  plan.pixels = number(call.out_height * call.out_width);
  plan.groups = number(call.groups);
  plan.taps = number(call.kernel[0] * call.kernel[1]);
  plan.taps_x = number(call.kernel[1]);
  plan.stride_y = number(call.stride[0]);
  plan.stride_x = number(call.stride[1]);
  plan.top = number(call.padding[0]);
  plan.left = number(call.padding[1]);
  plan.dilation_y = number(call.dilation[0]);
  plan.dilation_x = number(call.dilation[1]);
  plan.section = number(call.section);
  plan.side = number(call.channels / call.offset_groups);
  plan.chunks = number(call.chunks);
  plan.units = number(call.units);
  plan.unit_blocks = (plan.units + BLOCK_UNITS<T> - 1) / BLOCK_UNITS<T>;
  plan.output_blocks = (plan.outputs + OUTPUTS - 1) / OUTPUTS;
  plan.pixel_blocks = (plan.pixels + TILE_PIXELS - 1) / TILE_PIXELS;
  plan.row = plan.width + 2 * MARGIN;
  plan.plane = plan.row * (plan.height + 2 * MARGIN);
  for (int i = 0; i < 4; ++i) {
    plan.x[i] = call.x_stride[i];
    plan.offset[i] = call.offset_stride[i];
    plan.mask[i] = call.mask_stride[i];
    plan.weight[i] = call.weight_stride[i];
  }
  return plan;
}

// Splits start + shift into an integer in [-2, size], returned, and a fraction in [0, 1). The start
// is an integer, so the fraction is that of the shift. A NaN becomes a position on the border.
__device__ __forceinline__ int split(int start, float shift, int size, float* fraction) {
  const float near =
      fminf(fmaxf(shift, static_cast<float>(-2 - start)), static_cast<float>(size - start));
  const float whole = floorf(near);
  *fraction = near - whole;
  return start + static_cast<int>(whole);
}

// One output pixel of an image.
template <typename T>
struct Pixel {
  const T *offset, *mask;  // of offset group 0, tap 0; mask may be null
  int y, x;                // of tap 0
};

template <typename T>
__device__ __forceinline__ Pixel<T> pixel_at(const Plan& plan, const T* offset, const T* mask,
                                             int64_t image, int pixel) {
  pixel =
      pixel < plan.pixels ? pixel : plan.pixels - 1;  // beyond the last: computed but not stored
  const int y = pixel / plan.out_width, x = pixel % plan.out_width;
  offset += image * plan.offset[0] + y * plan.offset[2] + x * plan.offset[3];
  if (mask) mask += image * plan.mask[0] + y * plan.mask[2] + x * plan.mask[3];
  return {offset, mask, y * plan.stride_y - plan.top, x * plan.stride_x - plan.left};
}

// Offset and modulation of a tap.
struct Shift {
  float y, x, strength;
};

template <typename T>
__device__ __forceinline__ Shift shift_of(const Plan& plan, const Pixel<T>& pixel, int field) {
  const T* at = pixel.offset + 2 * static_cast<int64_t>(field) * plan.offset[1];
  return {to_float(at[0]), to_float(at[plan.offset[1]]),
          pixel.mask ? to_float(pixel.mask[field * plan.mask[1]]) : 1.0f};
}

template <typename T>
__device__ __forceinline__ void add(float (&sums)[UNIT<T>], const Pack<T, UNIT<T>>* corner,
                                    float weight) {
  const uint4 bits = *reinterpret_cast<const uint4*>(corner);
  Pack<T, UNIT<T>> values;
  memcpy(&values, &bits, sizeof(bits));
#pragma unroll
  for (int c = 0; c < UNIT<T>; ++c) sums[c] += weight * to_float(values.at[c]);
}

// Bilinear samples of a unit for tap (y, x) of a pixel.
template <typename T>
__device__ __forceinline__ void sample(const Plan& plan, const Pack<T, UNIT<T>>* unit,
                                       const Pixel<T>& pixel, int y, int x, const Shift& shift,
                                       float (&sums)[UNIT<T>]) {
  float below, right;
  const int cell_y = split(pixel.y + y * plan.dilation_y, shift.y, plan.height, &below);
  const int cell_x = split(pixel.x + x * plan.dilation_x, shift.x, plan.width, &right);
  const float upper = shift.strength * (1.0f - below), lower = shift.strength * below;
  const float lost = (shift.y - shift.y) + (shift.x - shift.x);  // 0, or NaN if not finite
  const Pack<T, UNIT<T>>* corner = unit + (cell_y + MARGIN) * plan.row + cell_x + MARGIN;
#pragma unroll
  for (int c = 0; c < UNIT<T>; ++c) sums[c] = 0;
  add<T>(sums, corner, upper * (1.0f - right) + lost);
  add<T>(sums, corner + 1, upper * right);
  add<T>(sums, corner + plan.row, lower * (1.0f - right));
  add<T>(sums, corner + plan.row + 1, lower * right);
}

// Tile of a block.
struct Tile {
  int64_t image;
  int group, output, pixel;  // the first of each; output counts within the group
};

__device__ __forceinline__ Tile tile_of(const Plan& plan) {
  int rest = blockIdx.x;
  Tile tile;
  tile.pixel = rest % plan.pixel_blocks * TILE_PIXELS;
  rest /= plan.pixel_blocks;
  tile.output = rest % plan.output_blocks * OUTPUTS;
  rest /= plan.output_blocks;
  tile.group = rest % plan.groups;
  tile.image = rest / plan.groups;
  return tile;
}

__device__ __forceinline__ int offset_group_of(const Plan& plan, int group, int unit) {
  return (group * plan.units + unit) / plan.chunks * plan.section / plan.side;
}

// Stores N neighbouring pixels of one output, as one access if aligned.
template <int N, typename T>
__device__ __forceinline__ void store(const Plan& plan, T* out, int pixel, const float (&sums)[N]) {
  if (plan.pixels % N == 0 && pixel < plan.pixels) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.at[i] = from_float<T>(sums[i]);
    *reinterpret_cast<Pack<T, N>*>(out + pixel) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (pixel + i < plan.pixels) out[pixel + i] = from_float<T>(sums[i]);
}

}  // namespace
}  // namespace vosengine
