// read_memory with top_k on the CPU: all scores of a few queries at a time. The top_k-th greatest
// score is selected in one pass that keeps candidates, and only the values of those positions are
// summed. Without top_k weights are multiplied with all values; here only keys are multiplied.
#ifndef VOS_ISA

#include "read_memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>

using vosengine::ReadMemory;

#define VOS_BODY "read_memory_top_k_cpu.cpp"
#include "for_each_isa.h"

void vosengine::read_memory_top_k_cpu(const ReadMemory& call) { VOS_DISPATCH(read_top_k, call); }

#else

#include "multiply.h"
#include "read_memory_rows.h"

constexpr int64_t TILES = 2;             // of ROWS queries in a task
constexpr int64_t CHUNK = TILES * ROWS;  // queries of a task
constexpr int64_t BLOCK = 64;            // scores skipped together; a multiple of SPAN
constexpr float LOWEST = -60;            // as in read_memory_cpu.cpp

// Scratch of a thread for a task. `padded`: the group's positions, rounded up to a multiple of
// BLOCK.
struct Scratch {
  float* query;       // [CHUNK, key_channels], zero after the last query
  float* scores;      // [CHUNK, padded]
  float* peaks;       // [padded / BLOCK]: maximum score of every block
  float* candidates;  // [padded]
  int64_t* chosen;    // [padded]: offsets of the selected values in the memory
  float* weights;     // [padded]: their scores, then their weights
};

template <typename T>
static T* allocate(int64_t count) {
  return static_cast<T*>(::operator new(sizeof(T) * count, std::align_val_t(64)));
}

static void release(void* memory) { ::operator delete(memory, std::align_val_t(64)); }

static int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Turns products into scores, in place, and computes the maximum of every block; returns whether a
// score is NaN.
static bool finish_scores(const ReadMemory& call, const float* bias, int64_t padded, float* row,
                          float* peaks) {
  vint wrong = {};
  for (int64_t first = 0; first < padded; first += BLOCK) {
    vfloat best = splat(-INFINITY);
    for (int64_t n = first; n < first + BLOCK; n += VOS_WIDTH) {
      const vfloat score = load(row + n) * call.scale + load(bias + n);
      wrong |= score != score;
      best = maximum(score, best);
      store(row + n, score);
    }
    peaks[first / BLOCK] = maximum_of(best);
  }
  for (int i = 0; i < VOS_WIDTH; ++i)
    if (wrong[i]) return true;
  return false;
}

static float kth_greatest(float* from, int64_t k, int64_t count) {
  std::nth_element(from, from + k - 1, from + count, std::greater<float>());
  return from[k - 1];
}

// The top_k-th greatest score, or -infinity if fewer are above that. It is at least the top_k-th
// greatest maximum of a block, so few scores remain as candidates.
static float least_of_best(const ReadMemory& call, const float* row, int64_t padded,
                           const Scratch& scratch) {
  float* candidates = scratch.candidates;
  const int64_t blocks = padded / BLOCK;
  float bound = -INFINITY;
  if (blocks >= call.top_k) {
    memcpy(candidates, scratch.peaks, sizeof(float) * blocks);
    bound = kth_greatest(candidates, call.top_k, blocks);
  }
  int64_t count = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (scratch.peaks[block] <= bound) continue;
    for (int64_t n = block * BLOCK; n < (block + 1) * BLOCK; ++n) {
      candidates[count] = row[n];
      count += row[n] > bound;
    }
  }
  return count < call.top_k ? bound : kth_greatest(candidates, call.top_k, count);
}

// Sums the weighted values of the chosen positions in one set; `total` is the sum of the weights.
template <typename T>
static void sum_values_of(const ReadMemory& call, int64_t set, int64_t count, float total,
                          const Scratch& scratch, float* out) {
  const T* value = static_cast<const T*>(call.value) + set * call.value_set;
  const int64_t whole = call.value_channels / VOS_WIDTH * VOS_WIDTH;
  memset(out, 0, sizeof(float) * call.value_channels);
  for (int64_t i = 0; i < count; ++i) {
    const T* from = value + scratch.chosen[i];
    const float weight = scratch.weights[i] / total;
    for (int64_t c = 0; c < whole; c += VOS_WIDTH)
      store(out + c, load(out + c) + load(from + c) * weight);
    for (int64_t c = whole; c < call.value_channels; ++c) out[c] += to_float(from[c]) * weight;
  }
}

static void sum_values(const ReadMemory& call, int64_t set, int64_t count, float total,
                       const Scratch& scratch, float* out) {
  switch (call.element) {
    case vosengine::Element::float16:
      return sum_values_of<Float16>(call, set, count, total, scratch, out);
    case vosengine::Element::bfloat16:
      return sum_values_of<Bfloat16>(call, set, count, total, scratch, out);
    default:
      return sum_values_of<float>(call, set, count, total, scratch, out);
  }
}

// Reads the memory for one query, from its products.
static void read_query(const ReadMemory& call, const float* bias, int64_t length, int64_t padded,
                       float* row, float* out, const Scratch& scratch) {
  const bool wrong = finish_scores(call, bias, padded, row, scratch.peaks);
  const float least = wrong ? -INFINITY : least_of_best(call, row, padded, scratch);
  int64_t count = 0;
  float peak = -INFINITY;
  for (int64_t first = 0; first < length; first += BLOCK) {
    if (scratch.peaks[first / BLOCK] < least) continue;
    for (int64_t n = first; n < std::min(first + BLOCK, length); ++n) {
      if (row[n] < least) continue;
      peak = std::max(peak, row[n]);
      const vosengine::Run run = vosengine::run_at(call, n, 1);
      scratch.chosen[count] = run.page * call.value_page + run.row * call.value_row;
      scratch.weights[count++] = row[n];
    }
  }
  float total = wrong ? NAN : 0.0f;
  for (int64_t i = count; i < round_up(count, VOS_WIDTH); ++i) scratch.weights[i] = -INFINITY;
  for (int64_t i = 0; i < count; i += VOS_WIDTH)
    store(scratch.weights + i,
          exponential(maximum(splat(LOWEST), load(scratch.weights + i) - peak)));
  for (int64_t i = 0; i < count; ++i) total += scratch.weights[i];
  for (int64_t set = 0; set < call.sets; ++set)
    sum_values(call, set, count, total, scratch, out + set * call.queries * call.value_channels);
}

// Reads the memory for `count` queries from `first` on.
static void read_chunk(const ReadMemory& call, const float* keys, const float* bias, int64_t first,
                       int64_t count, int64_t length, int64_t padded, const Scratch& scratch) {
  const int64_t channels = call.key_channels;
  for (int64_t q = 0; q < CHUNK; ++q) {
    float* to = scratch.query + q * channels;
    if (q < count)
      memcpy(to, call.query + (first + q) * call.query_row, sizeof(float) * channels);
    else
      memset(to, 0, sizeof(float) * channels);
  }
  for (int64_t n = 0; n < padded; n += SPAN)
    for (int64_t q = 0; q < count; q += ROWS)
      multiply_tile(ROWS, scratch.query + q * channels, channels, keys + n * channels, channels,
                    scratch.scores + q * padded + n, padded, nullptr);
  for (int64_t q = 0; q < count; ++q)
    read_query(call, bias, length, padded, scratch.scores + q * padded,
               call.out + (first + q) * call.value_channels, scratch);
}

// Reads one group with all threads of the team.
static void read_group(const ReadMemory& call, float* keys, float* bias, const Scratch& scratch) {
  const int64_t length = vosengine::length_of(call);
  const int64_t padded = round_up(length, BLOCK);
#pragma omp single nowait
  {
    vosengine::copy_bias(call, 0, length, 1, bias);
    for (int64_t n = length; n < padded; ++n) bias[n] = -INFINITY;
  }
#pragma omp for schedule(static)
  for (int64_t n = 0; n < padded; n += SPAN)
    pack_keys(call, n, length - n, keys + n * call.key_channels);
#pragma omp for schedule(dynamic, 1)
  for (int64_t q = 0; q < call.queries; q += CHUNK) {
    const int64_t count = std::min(CHUNK, call.queries - q);
    if (length > 0) {
      read_chunk(call, keys, bias, q, count, length, padded, scratch);
    } else {
      for (int64_t set = 0; set < call.sets; ++set)
        memset(call.out + (set * call.queries + q) * call.value_channels, 0,
               sizeof(float) * count * call.value_channels);
    }
  }
}

static void read_top_k(const ReadMemory& call) {
  if (call.sets * call.queries * call.value_channels == 0) return;
  int64_t longest = 0;
  for (int64_t group = 0; group < call.groups; ++group)
    longest = std::max(longest, vosengine::length_of(vosengine::group_of(call, group)));
  const int64_t padded = round_up(longest, BLOCK);
  float* keys = allocate<float>(padded * call.key_channels);
  float* bias = allocate<float>(padded);
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    scratch.query = allocate<float>(CHUNK * call.key_channels);
    scratch.scores = allocate<float>(CHUNK * padded);
    scratch.peaks = allocate<float>(padded / BLOCK);
    scratch.candidates = allocate<float>(padded);
    scratch.chosen = allocate<int64_t>(padded);
    scratch.weights = allocate<float>(padded);
    for (int64_t group = 0; group < call.groups; ++group)
      read_group(vosengine::group_of(call, group), keys, bias, scratch);
    release(scratch.weights);
    release(scratch.chosen);
    release(scratch.candidates);
    release(scratch.peaks);
    release(scratch.scores);
    release(scratch.query);
  }
  release(bias);
  release(keys);
}

#endif
