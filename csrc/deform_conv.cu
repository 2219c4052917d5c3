// deform_conv on a GPU. The first kernel packs the image into units of 16 bytes (contiguous
// channels of an offset group, a border of zeros: see kernels/deform_conv/packing.py) and the
// weights in the order of use. In the second a warp computes 16 pixels and 64 outputs of a group. A
// lane samples 8 channels of a pixel with four 16-byte loads, which are exactly its fragment of the
// tensor-core operand: samples stay in registers. float32 uses shared memory and FMAs.
#include "deform_conv_sample.h"
#include "tensor_cores.h"

namespace vosengine {
namespace {

// One unit of one packed pixel.
template <typename T>
__device__ Pack<T, UNIT<T>> packed_pixel(const Plan& plan, const T* x, int64_t image, int unit,
                                         int place) {
  const int y = place / plan.row - MARGIN, column = place % plan.row - MARGIN;
  const int first = unit % plan.chunks * UNIT<T>;
  const bool inside = y >= 0 && y < plan.height && column >= 0 && column < plan.width;
  x += image * plan.x[0] + (unit / plan.chunks * plan.section + first) * plan.x[1] + y * plan.x[2] +
       column * plan.x[3];
  Pack<T, UNIT<T>> pack;
#pragma unroll
  for (int c = 0; c < UNIT<T>; ++c)
    pack.at[c] = inside && first + c < plan.section ? x[c * plan.x[1]] : from_float<T>(0.0f);
  return pack;
}

// Element `i` of the packed weights: [groups, unit blocks, taps, outputs, channels] for the tensor
// cores, float32 with the last two axes exchanged.
template <typename T>
__device__ T packed_weight(const Plan& plan, const T* weight, int64_t i) {
  constexpr int CHANNELS = BLOCK_UNITS<T> * UNIT<T>;
  const int wide = plan.output_blocks * OUTPUTS;
  const int within = static_cast<int>(i % (CHANNELS * wide));
  int64_t field = i / (CHANNELS * wide);
  const bool whole = std::is_same_v<T, float>;
  const int output = whole ? within % wide : within / CHANNELS;
  const int channel = whole ? within / wide : within % CHANNELS;
  const int tap = static_cast<int>(field % plan.taps);
  field /= plan.taps;
  const int unit = static_cast<int>(field % plan.unit_blocks) * BLOCK_UNITS<T> + channel / UNIT<T>;
  const int group = static_cast<int>(field / plan.unit_blocks);
  const int in_section = unit % plan.chunks * UNIT<T> + channel % UNIT<T>;
  if (output >= plan.outputs || unit >= plan.units || in_section >= plan.section)
    return from_float<T>(0.0f);
  return weight[(static_cast<int64_t>(group) * plan.outputs + output) * plan.weight[0] +
                (unit / plan.chunks * plan.section + in_section) * plan.weight[1] +
                tap / plan.taps_x * plan.weight[2] + tap % plan.taps_x * plan.weight[3]];
}

// The first blocks pack the image, the others the weights.
template <typename T>
__global__ void __launch_bounds__(PACK_THREADS)
    pack(Plan plan, const T* __restrict__ x, const T* __restrict__ weight,
         Pack<T, UNIT<T>>* __restrict__ packed, T* __restrict__ weights, int parts,
         int image_blocks, int64_t weight_count) {
  if (static_cast<int>(blockIdx.x) < image_blocks) {
    const int plane = blockIdx.x / parts, units = plan.groups * plan.units;
    const int place = blockIdx.x % parts * PACK_THREADS + threadIdx.x;
    if (place < plan.plane)
      packed[static_cast<int64_t>(plane) * plan.plane + place] =
          packed_pixel(plan, x, plane / units, plane % units, place);
    return;
  }
  const int64_t i = static_cast<int64_t>(blockIdx.x - image_blocks) * PACK_THREADS + threadIdx.x;
  if (i < weight_count) weights[i] = packed_weight(plan, weight, i);
}

// Lane 4 g + q samples pixel g of each tile of 8, and of the four units in a block unit q: the
// column g of the tensor cores' right operand, whose rows are channels in an order that the packed
// weights, the left operand, share.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    convolve(Plan plan, const Pack<T, UNIT<T>>* __restrict__ packed,
             const uint4* __restrict__ weights, const T* __restrict__ offset,
             const T* __restrict__ mask, const T* __restrict__ bias, T* __restrict__ out) {
  const Tile tile = tile_of(plan);
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  const int first = tile.pixel + static_cast<int>(threadIdx.x) / 32 * TILES * 8;
  const int wide = plan.output_blocks * OUTPUTS;
  packed += (tile.image * plan.groups + tile.group) * plan.units * plan.plane;
  weights +=
      (static_cast<int64_t>(tile.group) * plan.unit_blocks * plan.taps * wide + tile.output + g) *
          BLOCK_UNITS<T> +
      q;
  Pixel<T> pixels[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t)
    pixels[t] = pixel_at(plan, offset, mask, tile.image, first + 8 * t + g);
  float sums[OUTPUTS / 16][TILES][4] = {};
  for (int block = 0; block < plan.unit_blocks; ++block) {
    const int unit = block * BLOCK_UNITS<T> + q;
    const bool real = unit < plan.units;
    const int field = real ? offset_group_of(plan, tile.group, unit) * plan.taps : 0;
    const Pack<T, UNIT<T>>* image = packed + (real ? unit : 0) * static_cast<int64_t>(plan.plane);
    Shift next[TILES];
#pragma unroll
    for (int t = 0; t < TILES; ++t) next[t] = shift_of(plan, pixels[t], field);
    for (int tap = 0, y = 0, x = 0; tap < plan.taps; ++tap) {
      uint32_t columns[TILES][UNIT<T> / 2];
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const Shift shift = next[t];
        if (tap + 1 < plan.taps) next[t] = shift_of(plan, pixels[t], field + tap + 1);
        float samples[UNIT<T>];
        sample<T>(plan, image, pixels[t], y, x, shift, samples);
#pragma unroll
        for (int i = 0; i < UNIT<T> / 2; ++i)
          columns[t][i] = real ? pair_of(samples[2 * i], samples[2 * i + 1], T{}) : 0;
      }
#pragma unroll
      for (int m = 0; m < OUTPUTS / 16; ++m) {
        if (tile.output + 16 * m >= plan.outputs) break;
        const uint4 upper = weights[16 * m * BLOCK_UNITS<T>];
        const uint4 lower = weights[(16 * m + 8) * BLOCK_UNITS<T>];
        const uint32_t a[2][4] = {{upper.x, lower.x, upper.y, lower.y},
                                  {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t b[2] = {columns[t][2 * half], columns[t][2 * half + 1]};
            multiply_add(sums[m][t], a[half], b, T{});
          }
      }
      weights += wide * BLOCK_UNITS<T>;
      if (++x == plan.taps_x) x = 0, ++y;
    }
  }
#pragma unroll
  for (int m = 0; m < OUTPUTS / 16; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_group = tile.output + 16 * m + 8 * half + g;
      if (in_group >= plan.outputs) continue;
      const int64_t output = tile.group * static_cast<int64_t>(plan.outputs) + in_group;
      const float start = bias ? to_float(bias[output]) : 0.0f;
      T* to = out + (tile.image * plan.groups * plan.outputs + output) * plan.pixels;
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const float both[2] = {sums[m][t][2 * half] + start, sums[m][t][2 * half + 1] + start};
        store(plan, to, first + 8 * t + 2 * q, both);
      }
    }
}

// float32: the block's samples and weights of a tap are in shared memory; a thread computes 4
// outputs of 4 + 4 pixels.
__global__ void __launch_bounds__(THREADS)
    convolve_float(Plan plan, const Pack<float, 4>* __restrict__ packed,
                   const float4* __restrict__ weights, const float* __restrict__ offset,
                   const float* __restrict__ mask, const float* __restrict__ bias,
                   float* __restrict__ out) {
  constexpr int CHANNELS = BLOCK_UNITS<float> * 4, UNITS_OF_THREAD = BLOCK_UNITS<float> / 2;
  VOS_SHARED_BYTES(bytes);
  float* samples = reinterpret_cast<float*>(bytes);  // [CHANNELS, TILE_PIXELS]
  float4* kernels = reinterpret_cast<float4*>(samples + CHANNELS * TILE_PIXELS);
  const Tile tile = tile_of(plan);
  const int thread = threadIdx.x, column = thread % TILE_PIXELS;
  const int wide = plan.output_blocks * OUTPUTS;
  packed += (tile.image * plan.groups + tile.group) * plan.units * plan.plane;
  weights += static_cast<int64_t>(tile.group) * plan.unit_blocks * plan.taps * CHANNELS * wide / 4;
  weights += tile.output / 4;
  const Pixel<float> pixel = pixel_at(plan, offset, mask, tile.image, tile.pixel + column);
  const int mine = thread % 8, outputs = thread / 8;  // in fours
  float sums[4][2][4] = {};
  for (int block = 0; block < plan.unit_blocks; ++block)
    for (int tap = 0; tap < plan.taps; ++tap) {
#pragma unroll
      for (int i = 0; i < UNITS_OF_THREAD; ++i) {
        const int in_block = 2 * i + thread / TILE_PIXELS;
        const int unit = block * BLOCK_UNITS<float> + in_block;
        float four[4] = {};
        if (unit < plan.units) {
          const int field = offset_group_of(plan, tile.group, unit) * plan.taps + tap;
          sample<float>(plan, packed + unit * static_cast<int64_t>(plan.plane), pixel,
                        tap / plan.taps_x, tap % plan.taps_x, shift_of(plan, pixel, field), four);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) samples[(4 * in_block + c) * TILE_PIXELS + column] = four[c];
      }
#pragma unroll
      for (int i = 0; i < CHANNELS * OUTPUTS / 4 / THREADS; ++i) {
        const int at = i * THREADS + thread;
        kernels[at] = weights[at / (OUTPUTS / 4) * (wide / 4) + at % (OUTPUTS / 4)];
      }
      weights += CHANNELS * wide / 4;
      __syncthreads();
#pragma unroll 8
      for (int k = 0; k < CHANNELS; ++k) {
        const float4 kernel = kernels[k * (OUTPUTS / 4) + outputs];
        const float by_output[4] = {kernel.x, kernel.y, kernel.z, kernel.w};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float4 four = *reinterpret_cast<const float4*>(samples + k * TILE_PIXELS +
                                                               half * TILE_PIXELS / 2 + 4 * mine);
          const float by_pixel[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int o = 0; o < 4; ++o)
#pragma unroll
            for (int p = 0; p < 4; ++p) sums[o][half][p] += by_output[o] * by_pixel[p];
        }
      }
      __syncthreads();
    }
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    const int in_group = tile.output + 4 * outputs + o;
    if (in_group >= plan.outputs) continue;
    const int64_t output = tile.group * static_cast<int64_t>(plan.outputs) + in_group;
    const float start = bias ? bias[output] : 0.0f;
    float* to = out + (tile.image * plan.groups * plan.outputs + output) * plan.pixels;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int p = 0; p < 4; ++p) sums[o][half][p] += start;
      store(plan, to, tile.pixel + half * TILE_PIXELS / 2 + 4 * mine, sums[o][half]);
    }
  }
}

template <typename T>
void run(const DeformConvCuda& call) {
  const Plan plan = plan_for<T>(call);
  constexpr int CHANNELS = BLOCK_UNITS<T> * UNIT<T>;
  const auto* x = static_cast<const T*>(call.x);
  const auto* weight = static_cast<const T*>(call.weight);
  auto* packed = static_cast<Pack<T, UNIT<T>>*>(call.packed);
  const int64_t weight_count = static_cast<int64_t>(plan.groups) * plan.unit_blocks * plan.taps *
                               CHANNELS * plan.output_blocks * OUTPUTS;
  const int parts = (plan.plane + PACK_THREADS - 1) / PACK_THREADS;
  const int64_t image_blocks = static_cast<int64_t>(plan.batch) * plan.groups * plan.units * parts;
  const int64_t weight_blocks = (weight_count + PACK_THREADS - 1) / PACK_THREADS;
  const int64_t tiles =
      static_cast<int64_t>(plan.pixel_blocks) * plan.output_blocks * plan.groups * plan.batch;
  if (image_blocks + weight_blocks > INT32_MAX || tiles > INT32_MAX)
    throw std::runtime_error("deform_conv: wanted fewer than 2^31 blocks for one call");
  launch("deform_conv's packing", call.target, pack<T>,
         dim3(static_cast<unsigned>(image_blocks + weight_blocks)), dim3(PACK_THREADS), 0, plan, x,
         weight, packed, static_cast<T*>(call.weights), parts, static_cast<int>(image_blocks),
         weight_count);
  const auto* offset = static_cast<const T*>(call.offset);
  const auto* mask = static_cast<const T*>(call.mask);
  const auto* bias = static_cast<const T*>(call.bias);
  const dim3 blocks(static_cast<unsigned>(tiles));
  if constexpr (std::is_same_v<T, float>)
    launch("deform_conv", call.target, convolve_float, blocks, dim3(THREADS),
           sizeof(float) * CHANNELS * (TILE_PIXELS + OUTPUTS), plan, packed,
           static_cast<const float4*>(call.weights), offset, mask, bias,
           static_cast<float*>(call.out));
  else
    launch("deform_conv", call.target, convolve<T>, blocks, dim3(THREADS), 0, plan, packed,
           static_cast<const uint4*>(call.weights), offset, mask, bias, static_cast<T*>(call.out));
}

}  // namespace

void deform_conv_cuda(const DeformConvCuda& call) {
  with_element(call.element, [&](auto element) { run<decltype(element)>(call); });
}

}  // namespace vosengine
