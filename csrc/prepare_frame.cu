// prepare_frame on a GPU, in one pass: a block computes a tile of the result from the pixels of the
// frame that it needs, read once into shared memory without conversion. If nothing is resized they
// are normalised and written; else rows are resampled first, then columns. If a tile's pixels do
// not fit (shrinking more than about 7 times), a warp computes each pixel directly from the frame.
#include "checks.h"
#include "cuda_launch.h"
#include "prepare_frame.h"
#include "prepare_frame_tile.h"

namespace vosengine {
namespace {

constexpr int COPIED = 8, RESIZED = 4;  // pixels of a row that one thread writes
constexpr int MOST_THREADS = 256;       // of a block that computes a tile
constexpr int TILE_BYTES = 40 << 10;    // of shared memory: several blocks per multiprocessor
constexpr int WARP = 32, WARPS = 4;     // of a block that computes single pixels

// Cells averaged by an output along one axis: cell first + k has weight triangle_at(start, k,
// slope) times norm.
struct Taps {
  int first, count;
  float start, norm;
};

// The bits of a float rounded to the element type of the result. The width is that of the type, so
// that kernels are compiled for element sizes, not types.
__device__ __forceinline__ void round_to(Element, float value, uint32_t* bits) {
  *bits = __float_as_uint(value);
}
__device__ __forceinline__ void round_to(Element element, float value, uint16_t* bits) {
  if (element == Element::float16) {
    const __half half = from_float<__half>(value);
    memcpy(bits, &half, sizeof(half));
  } else {
    const __nv_bfloat16 half = from_float<__nv_bfloat16>(value);
    memcpy(bits, &half, sizeof(half));
  }
}

template <typename Bits, int PIXELS>
__device__ void write_bits(const PrepareFrameCuda& call, const Plan& plan, int y, int x,
                           const float (&value)[3][PIXELS]) {
  constexpr int UNIT = PIXELS * sizeof(Bits) < 16 ? PIXELS : 16 / sizeof(Bits);
  Bits bits[3][PIXELS];
#pragma unroll
  for (int c = 0; c < 3; ++c)
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) round_to(call.element, value[c][i], &bits[c][i]);
  Bits* const out = static_cast<Bits*>(call.out);
  const int64_t pixel = static_cast<int64_t>(y) * plan.width + x;
  const int64_t plane = static_cast<int64_t>(plan.height) * plan.width;
  if (plan.wide && x + PIXELS <= plan.width) {
#pragma unroll
    for (int first = 0; first < 3 * PIXELS; first += UNIT) {
      Pack<Bits, UNIT> pack;
#pragma unroll
      for (int k = 0; k < UNIT; ++k) {
        const int i = first + k;
        pack.at[k] = call.channels_last ? bits[i % 3][i / 3] : bits[i / PIXELS][i % PIXELS];
      }
      Bits* const to = call.channels_last ? out + 3 * pixel + first
                                          : out + first / PIXELS * plane + pixel + first % PIXELS;
      *reinterpret_cast<Pack<Bits, UNIT>*>(to) = pack;
    }
    return;
  }
  const int64_t along = call.channels_last ? 3 : 1, between = call.channels_last ? 1 : plane;
#pragma unroll
  for (int c = 0; c < 3; ++c)
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      if (x + i < plan.width) out[(pixel + i) * along + c * between] = bits[c][i];
}

// Normalises PIXELS neighbouring pixels and writes those that lie in the result.
template <int PIXELS>
__device__ __forceinline__ void write_pixels(const PrepareFrameCuda& call, const Plan& plan, int y,
                                             int x, float (&value)[3][PIXELS]) {
#pragma unroll
  for (int c = 0; c < 3; ++c)
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) value[c][i] = value[c][i] * call.scale[c] + call.shift[c];
  if (call.element == Element::float32)
    write_bits<uint32_t>(call, plan, y, x, value);
  else
    write_bits<uint16_t>(call, plan, y, x, value);
}

// The part of a tile's axis that lies on the resized image.
__device__ __forceinline__ void clip(int first, int size, int64_t before, int64_t cells, int* low,
                                     int* count) {
  const int start = first - static_cast<int>(before), end = start + size;
  const int top = static_cast<int>(cells);
  *low = start < 0 ? 0 : start > top ? top : start;
  *count = (end < 0 ? 0 : end > top ? top : end) - *low;
}

template <typename Value>
__global__ void __launch_bounds__(MOST_THREADS)
    copy_tile(const PrepareFrameCuda call, const Plan plan) {
  VOS_SHARED_BYTES(shared);
  const int tile_x = blockIdx.x * plan.tile_width, tile_y = blockIdx.y * plan.tile_height;
  Tile tile;
  tile.at = shared;
  clip(tile_x, plan.tile_width, call.left, call.width, &tile.column, &tile.columns);
  clip(tile_y, plan.tile_height, call.top, call.height, &tile.row, &tile.rows);
  load_tile<Value>(call, plan, tile);
  __syncthreads();

  const int groups = plan.tile_width / COPIED, row = threadIdx.x / groups;
  const int y = tile_y + row, x = tile_x + (threadIdx.x - row * groups) * COPIED;
  if (y >= plan.height || x >= plan.width) return;
  const int source_y = y - static_cast<int>(call.top) - tile.row;
  const int source_x = x - static_cast<int>(call.left) - tile.column;
  const bool black = source_y < 0 || source_y >= tile.rows;
  const unsigned char* const pixels = shared_row<Value>(call, plan, tile, black ? 0 : source_y) +
                                      3 * source_x * static_cast<int>(sizeof(Value));
  float value[3][COPIED];
  if (!black && source_x >= 0 && source_x + COPIED <= tile.columns) {
    uint32_t words[3 * COPIED * sizeof(Value) / 4];
    read_words(pixels, words);
#pragma unroll
    for (int i = 0; i < 3 * COPIED; ++i) value[i % 3][i / 3] = element<Value>(words, i);
  } else {
#pragma unroll
    for (int i = 0; i < COPIED; ++i) {
      const bool inside = !black && source_x + i >= 0 && source_x + i < tile.columns;
#pragma unroll
      for (int c = 0; c < 3; ++c)
        value[c][i] =
            inside ? static_cast<float>(reinterpret_cast<const Value*>(pixels)[3 * i + c]) : 0;
    }
  }
  write_pixels(call, plan, y, x, value);
}

__device__ Taps taps_of(int64_t index, int64_t count, double step, float slope, int64_t cells) {
  index = index < 0 ? 0 : index < count ? index : count - 1;
  int64_t first, end;
  triangle_range(index, step, cells, &first, &end);
  Taps taps;
  taps.first = static_cast<int>(first);
  taps.count = static_cast<int>(end - first);
  taps.start = triangle_start(index, step, first);
  float sum = 0;
  for (int k = 0; k < taps.count; ++k) sum += triangle_at(taps.start, k, slope);
  taps.norm = 1 / sum;
  return taps;
}

// averaged[y] = weighted sum of the frame rows that row y of the tile averages; a warp per row,
// four bytes of the frame at a time.
template <typename Value>
__device__ void average_rows(const PrepareFrameCuda& call, const Plan& plan, const Tile& tile,
                             const Taps* rows, float* averaged) {
  constexpr int PER_WORD = 4 / sizeof(Value);
  const int words = (3 * tile.columns + PER_WORD - 1) / PER_WORD;
  for (int y = threadIdx.x / WARP; y < plan.tile_height; y += blockDim.x / WARP) {
    const Taps taps = rows[y];
    for (int j = threadIdx.x % WARP; j < words; j += WARP) {
      Pack<float, PER_WORD> sum{};
      for (int k = 0; k < taps.count; ++k) {
        uint32_t word[1];
        read_words(shared_row<Value>(call, plan, tile, taps.first - tile.row + k) + 4 * j, word);
        const float weight = triangle_at(taps.start, k, plan.slope_y);
#pragma unroll
        for (int i = 0; i < PER_WORD; ++i) sum.at[i] += element<Value>(word, i) * weight;
      }
#pragma unroll
      for (int i = 0; i < PER_WORD; ++i) sum.at[i] *= taps.norm;
      *reinterpret_cast<Pack<float, PER_WORD>*>(averaged + y * plan.line + j * PER_WORD) = sum;
    }
  }
}

template <typename Value>
__global__ void __launch_bounds__(MOST_THREADS)
    resize_tile(const PrepareFrameCuda call, const Plan plan) {
  VOS_SHARED_BYTES(shared);
  Taps* const columns = reinterpret_cast<Taps*>(shared);
  Taps* const rows = columns + plan.tile_width;
  float* const averaged = reinterpret_cast<float*>(rows + plan.tile_height);
  const int left = blockIdx.x * plan.tile_width - static_cast<int>(call.left);
  const int top = blockIdx.y * plan.tile_height - static_cast<int>(call.top);
  for (int i = threadIdx.x; i < plan.tile_width + plan.tile_height; i += blockDim.x) {
    if (i < plan.tile_width)
      columns[i] = taps_of(left + i, call.resized_width, plan.step_x, plan.slope_x, call.width);
    else
      rows[i - plan.tile_width] = taps_of(top + i - plan.tile_width, call.resized_height,
                                          plan.step_y, plan.slope_y, call.height);
  }
  __syncthreads();
  const Taps &last_column = columns[plan.tile_width - 1], &last_row = rows[plan.tile_height - 1];
  Tile tile;
  tile.at = reinterpret_cast<unsigned char*>(averaged + plan.tile_height * plan.line);
  tile.column = columns[0].first;
  tile.columns = last_column.first + last_column.count - tile.column;
  tile.row = rows[0].first;
  tile.rows = last_row.first + last_row.count - tile.row;
  load_tile<Value>(call, plan, tile);
  __syncthreads();
  average_rows<Value>(call, plan, tile, rows, averaged);
  __syncthreads();

  const int groups = plan.tile_width / RESIZED;
  for (int item = threadIdx.x; item < groups * plan.tile_height; item += blockDim.x) {
    const int row = item / groups, column = (item - row * groups) * RESIZED;
    const int y = blockIdx.y * plan.tile_height + row, x = blockIdx.x * plan.tile_width + column;
    if (y >= plan.height || x >= plan.width) continue;
    const bool black = top + row < 0 || top + row >= call.resized_height;
    float value[3][RESIZED] = {};
#pragma unroll
    for (int i = 0; i < RESIZED; ++i) {
      if (black || left + column + i < 0 || left + column + i >= call.resized_width) continue;
      const Taps taps = columns[column + i];
      const float* pixel = averaged + row * plan.line + 3 * (taps.first - tile.column);
#pragma unroll 2
      for (int k = 0; k < taps.count; ++k, pixel += 3) {
        const float weight = triangle_at(taps.start, k, plan.slope_x);
#pragma unroll
        for (int c = 0; c < 3; ++c) value[c][i] += pixel[c] * weight;
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c][i] *= taps.norm;
    }
    write_pixels(call, plan, y, x, value);
  }
}

// Computes one pixel with a warp, whose lanes run along the rows that it averages.
template <typename Value>
__global__ void __launch_bounds__(WARP* WARPS, 4)
    average_pixel(const PrepareFrameCuda call, const Plan plan) {
  const int lane = threadIdx.x % WARP;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (pixel >= static_cast<int64_t>(plan.height) * plan.width) return;
  const int y = static_cast<int>(pixel / plan.width);
  const int x = static_cast<int>(pixel - static_cast<int64_t>(y) * plan.width);
  const int64_t row = y - call.top, column = x - call.left;
  float value[3][1] = {};
  if (row >= 0 && row < call.resized_height && column >= 0 && column < call.resized_width) {
    const Taps rows = taps_of(row, call.resized_height, plan.step_y, plan.slope_y, call.height);
    const Taps columns = taps_of(column, call.resized_width, plan.step_x, plan.slope_x, call.width);
    const Value* const frame = static_cast<const Value*>(call.frame);
#pragma unroll 1
    for (int j = 0; j < rows.count; ++j) {
      const Value* const line = frame + (rows.first + j) * call.row_stride;
      float sum[3] = {};
      for (int k = lane; k < columns.count; k += WARP) {
        const float weight = triangle_at(columns.start, k, plan.slope_x);
        const int64_t at = (columns.first + k) * call.pixel_stride;
#pragma unroll
        for (int c = 0; c < 3; ++c)
          sum[c] += static_cast<float>(line[at + c * call.channel_stride]) * weight;
      }
      const float weight = triangle_at(rows.start, j, plan.slope_y);
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c][0] += sum[c] * weight;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      for (int flip = WARP / 2; flip > 0; flip /= 2)
        value[c][0] += __shfl_xor_sync(0xffffffffu, value[c][0], flip);
      value[c][0] *= rows.norm * columns.norm;
    }
  }
  if (lane == 0) write_pixels(call, plan, y, x, value);
}

int64_t at_most(double wanted, int64_t cells) {
  return wanted < static_cast<double>(cells) ? static_cast<int64_t>(wanted) : cells;
}

// Maximum number of cells that `outputs` neighbouring pixels average.
int64_t cells_under(int outputs, double step, int64_t cells) {
  const double support = step > 1 ? step : 1;
  return at_most((outputs - 1) * step + 2 * support + 2, cells);
}

int64_t rounded_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Bytes for a row that starts anywhere in a 16-byte word and is read by words.
int64_t pitch_of(int64_t columns, int64_t value_bytes) {
  return rounded_up(3 * columns * value_bytes + 15 + 4, 16);
}

Plan plan_for(const PrepareFrameCuda& call) {
  Plan plan{};
  plan.height = static_cast<int>(call.top + call.resized_height + call.bottom);
  plan.width = static_cast<int>(call.left + call.resized_width + call.right);
  plan.step_y = static_cast<double>(call.height) / static_cast<double>(call.resized_height);
  plan.step_x = static_cast<double>(call.width) / static_cast<double>(call.resized_width);
  plan.slope_y = static_cast<float>(plan.step_y > 1 ? 1 / plan.step_y : 1);
  plan.slope_x = static_cast<float>(plan.step_x > 1 ? 1 / plan.step_x : 1);
  plan.packed = call.pixel_stride == 3 && call.channel_stride == 1;
  const int64_t out_bytes = call.element == Element::float32 ? 4 : 2;
  // Then rows of every plane, and groups of pixels, are aligned to 16 bytes.
  plan.wide = reinterpret_cast<uintptr_t>(call.out) % 16 == 0 && plan.width * out_bytes % 16 == 0;
  return plan;
}

// Selects the largest tile whose pixels fit in shared memory; returns false if none does.
bool fit_tile(const PrepareFrameCuda& call, int64_t value_bytes, Plan& plan, int64_t* bytes) {
  constexpr int TILES[][2] = {{16, 64}, {8, 64}, {8, 32}, {4, 32}};
  for (const auto& [height, width] : TILES) {
    const int64_t columns = cells_under(width, plan.step_x, call.width);
    const int64_t rows = cells_under(height, plan.step_y, call.height);
    const int64_t pitch = pitch_of(columns, value_bytes), line = rounded_up(3 * columns, 4);
    *bytes = static_cast<int64_t>(sizeof(Taps)) * (width + height) +
             static_cast<int64_t>(sizeof(float)) * height * line + rows * pitch;
    if (*bytes > TILE_BYTES) continue;
    plan.tile_height = height;
    plan.tile_width = width;
    plan.pitch = static_cast<int>(pitch);
    plan.line = static_cast<int>(line);
    return true;
  }
  return false;
}

dim3 tiles(const Plan& plan) {
  return dim3((plan.width + plan.tile_width - 1) / plan.tile_width,
              (plan.height + plan.tile_height - 1) / plan.tile_height);
}

template <typename Value>
void prepare(const PrepareFrameCuda& call) {
  const char* const what = "prepare_frame";
  Plan plan = plan_for(call);
  if (call.resized_height == call.height && call.resized_width == call.width) {
    plan.tile_height = 4;
    plan.tile_width = sizeof(Value) == 1 ? 512 : 128;
    plan.pitch = static_cast<int>(pitch_of(plan.tile_width, sizeof(Value)));
    launch(what, call.target, copy_tile<Value>, tiles(plan),
           dim3(plan.tile_height * plan.tile_width / COPIED), plan.tile_height * plan.pitch, call,
           plan);
    return;
  }
  int64_t bytes;
  if (fit_tile(call, sizeof(Value), plan, &bytes)) {
    launch(what, call.target, resize_tile<Value>, tiles(plan),
           dim3(plan.tile_height * plan.tile_width / RESIZED), bytes, call, plan);
    return;
  }
  const int64_t blocks = (static_cast<int64_t>(plan.height) * plan.width + WARPS - 1) / WARPS;
  launch(what, call.target, average_pixel<Value>, dim3(static_cast<unsigned>(blocks)),
         dim3(WARPS * WARP), 0, call, plan);
}

}  // namespace

void prepare_frame_cuda(const PrepareFrameCuda& call) {
  const int64_t height = call.top + call.resized_height + call.bottom;
  VOS_CHECK(height <= 65535 * 4, "size and padding", "at most 262140 rows", height);
  if (call.bytes)
    prepare<uint8_t>(call);
  else
    prepare<float>(call);
}

}  // namespace vosengine
