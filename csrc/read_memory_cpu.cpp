// read_memory on the CPU: the memory goes by in blocks of positions, packed once and shared by all
// threads; every query keeps a running maximum and sum, so that no more than one block of scores
// per thread is ever stored.
#ifndef VOS_ISA

#include "read_memory.h"

#include <cfloat>
#include <cmath>
#include <cstring>

using vosengine::ReadMemory;

#define VOS_BODY "read_memory_cpu.cpp"
#include "for_each_isa.h"

void vosengine::read_memory_cpu(const ReadMemory& call) { VOS_DISPATCH(read, call); }

#else

#include "multiply.h"

// BLOCK memory positions at a time: one panel of values (BLOCK * SPAN floats, 16 or 32 KiB) stays
// in the first-level cache while all queries of a task go over it.
constexpr int64_t BLOCK = VOS_WIDTH == 16 ? 128 : 256;
constexpr int64_t BLOCKS = 1024 / BLOCK;  // packed together, so that threads meet less often
constexpr int64_t PITCH = BLOCK + 16;     // of scores; off a power of two, for the cache's sets

// One block of memory positions as multiply_tile wants it: panels of SPAN columns, each row by row.
struct Panels {
  float* key;    // [key_panels, key_channels, SPAN], columns are positions
  float* value;  // [value_panels, BLOCK, SPAN], columns are channels
  float* bias;   // [BLOCK], -infinity behind the last position
  int64_t count, key_panels, value_panels;
};

// Room for BLOCKS blocks, shared by all threads, and what is in it.
struct Packed {
  float *key, *value, *bias;
  int64_t count, key_channels, value_panels;
};

static Panels block_of(const Packed& packed, int64_t b) {
  const int64_t left = packed.count - b * BLOCK;
  Panels panels;
  panels.key = packed.key + b * BLOCK * packed.key_channels;
  panels.value = packed.value + b * BLOCK * packed.value_panels * SPAN;
  panels.bias = packed.bias + b * BLOCK;
  panels.count = left < BLOCK ? left : BLOCK;
  panels.key_panels = (panels.count + SPAN - 1) / SPAN;
  panels.value_panels = packed.value_panels;
  return panels;
}

// What one query knows of the blocks that went by.
struct Running {
  float peak, total;
};

// What a thread needs for the queries of one task.
struct Scratch {
  float* scores;  // [tiles * ROWS, PITCH], then the weights in place
  float* keep;    // [tiles * ROWS]: what the weights of the blocks before are worth now
};

// Keys of SPAN positions from `first` on, transposed; zero behind the last one.
static void pack_keys(const ReadMemory& call, const float* key, int64_t first, int64_t count,
                      float* panel) {
  for (int64_t n = 0; n < SPAN; ++n) {
    const float* from = key + (first + n) * call.key_row;
    for (int64_t c = 0; c < call.key_channels; ++c)
      panel[c * SPAN + n] = first + n < count ? from[c] : 0.0f;
  }
}

// SPAN channels from `first` on of every position; zero behind the last channel.
static void pack_values(const ReadMemory& call, const float* value, int64_t first, int64_t count,
                        float* panel) {
  const int64_t left = call.value_channels - first;
  for (int64_t n = 0; n < count; ++n) {
    const float* from = value + n * call.value_row + first;
    for (int64_t c = 0; c < SPAN; ++c) panel[n * SPAN + c] = c < left ? from[c] : 0.0f;
  }
}

// Packs positions of a group from `first` on; all threads of the team take part.
static void pack(const ReadMemory& call, int64_t group, int64_t first, const Packed& packed) {
  constexpr int64_t KEY_PANELS = BLOCK / SPAN;
  const int64_t units = KEY_PANELS + packed.value_panels;
  const int64_t blocks = (packed.count + BLOCK - 1) / BLOCK;
#pragma omp single nowait
  for (int64_t n = 0; n < blocks * BLOCK; ++n)
    packed.bias[n] = n >= packed.count ? -INFINITY
                     : call.bias       ? call.bias[group * call.positions + first + n]
                                       : 0.0f;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < blocks * units; ++i) {
    const Panels panels = block_of(packed, i / units);
    const int64_t from = first + i / units * BLOCK, key_panel = i % units;
    const int64_t value_panel = key_panel - KEY_PANELS;
    if (value_panel >= 0)
      pack_values(call, call.value + group * call.value_group + from * call.value_row,
                  value_panel * SPAN, panels.count, panels.value + value_panel * BLOCK * SPAN);
    else if (key_panel < panels.key_panels)
      pack_keys(call, call.key + group * call.key_group + from * call.key_row, key_panel * SPAN,
                panels.count, panels.key + key_panel * call.key_channels * SPAN);
  }
}

// Turns one query's products into weights relative to its running maximum, and says in `keep` what
// the weights so far shrink to. Positions behind the last one get e^-87 through their bias, which
// adds nothing to a total of at least 1.
static void weigh(const ReadMemory& call, const Panels& panels, float* scores, Running* running,
                  float* keep) {
  const int64_t width = panels.key_panels * SPAN;
  vfloat best = splat(running->peak);
  for (int64_t n = 0; n < width; n += VOS_WIDTH) {
    const vfloat score = load(scores + n) * call.scale + load(panels.bias + n);
    store(scores + n, score);
    best = maximum(score, best);
  }
  const float peak = maximum_of(best);
  vfloat total = {};
  for (int64_t n = 0; n < width; n += VOS_WIDTH) {
    const vfloat weight = exponential(load(scores + n) - peak);
    store(scores + n, weight);
    total += weight;
  }
  *keep = exponential(splat(running->peak - peak))[0];
  running->total = running->total * *keep + sum_of(total);
  running->peak = peak;
}

// Adds one block of memory to `count` queries: their scores, their weights, then weights times
// values onto the (not yet normalised) output.
static void attend(const ReadMemory& call, const Panels& panels, const float* query, int64_t count,
                   Running* running, float* out, const Scratch& scratch) {
  for (int64_t i = 0; i < panels.key_panels; ++i)
    for (int64_t q = 0; q < count; q += ROWS)
      multiply_tile(count - q < ROWS ? count - q : ROWS, query + q * call.query_row, call.query_row,
                    panels.key + i * call.key_channels * SPAN, call.key_channels,
                    scratch.scores + q * PITCH + i * SPAN, PITCH, nullptr);
  for (int64_t q = 0; q < count; ++q)
    weigh(call, panels, scratch.scores + q * PITCH, running + q, scratch.keep + q);
  for (int64_t j = 0; j < panels.value_panels; ++j) {
    const int64_t left = call.value_channels - j * SPAN;
    for (int64_t q = 0; q < count; q += ROWS) {
      const int64_t rows = count - q < ROWS ? count - q : ROWS;
      float* target = out + q * call.value_channels + j * SPAN;
      float narrow[ROWS * SPAN];  // stands in for the output where a panel sticks out of it
      if (left < SPAN)
        for (int64_t r = 0; r < rows; ++r)
          memcpy(narrow + r * SPAN, target + r * call.value_channels, sizeof(float) * left);
      multiply_tile(rows, scratch.scores + q * PITCH, PITCH, panels.value + j * BLOCK * SPAN,
                    panels.count, left < SPAN ? narrow : target,
                    left < SPAN ? SPAN : call.value_channels, scratch.keep + q);
      if (left < SPAN)
        for (int64_t r = 0; r < rows; ++r)
          memcpy(target + r * call.value_channels, narrow + r * SPAN, sizeof(float) * left);
    }
  }
}

// One group by all threads of the team: block by block of memory, tasks of `chunk` queries.
static void read_group(const ReadMemory& call, int64_t group, int64_t chunk, Packed packed,
                       Running* running, const Scratch& scratch) {
  int64_t length = call.length ? call.length[group] : call.positions;
  length = length < 0 ? 0 : length > call.positions ? call.positions : length;
  float* out = call.out + group * call.queries * call.value_channels;
#pragma omp for schedule(static)
  for (int64_t q = 0; q < call.queries; ++q) {
    running[q].peak = -FLT_MAX;
    running[q].total = 0;
    memset(out + q * call.value_channels, 0, sizeof(float) * call.value_channels);
  }
  for (int64_t first = 0; first < length; first += BLOCKS * BLOCK) {
    packed.count = length - first < BLOCKS * BLOCK ? length - first : BLOCKS * BLOCK;
    pack(call, group, first, packed);
#pragma omp for schedule(dynamic, 1)
    for (int64_t q = 0; q < call.queries; q += chunk)
      for (int64_t b = 0; b * BLOCK < packed.count; ++b)
        attend(call, block_of(packed, b), call.query + q * call.query_row,
               call.queries - q < chunk ? call.queries - q : chunk, running + q,
               out + q * call.value_channels, scratch);
  }
  if (length == 0) return;
#pragma omp for schedule(static)
  for (int64_t q = 0; q < call.queries; ++q) {
    const float inverse = 1.0f / running[q].total;
    for (int64_t c = 0; c < call.value_channels; ++c) out[q * call.value_channels + c] *= inverse;
  }
}

static void read(const ReadMemory& call) {
  // Tasks long enough to use a panel often, short enough that no thread waits long for the last.
  int64_t tiles = call.queries / (ROWS * call.threads * 4);
  tiles = tiles < 1 ? 1 : tiles > 16 ? 16 : tiles;
  Packed packed;
  packed.count = 0;
  packed.key_channels = call.key_channels;
  packed.value_panels = (call.value_channels + SPAN - 1) / SPAN;
  packed.key = new float[BLOCKS * BLOCK * call.key_channels];
  packed.value = new float[BLOCKS * BLOCK * packed.value_panels * SPAN];
  packed.bias = new float[BLOCKS * BLOCK];
  Running* running = new Running[call.queries];
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    scratch.scores = new float[tiles * ROWS * PITCH];
    scratch.keep = new float[tiles * ROWS];
    for (int64_t group = 0; group < call.groups; ++group)
      read_group(call, group, tiles * ROWS, packed, running, scratch);
    delete[] scratch.scores;
    delete[] scratch.keep;
  }
  delete[] running;
  delete[] packed.bias;
  delete[] packed.value;
  delete[] packed.key;
}

#endif
