// finish_masks on a GPU, in one pass: a block labels a tile of the result. The coarse cells under
// the tile are staged in shared memory; a thread computes neighbouring pixels of a row, which share
// three columns of cells. The state per pixel does not grow with the number of objects.
#include "checks.h"
#include "cuda_launch.h"
#include "finish_masks.h"

namespace vosengine {
namespace {

constexpr int PIXELS = 4;  // of a row, per thread: 4 bytes of labels, 16 of probabilities
constexpr int TILE_WIDTH = 128, TILE_HEIGHT = 8;
constexpr int THREADS = TILE_WIDTH / PIXELS * TILE_HEIGHT;
// Pixels are grouped by the alignment of their labels, so a tile may start up to 3 to the left.
constexpr int COLUMNS = TILE_WIDTH + PIXELS;
constexpr int CELL_BYTES =
    24 << 10;  // of shared memory for cells: several blocks per multiprocessor
constexpr float HIGHEST_LOGIT = 16.118095f;  // ln HIGHEST_ODDS
constexpr float MOST_ODDS = 1e30f;           // far beyond the clamp, and finite

struct Tap {
  int low, high;
  float weight;
};

constexpr size_t TAP_BYTES = (sizeof(Tap) * (COLUMNS + TILE_HEIGHT) + 15) / 16 * 16;

// Values that the host derives from the call.
struct Plan {
  double step_y, step_x;  // cells per pixel
  int objects_at_once;    // whose cells fit in shared memory; 0 if read from the tensor
  float certain;          // below this maximum logit the pixel is background
  bool wide_labels, wide_probabilities;  // whether groups of pixels are written as one
};

__device__ __forceinline__ float read_logit(const FinishMasksCuda& call, int64_t offset) {
  if (call.element == Element::float16)
    return to_float(static_cast<const __half*>(call.logits)[offset]);
  if (call.element == Element::bfloat16)
    return to_float(static_cast<const __nv_bfloat16*>(call.logits)[offset]);
  return static_cast<const float*>(call.logits)[offset];
}

__device__ Tap tap_of(int64_t index, int64_t count, double step, double start, int64_t cells) {
  index = index < 0 ? 0 : index < count ? index : count - 1;
  int64_t low;
  Tap tap;
  bilinear_tap(index, step, start, cells, &low, &tap.weight);
  tap.low = static_cast<int>(low);
  tap.high = static_cast<int>(low + 1 < cells ? low + 1 : cells - 1);
  return tap;
}

// The cells under a tile, [objects_at_once, rows, columns] in shared memory.
struct Cells {
  float* at;
  int row, column;    // of the first in the grid
  int rows, columns;  // how many
};

__device__ void load_cells(const FinishMasksCuda& call, const Cells& cells, int64_t first,
                           int count) {
  const int size = cells.rows * cells.columns, thread = threadIdx.x;
  // Small tiles: several objects at a time, each thread the same cell of every `together`th.
  const int together = size < THREADS ? THREADS / size : 1;
  const int mine = size < THREADS ? thread / size : 0;
  if (mine >= together) return;
  for (int cell = thread - mine * size; cell < size; cell += THREADS) {
    const int y = cell / cells.columns, x = cell - y * cells.columns;
    const int64_t offset = (cells.row + y) * call.stride[1] + (cells.column + x) * call.stride[2];
#pragma unroll 4
    for (int o = mine; o < count; o += together)
      cells.at[o * size + cell] = read_logit(call, (first + o) * call.stride[0] + offset);
  }
}

// The logits of a thread's pixels, object by object.
template <bool NEAR>
struct Source;

// The pixels span at most one cell: three columns of cells suffice for all of them.
template <>
struct Source<true> {
  Cells cells;
  int upper, lower;  // rows of cells, as offsets within an object
  int column[3];
  bool next[PIXELS];     // whether between the second and third column, not the first and second
  float across[PIXELS];  // the weight of the right one
  float down;            // the weight of the lower row

  __device__ Source(const Tap* taps, const Tap* row, const Cells& cells) : cells(cells) {
    const int low = taps[0].low;
#pragma unroll
    for (int k = 0; k < 3; ++k) column[k] = min(low - cells.column + k, cells.columns - 1);
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      next[i] = taps[i].low != low;
      across[i] = taps[i].weight;
    }
    upper = (row->low - cells.row) * cells.columns;
    lower = (row->high - cells.row) * cells.columns;
    down = row->weight;
  }

  __device__ __forceinline__ void read(const float* object, float (&value)[PIXELS]) const {
    float cell[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const float top = object[upper + column[k]];
      cell[k] = top + (object[lower + column[k]] - top) * down;
    }
    const float left = cell[1] - cell[0], right = cell[2] - cell[1];
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      value[i] = (next[i] ? cell[1] : cell[0]) + (next[i] ? right : left) * across[i];
  }

  // Calls body(object, values) for all objects in order; called by all threads of the block.
  // `again`: the cells are still in shared memory if all objects fit.
  template <typename Body>
  __device__ __forceinline__ void for_each_object(const FinishMasksCuda& call, const Plan& plan,
                                                  bool again, Body&& body) const {
    const int size = cells.rows * cells.columns, objects = static_cast<int>(call.objects);
    const bool there = again && objects <= plan.objects_at_once;
    float value[PIXELS];
    for (int first = 0; first < objects; first += plan.objects_at_once) {
      const int count = min(objects - first, plan.objects_at_once);
      if (!there) {
        __syncthreads();
        load_cells(call, cells, first, count);
        __syncthreads();
      }
#pragma unroll 2
      for (int o = 0; o < count; ++o) {
        read(cells.at + o * size, value);
        body(first + o, value);
      }
    }
  }
};

// Pixels any distance apart, read from the tensor.
template <>
struct Source<false> {
  const Tap* taps;
  const Tap* row;

  __device__ Source(const Tap* taps, const Tap* row, const Cells&) : taps(taps), row(row) {}

  __device__ __forceinline__ void read(const FinishMasksCuda& call, int64_t object,
                                       float (&value)[PIXELS]) const {
    const int64_t upper = object * call.stride[0] + row->low * call.stride[1];
    const int64_t lower = object * call.stride[0] + row->high * call.stride[1];
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const int64_t left = taps[i].low * call.stride[2], right = taps[i].high * call.stride[2];
      const float top_left = read_logit(call, upper + left);
      const float top_right = read_logit(call, upper + right);
      const float low = top_left + (read_logit(call, lower + left) - top_left) * row->weight;
      const float high = top_right + (read_logit(call, lower + right) - top_right) * row->weight;
      value[i] = low + (high - low) * taps[i].weight;
    }
  }

  template <typename Body>
  __device__ __forceinline__ void for_each_object(const FinishMasksCuda& call, const Plan&, bool,
                                                  Body&& body) const {
    float value[PIXELS];
#pragma unroll 1
    for (int64_t o = 0; o < call.objects; ++o) {
      read(call, o, value);
      body(o, value);
    }
  }
};

__device__ __forceinline__ float odds_of(float logit) { return fminf(__expf(logit), HIGHEST_ODDS); }

// D = product of (1 + odds) - 1, without cancellation; the background's odds are 1 / D.
__device__ __forceinline__ float with_object(float any, float odds) {
  return fminf(any + odds * (any + 1), MOST_ODDS);
}

// Whether an object has greater odds than the background, given the greatest logit:
//   best > 0        D >= e^best > 1, so 1 / D < 1 < e^best;
//   best < -ln O    (1 + 1/O)^O < e, so D < e - 1 and D * e^best < (e - 1) / O < 1 (O = 1:
//   e^2best);
// in between the condition is D * e^best > 1. The clamps do not change this: both sides are clamped
// alike, and both at the same end only if the background wins.
__device__ __forceinline__ bool known(float best, float certain) {
  return best > 0 || best < certain;
}
__device__ __forceinline__ bool object_wins(float best, float certain, float any) {
  return known(best, certain) ? best > 0 : any * __expf(best) > 1;
}

// The pixels x .. x + PIXELS of a row that lie in the result.
struct Place {
  int x, width;
  int64_t offset;  // of the first in a plane
  bool inside, whole;
};

template <typename T>
__device__ __forceinline__ void write_pixels(T* plane, const Place& place, bool wide,
                                             const T (&value)[PIXELS]) {
  T* const to = plane + place.offset;
  if (wide && place.whole) {
    Pack<T, PIXELS> pack;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) pack.at[i] = value[i];
    *reinterpret_cast<Pack<T, PIXELS>*>(to) = pack;
  } else if (place.inside) {
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      if (place.x + i >= 0 && place.x + i < place.width) to[i] = value[i];
  }
}

// STREAMS: a block labels a tile of stream blockIdx.z, whose rows of objects are read on the
// device.
template <bool NEAR, bool KEEP, bool STREAMS>
__global__ void __launch_bounds__(THREADS, NEAR ? 3 : 2)
    finish_tile(const FinishMasksCuda given, const Plan plan) {
  FinishMasksCuda call = given;
  float certain = plan.certain;
  const int64_t stream = STREAMS ? blockIdx.z : 0;
  int64_t begin = 0, end = call.objects;
  if constexpr (STREAMS) {
    rows_of(call, stream, &begin, &end);
    call.objects = end - begin;
    call.ids += begin;
    call.logits = static_cast<const char*>(call.logits) +
                  begin * call.stride[0] * (call.element == Element::float32 ? 4 : 2);
    certain = call.objects > 1 ? -logf(static_cast<float>(call.objects)) : 0;
  }
  VOS_SHARED_BYTES(shared);
  Tap* const columns = reinterpret_cast<Tap*>(shared);
  Tap* const rows = columns + COLUMNS;
  const int thread = threadIdx.x;
  const int tile_x = blockIdx.x * TILE_WIDTH, tile_y = blockIdx.y * TILE_HEIGHT;
  if (thread < COLUMNS)
    columns[thread] =
        tap_of(tile_x - PIXELS + thread, call.width, plan.step_x, call.left, call.cells_x);
  else if (thread < COLUMNS + TILE_HEIGHT)
    rows[thread - COLUMNS] =
        tap_of(tile_y + thread - COLUMNS, call.height, plan.step_y, call.top, call.cells_y);
  __syncthreads();

  const int in_tile_y = thread / (TILE_WIDTH / PIXELS), y = tile_y + in_tile_y;
  const int group = thread % (TILE_WIDTH / PIXELS) * PIXELS;
  const int64_t row_offset = (stream * call.height + y) * call.width;
  const int back = plan.wide_labels ? static_cast<int>(row_offset % PIXELS) : 0;
  Place place;
  place.width = static_cast<int>(call.width);
  place.x = tile_x + group - back;
  place.offset = row_offset + place.x;
  place.inside = y < call.height && place.x > -PIXELS && place.x < place.width;
  place.whole = place.inside && place.x >= 0 && place.x + PIXELS <= place.width;
  Cells cells;
  cells.at = reinterpret_cast<float*>(shared + TAP_BYTES);
  cells.row = rows[0].low;
  cells.column = columns[0].low;
  cells.rows = rows[TILE_HEIGHT - 1].high - cells.row + 1;
  cells.columns = columns[COLUMNS - 1].high - cells.column + 1;
  Source<NEAR> source(columns + PIXELS + group - back, rows + in_tile_y, cells);

  float best[PIXELS], any[PIXELS], sum[PIXELS];
  int winner[PIXELS];
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    best[i] = -INFINITY;
    any[i] = sum[i] = 0;
    winner[i] = 0;
  }
  source.for_each_object(call, plan, false, [&](int64_t o, const float (&value)[PIXELS]) {
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const float logit = fminf(value[i], HIGHEST_LOGIT);
      if (logit > best[i]) winner[i] = static_cast<int>(o);
      best[i] = fmaxf(best[i], logit);
      if constexpr (KEEP) {
        const float odds = odds_of(value[i]);
        any[i] = with_object(any[i], odds);
        sum[i] += fmaxf(odds, LOWEST_ODDS);
      }
    }
  });
  if constexpr (!KEEP) {
    bool open = false;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) open = open || !known(best[i], certain);
    if (__syncthreads_or(open && place.inside))
      source.for_each_object(call, plan, true, [&](int64_t, const float (&value)[PIXELS]) {
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) any[i] = with_object(any[i], odds_of(value[i]));
      });
  }
  uint8_t label[PIXELS];
#pragma unroll
  for (int i = 0; i < PIXELS; ++i)
    label[i] = object_wins(best[i], certain, any[i]) ? call.ids[winner[i]] : 0;
  write_pixels(call.labels, place, plan.wide_labels, label);

  if constexpr (KEEP) {
    float q[PIXELS];
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const float background = fminf(fmaxf(1 / any[i], LOWEST_ODDS), HIGHEST_ODDS);
      sum[i] = 1 / (sum[i] + background);
      q[i] = background * sum[i];
    }
    const int64_t size = call.height * call.width;
    float* const planes = call.probabilities + begin * size;  // after those of preceding streams
    write_pixels(planes, place, plan.wide_probabilities, q);
    source.for_each_object(call, plan, true, [&](int64_t o, const float (&value)[PIXELS]) {
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) q[i] = fmaxf(odds_of(value[i]), LOWEST_ODDS) * sum[i];
      write_pixels(planes + (1 + o) * size, place, plan.wide_probabilities, q);
    });
    if (STREAMS && stream == call.streams - 1) {  // rows of no stream
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) q[i] = 0;
      for (int64_t o = call.objects; begin + o < given.objects; ++o)
        write_pixels(planes + (1 + o) * size, place, plan.wide_probabilities, q);
    }
  }
}

// Maximum number of cells under `outputs` neighbouring pixels.
int64_t cells_under(int outputs, double step, int64_t cells) {
  const double span = (outputs - 1) * step + 3;
  return span < static_cast<double>(cells) ? static_cast<int64_t>(span) : cells;
}

bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

Plan plan_for(const FinishMasksCuda& call, size_t* shared_bytes) {
  Plan plan{};
  plan.step_y = call.region_height / static_cast<double>(call.height);
  plan.step_x = call.region_width / static_cast<double>(call.width);
  plan.certain = call.objects > 1 ? -logf(static_cast<float>(call.objects)) : 0;
  plan.wide_labels = aligned(call.labels, PIXELS);
  plan.wide_probabilities = plan.wide_labels && call.height * call.width % PIXELS == 0 &&
                            aligned(call.probabilities, PIXELS * sizeof(float));
  const int64_t bytes = static_cast<int64_t>(sizeof(float)) *
                        cells_under(COLUMNS, plan.step_x, call.cells_x) *
                        cells_under(TILE_HEIGHT, plan.step_y, call.cells_y);
  const bool near = (PIXELS - 1) * plan.step_x < 0.999;
  const int64_t fit = near ? CELL_BYTES / bytes : 0;
  plan.objects_at_once = static_cast<int>(fit < call.objects ? fit : call.objects);
  *shared_bytes = TAP_BYTES + plan.objects_at_once * bytes;
  return plan;
}

template <bool STREAMS>
auto kernel_for(bool near, bool keep) {
  return near   ? keep ? finish_tile<true, true, STREAMS> : finish_tile<true, false, STREAMS>
         : keep ? finish_tile<false, true, STREAMS>
                : finish_tile<false, false, STREAMS>;
}

}  // namespace

void finish_masks_cuda(const FinishMasksCuda& call) {
  VOS_CHECK(call.height <= 65535 * TILE_HEIGHT, "height", "at most 524280", call.height);
  size_t shared_bytes;
  VOS_CHECK(call.streams <= 65535, "first", "at most 65535 streams", call.streams);
  const Plan plan = plan_for(call, &shared_bytes);
  const int64_t columns =
      (call.width + (plan.wide_labels ? PIXELS - 1 : 0) + TILE_WIDTH - 1) / TILE_WIDTH;
  const int64_t rows = (call.height + TILE_HEIGHT - 1) / TILE_HEIGHT;
  const bool near = plan.objects_at_once > 0, keep = call.probabilities != nullptr;
  const auto kernel = call.first ? kernel_for<true>(near, keep) : kernel_for<false>(near, keep);
  launch("finish_masks", call.target, kernel, dim3(columns, rows, call.streams), dim3(THREADS),
         shared_bytes, call, plan);
}

}  // namespace vosengine
