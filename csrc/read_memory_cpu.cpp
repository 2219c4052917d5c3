// read_memory on the CPU: the memory is processed in stretches of positions, packed once and shared
// by all threads. An online softmax (a running maximum and sum per query) stores the scores of one
// stretch per thread only. All sets of values use the same weights.
#ifndef VOS_ISA

#include "read_memory.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <new>

using vosengine::ReadMemory;

#define VOS_BODY "read_memory_cpu.cpp"
#include "for_each_isa.h"

void vosengine::read_memory_cpu(const ReadMemory& call) { VOS_DISPATCH(read, call); }

#else

#include "multiply.h"
#include "read_memory_rows.h"

// A product covers BLOCK positions of one panel of values (BLOCK * SPAN floats, 16 or 32 KiB),
// which stay in the L1 cache for all queries of a task. The weights of a task's queries for a whole
// STRETCH stay in the L2 cache, so that the output, which with many sets exceeds a core's caches,
// is read and written once per STRETCH.
constexpr int64_t BLOCK = VOS_WIDTH == 16 ? 128 : 256;
constexpr int64_t STRETCH = 1024;
constexpr int64_t PITCH = BLOCK + 16;  // of scores; not a power of two, against cache conflicts
constexpr int64_t TILES = 16;          // maximum tiles of ROWS queries per task
constexpr int64_t BLOCK_SCORES = TILES * ROWS * PITCH;
constexpr float ONES[] = {1, 1, 1, 1, 1, 1};  // factors that keep the preceding sums unchanged

// One stretch of memory positions, packed for multiply_tile: panels of SPAN columns, row-major.
// Shared by all threads.
struct Packed {
  float* key;    // [key panels, key_channels, SPAN], columns are positions
  float* value;  // [value_panels, STRETCH, SPAN], columns are channels of one set
  float* bias;   // [STRETCH], -infinity after the last position
  int64_t count, value_panels, panels_per_set;
};

// Online softmax state of one query.
struct Running {
  float peak, total;
};

// Scratch of a thread for the queries of one task, rounded up to a multiple of ROWS.
struct Scratch {
  float* query;   // [chunk, key_channels], zero after the last query
  float* scores;  // [STRETCH / BLOCK, TILES * ROWS, PITCH], replaced by the weights
  float* sums;    // [chunk, SPAN]: weights times one panel of values
  float* keep;    // [chunk]: factor that rescales the sums of preceding stretches
};

static int64_t block_size(const Packed& packed, int64_t first) {
  return packed.count - first < BLOCK ? packed.count - first : BLOCK;
}

// Allocates floats aligned to a cache line, so that no vector of a panel crosses a line.
static float* allocate(int64_t count) {
  return static_cast<float*>(::operator new(sizeof(float) * count, std::align_val_t(64)));
}

static void release(float* floats) { ::operator delete(floats, std::align_val_t(64)); }

static int64_t divide_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// Packs `left` channels of a set, at most SPAN, of every position; zero after the last channel.
// `channel` is the index of the first one in a position's values.
template <typename T>
static void pack_values_of(const ReadMemory& call, int64_t first, int64_t count, int64_t channel,
                           int64_t left, float* panel) {
  for (int64_t n = 0; n < count;) {
    const vosengine::Run run = vosengine::run_at(call, first + n, count - n);
    const T* from = call.value_at<T>(run) + channel;
    for (const int64_t end = n + run.count; n < end; ++n, from += call.value_row) {
      float* to = panel + n * SPAN;
      if (left < SPAN)
        for (int64_t c = 0; c < SPAN; ++c) to[c] = c < left ? to_float(from[c]) : 0.0f;
      else
        for (int64_t c = 0; c < SPAN; c += VOS_WIDTH) store(to + c, load(from + c));
    }
  }
}

static void pack_values(const ReadMemory& call, int64_t first, int64_t count, int64_t channel,
                        int64_t left, float* panel) {
  switch (call.element) {
    case vosengine::Element::float16:
      return pack_values_of<Float16>(call, first, count, channel, left, panel);
    case vosengine::Element::bfloat16:
      return pack_values_of<Bfloat16>(call, first, count, channel, left, panel);
    default:
      return pack_values_of<float>(call, first, count, channel, left, panel);
  }
}

// Packs positions from `first` on; called by all threads of the team.
static void pack(const ReadMemory& call, int64_t first, const Packed& packed) {
  const int64_t key_panels = divide_up(packed.count, SPAN);
#pragma omp single nowait
  {
    vosengine::copy_bias(call, first, packed.count, 1, packed.bias);
    for (int64_t n = packed.count; n < key_panels * SPAN; ++n) packed.bias[n] = -INFINITY;
  }
#pragma omp for schedule(static) nowait
  for (int64_t i = 0; i < key_panels; ++i)
    pack_keys(call, first + i * SPAN, packed.count - i * SPAN,
              packed.key + i * call.key_channels * SPAN);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < packed.value_panels; ++i) {
    const int64_t set = i / packed.panels_per_set, c = i % packed.panels_per_set * SPAN;
    pack_values(call, first, packed.count, set * call.value_set + c, call.value_channels - c,
                packed.value + i * STRETCH * SPAN);
  }
}

// Weights are at least e^-60, which is negligible against a total of at least 1; positions after
// the last one have that weight through their bias. Products of smaller weights could be subnormal,
// which is many times slower on some processors.
constexpr float LOWEST = -60;

// Turns one query's products into weights relative to its running maximum; `keep` is the factor
// that rescales the preceding sums.
static void weigh(const ReadMemory& call, const Packed& packed, float* scores, Running* running,
                  float* keep) {
  vfloat best = splat(running->peak);
  for (int64_t first = 0; first < packed.count; first += BLOCK) {
    float* block = scores + first / BLOCK * BLOCK_SCORES;
    for (int64_t n = 0; n < block_size(packed, first); n += VOS_WIDTH) {
      const vfloat score = load(block + n) * call.scale + load(packed.bias + first + n);
      store(block + n, score);
      best = maximum(score, best);
    }
  }
  const float peak = maximum_of(best);
  *keep = exponential(splat(running->peak - peak))[0];
  running->total *= *keep;
  running->peak = peak;
  for (int64_t first = 0; first < packed.count; first += BLOCK) {
    float* block = scores + first / BLOCK * BLOCK_SCORES;
    vfloat total = {};
    for (int64_t n = 0; n < block_size(packed, first); n += VOS_WIDTH) {
      const vfloat weight = exponential(maximum(splat(LOWEST), load(block + n) - peak));
      store(block + n, weight);
      total += weight;
    }
    running->total += sum_of(total);
  }
}

// Computes the weights of `count` queries for all positions of a stretch.
static void score(const ReadMemory& call, const Packed& packed, const float* query, int64_t count,
                  Running* running, const Scratch& scratch) {
  const int64_t channels = call.key_channels;
  for (int64_t q = 0; q < divide_up(count, ROWS) * ROWS; ++q) {
    float* to = scratch.query + q * channels;
    if (q < count)
      memcpy(to, query + q * call.query_row, sizeof(float) * channels);
    else
      memset(to, 0, sizeof(float) * channels);
  }
  for (int64_t n = 0; n < packed.count; n += SPAN)
    for (int64_t q = 0; q < count; q += ROWS)
      multiply_tile(ROWS, scratch.query + q * channels, channels, packed.key + n * channels,
                    channels, scratch.scores + n / BLOCK * BLOCK_SCORES + q * PITCH + n % BLOCK,
                    PITCH, nullptr);
  for (int64_t q = 0; q < count; ++q)
    weigh(call, packed, scratch.scores + q * PITCH, running + q, scratch.keep + q);
}

// Adds sums to the (not yet normalised) output of up to ROWS queries.
static void add_sums(const float* sums, const float* keep, int64_t rows, int64_t channels,
                     float* out, int64_t out_row) {
  for (int64_t r = 0; r < rows; ++r) {
    float* to = out + r * out_row;
    if (channels == SPAN)
      for (int64_t c = 0; c < SPAN; c += VOS_WIDTH)
        store(to + c, load(to + c) * keep[r] + load(sums + r * SPAN + c));
    else
      for (int64_t c = 0; c < channels; ++c) to[c] = to[c] * keep[r] + sums[r * SPAN + c];
  }
}

// Adds weights times one panel of values to the output of `count` queries, which is prefetched
// during the last product.
static void attend(const ReadMemory& call, const Packed& packed, const float* panel, int64_t count,
                   float* out, int64_t channels, const Scratch& scratch) {
  for (int64_t n = 0; n < packed.count; n += BLOCK) {
    const int64_t depth = block_size(packed, n);
    const float* weights = scratch.scores + n / BLOCK * BLOCK_SCORES;
    const bool last = n + depth == packed.count;
    for (int64_t q = 0; q < count; q += ROWS) {
      const int64_t rows = count - q < ROWS ? count - q : ROWS;
      // Every tile prefetches a share of the panel's next block; after the last block this has no
      // effect.
      for (int64_t i = q / ROWS * 16; i < BLOCK * SPAN; i += TILES * 16)
        __builtin_prefetch(panel + (n + BLOCK) * SPAN + i, 0, 2);
      if (last)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < channels; c += 16)
            __builtin_prefetch(out + (q + r) * call.value_channels + c);
      multiply_tile(ROWS, weights + q * PITCH, PITCH, panel + n * SPAN, depth,
                    scratch.sums + q * SPAN, SPAN, n > 0 ? ONES : nullptr);
      if (last)
        add_sums(scratch.sums + q * SPAN, scratch.keep + q, rows, channels,
                 out + q * call.value_channels, call.value_channels);
    }
  }
}

// Reads one stretch of memory for `count` queries from `first` on.
static void read_stretch(const ReadMemory& call, const Packed& packed, int64_t first, int64_t count,
                         Running* running, const Scratch& scratch) {
  score(call, packed, call.query + first * call.query_row, count, running + first, scratch);
  for (int64_t i = 0; i < packed.value_panels; ++i) {
    const int64_t set = i / packed.panels_per_set, c = i % packed.panels_per_set * SPAN;
    const int64_t left = call.value_channels - c;
    float* out = call.out + (set * call.queries + first) * call.value_channels;
    attend(call, packed, packed.value + i * STRETCH * SPAN, count, out + c,
           left < SPAN ? left : SPAN, scratch);
  }
}

// Reads one group with all threads of the team, stretch by stretch, in tasks of `chunk` queries.
static void read_group(const ReadMemory& call, int64_t chunk, Packed packed, Running* running,
                       const Scratch& scratch) {
  const int64_t length = vosengine::length_of(call);
  const int64_t rows = call.sets * call.queries;
#pragma omp for schedule(static) nowait
  for (int64_t q = 0; q < call.queries; ++q) running[q] = {-FLT_MAX, 0};
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    memset(call.out + row * call.value_channels, 0, sizeof(float) * call.value_channels);
  for (int64_t first = 0; first < length; first += STRETCH) {
    packed.count = length - first < STRETCH ? length - first : STRETCH;
    pack(call, first, packed);
#pragma omp for schedule(dynamic, 1)
    for (int64_t q = 0; q < call.queries; q += chunk)
      read_stretch(call, packed, q, call.queries - q < chunk ? call.queries - q : chunk, running,
                   scratch);
  }
  if (length == 0) return;
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float inverse = 1.0f / running[row % call.queries].total;
    float* out = call.out + row * call.value_channels;
    for (int64_t c = 0; c < call.value_channels; ++c) out[c] *= inverse;
  }
}

// Reads the groups in turn, each with all threads.
static void read_by_all(const ReadMemory& call) {
  // The same number of tasks for every thread, at least two, to balance slow threads.
  const int64_t tiles = divide_up(call.queries, ROWS);
  const int64_t rounds = divide_up(tiles, call.threads * TILES);
  const int64_t tasks = call.threads * (rounds < 2 ? 2 : rounds);
  const int64_t chunk = divide_up(tiles, tasks) * ROWS;  // queries of a task
  Packed packed;
  packed.count = 0;
  packed.panels_per_set = divide_up(call.value_channels, SPAN);
  packed.value_panels = call.sets * packed.panels_per_set;
  packed.key = allocate(STRETCH * call.key_channels);
  packed.value = allocate(packed.value_panels * STRETCH * SPAN);
  packed.bias = allocate(STRETCH);
  Running* running = new Running[call.queries];
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    scratch.query = allocate(chunk * call.key_channels);
    scratch.scores = allocate(STRETCH / BLOCK * BLOCK_SCORES);
    scratch.sums = allocate(chunk * SPAN);
    scratch.keep = allocate(chunk);
    for (int64_t group = 0; group < call.groups; ++group)
      read_group(vosengine::group_of(call, group), chunk, packed, running, scratch);
    release(scratch.query);
    release(scratch.scores);
    release(scratch.sums);
    release(scratch.keep);
  }
  delete[] running;
  release(packed.bias);
  release(packed.value);
  release(packed.key);
}

static void read(const ReadMemory& call) {
  if (call.sets * call.queries * call.value_channels == 0) return;
  // Small groups are read by one thread each: synchronisation would take longer than the work.
  const bool small = call.queries <= 4 * TILES * ROWS && call.groups >= 2 * call.threads;
  if (!small || call.threads == 1) return read_by_all(call);
#pragma omp parallel for num_threads(call.threads) schedule(dynamic, 1)
  for (int64_t group = 0; group < call.groups; ++group) {
    ReadMemory one = vosengine::group_of(call, group);
    one.threads = 1;
    read_by_all(one);
  }
}

#endif
