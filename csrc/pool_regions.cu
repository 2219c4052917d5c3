// pool_regions on CUDA: a block handles some channels of one source for one region. It computes the
// cells and weights of every row and column of bins once, in float64, and keeps them in shared
// memory. Channels-last maps are read 16 bytes of channels at a time, a warp's lanes along the
// channels, and transposed in shared memory for contiguous stores of bins; of other maps a thread
// reads the same bin of four channels, a warp's lanes along the bins.
#include "pool_regions.h"

#include "cuda_launch.h"

namespace vosengine {
namespace {

constexpr int THREADS = 256;
constexpr int PLANES = 4;                            // channels per thread, if not channels-last
constexpr int MANY_CHANNELS = 32, FEW_CHANNELS = 8;  // of a block
constexpr int64_t ENOUGH_BLOCKS = 512;               // from which on blocks have MANY_CHANNELS
constexpr int TURNED = 128;                          // maximum bins transposed at a time

template <typename T>
constexpr int ABREAST = 16 / sizeof(T);  // channels of one access

struct Blocks {
  int channels;     // of a block
  int items;        // blocks of a region
  int all;          // channels of all sources
  unsigned packed;  // bit s: source s is channels-last
};

// The cells that the bins of one axis read, and their weights.
struct Taps {
  int most;       // of a bin
  int* count;     // [size]
  int* cell;      // [size, most]
  float* weight;  // [size, most]
};

__device__ __forceinline__ unsigned char* place_taps(unsigned char* at, int size, int most,
                                                     Taps& taps) {
  taps.most = most;
  taps.count = reinterpret_cast<int*>(at);
  taps.cell = taps.count + size;
  taps.weight = reinterpret_cast<float*>(taps.cell + size * most);
  return reinterpret_cast<unsigned char*>(taps.weight + size * most);
}

// Some channels of one map for one region.
template <typename T>
struct Item {
  const T* map;  // of the first channel
  int64_t channel_stride, row_stride, column_stride;
  int channels, size;
  Taps rows, columns;
  T* out;  // [channels, size, size]

  // Calls body(weight, offset) for every cell that a bin reads.
  template <typename Body>
  __device__ __forceinline__ void each_cell(int bin, Body&& body) const {
    const int i = bin / size * rows.most, j = bin % size * columns.most;
    const int row_count = rows.count[bin / size], column_count = columns.count[bin % size];
    for (int r = 0; r < row_count; ++r) {
      const float row_weight = rows.weight[i + r];
      const int64_t row = rows.cell[i + r] * row_stride;
      for (int c = 0; c < column_count; ++c)
        body(row_weight * columns.weight[j + c], row + columns.cell[j + c] * column_stride);
    }
  }

  __device__ __forceinline__ void pool_planes() const {
    const int bins = size * size, groups = (channels + PLANES - 1) / PLANES;
    for (int task = threadIdx.x; task < groups * bins; task += THREADS) {
      const int bin = task % bins, first = task / bins * PLANES;
      const T* plane[PLANES];
      float sum[PLANES];
#pragma unroll
      for (int p = 0; p < PLANES; ++p) {
        plane[p] = map + min(first + p, channels - 1) * channel_stride;
        sum[p] = 0;
      }
      each_cell(bin, [&](float weight, int64_t at) {
#pragma unroll
        for (int p = 0; p < PLANES; ++p) sum[p] += weight * to_float(plane[p][at]);
      });
#pragma unroll
      for (int p = 0; p < PLANES; ++p)
        if (first + p < channels) out[(first + p) * bins + bin] = from_float<T>(sum[p]);
    }
  }

  // turned: scratch of `channels` rows of `together` + 1 bins
  __device__ __forceinline__ void pool_packed(T* turned, int together) const {
    constexpr int WIDE = ABREAST<T>;
    const int bins = size * size, groups = channels / WIDE, pitch = together + 1;
    for (int start = 0; start < bins; start += together) {
      const int count = min(together, bins - start);
      for (int task = threadIdx.x; task < groups * count; task += THREADS) {
        const int bin = task / groups, first = task % groups * WIDE;
        float sum[WIDE] = {};
        each_cell(start + bin, [&](float weight, int64_t at) {
          const auto cells = *reinterpret_cast<const Pack<T, WIDE>*>(map + at + first);
#pragma unroll
          for (int c = 0; c < WIDE; ++c) sum[c] += weight * to_float(cells.at[c]);
        });
#pragma unroll
        for (int c = 0; c < WIDE; ++c) turned[(first + c) * pitch + bin] = from_float<T>(sum[c]);
      }
      __syncthreads();
      for (int task = threadIdx.x; task < channels * count; task += THREADS) {
        const int bin = task % count, channel = task / count;
        out[channel * bins + start + bin] = turned[channel * pitch + bin];
      }
      __syncthreads();
    }
  }
};

__host__ __device__ __forceinline__ int blocks_of(const PooledMapsCuda& source, int channels) {
  return (source.channels + channels - 1) / channels;
}

// Index of the map that the region reads.
__device__ __forceinline__ int64_t map_of(const PoolRegionsCuda& call, const PooledMapsCuda& source,
                                          int64_t region) {
  if (source.per_region) return region;
  const int64_t image = call.frame ? call.frame[region] : 0;
  return image < 0 ? 0 : image >= source.batch ? source.batch - 1 : image;
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 3)
    pool(const __grid_constant__ PoolRegionsCuda call, const Blocks blocks, int together) {
  VOS_SHARED_BYTES(shared);
  const int64_t region = blockIdx.x / blocks.items;
  int block = blockIdx.x % blocks.items, s = 0, before = 0;
  for (; block >= blocks_of(call.sources[s], blocks.channels); ++s) {
    block -= blocks_of(call.sources[s], blocks.channels);
    before += call.sources[s].channels;
  }
  const PooledMapsCuda& source = call.sources[s];
  const int first = block * blocks.channels;

  Item<T> item;
  item.size = call.size;
  item.channels = min(blocks.channels, source.channels - first);
  item.channel_stride = source.stride[1];
  item.row_stride = source.stride[2];
  item.column_stride = source.stride[3];
  item.map = static_cast<const T*>(source.maps) + map_of(call, source, region) * source.stride[0] +
             first * source.stride[1];
  item.out =
      static_cast<T*>(call.out) + (region * blocks.all + before + first) * call.size * call.size;
  unsigned char* rest = place_taps(shared, call.size, 2 * call.sampling, item.rows);
  rest = place_taps(rest, call.size, 2 * call.sampling, item.columns);

  for (int task = threadIdx.x; task < 2 * call.size; task += THREADS) {
    const bool is_row = task < call.size;
    const int bin = is_row ? task : task - call.size;
    const Taps taps = is_row ? item.rows : item.columns;
    const SampledAxis axis =
        sampled_axis(call.boxes + region * 4, is_row, source.pixels,
                     is_row ? source.height : source.width, call.size, call.sampling, call.aligned);
    taps.count[bin] =
        read_bin(axis, bin, taps.cell + bin * taps.most, taps.weight + bin * taps.most);
  }
  __syncthreads();
  if (blocks.packed >> s & 1)
    item.pool_packed(reinterpret_cast<T*>(rest), together);
  else
    item.pool_planes();
}

template <typename T>
bool is_packed(const PooledMapsCuda& source) {
  const bool whole = source.stride[0] % ABREAST<T> == 0 && source.stride[2] % ABREAST<T> == 0 &&
                     source.stride[3] % ABREAST<T> == 0;
  return whole && source.stride[1] == 1 && source.channels % ABREAST<T> == 0 &&
         reinterpret_cast<uintptr_t>(source.maps) % 16 == 0;
}

Blocks divide(const PoolRegionsCuda& call, int channels) {
  Blocks blocks{};
  blocks.channels = channels;
  for (int s = 0; s < call.source_count; ++s) {
    blocks.items += blocks_of(call.sources[s], channels);
    blocks.all += call.sources[s].channels;
  }
  return blocks;
}

template <typename T>
void pool_all(const PoolRegionsCuda& call) {
  Blocks blocks = divide(call, MANY_CHANNELS);
  if (call.regions * blocks.items < ENOUGH_BLOCKS) blocks = divide(call, FEW_CHANNELS);
  for (int s = 0; s < call.source_count; ++s)
    blocks.packed |= static_cast<unsigned>(is_packed<T>(call.sources[s])) << s;
  const int bins = call.size * call.size, turns = (bins + TURNED - 1) / TURNED;
  const int together = (bins + turns - 1) / turns;
  const size_t taps = sizeof(int) * call.size * (1 + 2 * 2 * call.sampling);
  const size_t turned = blocks.packed ? sizeof(T) * blocks.channels * (together + 1) : 0;
  launch("pool_regions", call.target, pool<T>,
         dim3(static_cast<unsigned>(call.regions * blocks.items)), dim3(THREADS), 2 * taps + turned,
         call, blocks, together);
}

}  // namespace

void pool_regions_cuda(const PoolRegionsCuda& call) {
  with_element(call.element, [&](auto element) { pool_all<decltype(element)>(call); });
}

}  // namespace vosengine
