// Staging of a block's input pixels in prepare_frame's CUDA kernels: read once into shared memory,
// and from there by words.
#pragma once

#include <cstdint>

#include "cuda_launch.h"
#include "prepare_frame.h"

namespace vosengine {
namespace {

// Values that the host derives from the call.
struct Plan {
  int tile_height, tile_width;  // pixels of the result per block
  int pitch;                    // bytes between rows of the frame's tile
  int line;                     // floats between the averaged rows
  double step_y, step_x;        // cells of the frame per pixel
  float slope_y, slope_x;       // 1 / support
  int height, width;            // of the result
  bool packed;                  // whether the pixels of a frame row are contiguous
  bool wide;                    // whether groups of pixels can be written 8 or 16 bytes at a time
};

// A rectangle of the frame in shared memory, `pitch` bytes between rows.
struct Tile {
  int row, column, rows, columns;
  unsigned char* at;
};

template <typename Value>
__device__ __forceinline__ const unsigned char* row_of(const PrepareFrameCuda& call,
                                                       const Tile& tile, int row) {
  const int64_t offset = (tile.row + row) * call.row_stride + tile.column * call.pixel_stride;
  return reinterpret_cast<const unsigned char*>(static_cast<const Value*>(call.frame) + offset);
}

// Packed rows are copied in aligned 16-byte words, so that a row has the same offset from a word
// boundary in shared memory as in the frame.
template <typename Value>
__device__ __forceinline__ const unsigned char* shared_row(const PrepareFrameCuda& call,
                                                           const Plan& plan, const Tile& tile,
                                                           int row) {
  const auto address = reinterpret_cast<uintptr_t>(row_of<Value>(call, tile, row));
  return tile.at + row * plan.pitch + (plan.packed ? static_cast<int>(address % 16) : 0);
}

template <typename Value>
__device__ void load_packed(const PrepareFrameCuda& call, const Plan& plan, const Tile& tile) {
  const int bytes = 3 * tile.columns * static_cast<int>(sizeof(Value)), words = plan.pitch / 16;
  for (int i = threadIdx.x; i < tile.rows * words; i += blockDim.x) {
    const int row = i / words, word = i - row * words;
    const unsigned char* const from = row_of<Value>(call, tile, row);
    const int at = 16 * word - static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16);
    if (at >= bytes) continue;
    Pack<unsigned char, 16> pack;
    if (at >= 0 && at + 16 <= bytes) {
      pack = *reinterpret_cast<const Pack<unsigned char, 16>*>(from + at);
    } else {  // the ends of a row: nothing outside it is read
#pragma unroll
      for (int b = 0; b < 16; ++b) pack.at[b] = at + b >= 0 && at + b < bytes ? from[at + b] : 0;
    }
    *reinterpret_cast<Pack<unsigned char, 16>*>(tile.at + row * plan.pitch + 16 * word) = pack;
  }
}

// For any strides: neighbouring threads read neighbouring pixels of one colour.
template <typename Value>
__device__ void load_strided(const PrepareFrameCuda& call, const Plan& plan, const Tile& tile) {
  const Value* const frame = static_cast<const Value*>(call.frame);
  for (int i = threadIdx.x; i < tile.rows * 3 * tile.columns; i += blockDim.x) {
    const int line = i / tile.columns, x = i - line * tile.columns;
    const int row = line / 3, c = line - 3 * row;
    reinterpret_cast<Value*>(tile.at + row * plan.pitch)[3 * x + c] =
        frame[(tile.row + row) * call.row_stride + (tile.column + x) * call.pixel_stride +
              c * call.channel_stride];
  }
}

template <typename Value>
__device__ __forceinline__ void load_tile(const PrepareFrameCuda& call, const Plan& plan,
                                          const Tile& tile) {
  if (plan.packed)
    load_packed<Value>(call, plan, tile);
  else
    load_strided<Value>(call, plan, tile);
}

// Loads WORDS words from any address; reads no 4-byte word that contains none of its bytes.
template <int WORDS>
__device__ __forceinline__ void read_words(const unsigned char* at, uint32_t (&words)[WORDS]) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const uint32_t by = 8 * static_cast<uint32_t>(address % 4);
  const uint32_t* const from = reinterpret_cast<const uint32_t*>(at - address % 4);
  uint32_t low = from[0];
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    const uint32_t high = i + 1 < WORDS || by != 0 ? from[i + 1] : 0;
    words[i] = __funnelshift_r(low, high, by);
    low = high;
  }
}

// Element i of words that hold uint8 or float.
template <typename Value>
__device__ __forceinline__ float element(const uint32_t* words, int i) {
  if (sizeof(Value) == 4) return __uint_as_float(words[i]);
  return static_cast<float>(words[i / 4] >> (8 * (i % 4)) & 0xff);
}

}  // namespace
}  // namespace vosengine
