// read_memory in bfloat16 on AMX tiles: the memory is processed in stretches of positions, packed
// once and shared by all threads. A task's scores for a stretch become weights in bfloat16, which
// are multiplied with every set of values; sums are float32 throughout.
#include "read_memory.h"

#include <stdexcept>

#include "isa.h"

#ifndef VOS_AMX

void vosengine::read_memory_amx(const ReadMemoryBfloat16&) {
  throw std::runtime_error("read_memory: compiled without AMX");
}

#else

#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <new>

using vosengine::ReadMemoryBfloat16;
using vosengine::Run;

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's header
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,prefer-vector-width=512")

namespace {

// A tile of sums is SIDE x SIDE floats. A left operand is SIDE rows of DEPTH bfloat16; a right
// operand is DEPTH rows of SIDE, two of them interleaved in each row of the tile.
constexpr int64_t SIDE = 16, DEPTH = 32, TILE = SIDE * DEPTH;
constexpr int64_t ROWS = 2 * SIDE;            // queries of a task
constexpr int64_t STRETCH = 1024;             // positions
constexpr int64_t SCORES = STRETCH + SIDE;    // row pitch in floats; not a power of two,
constexpr int64_t WEIGHTS = STRETCH + DEPTH;  // against cache conflicts; in bfloat16
constexpr float LOG2_E = 1.44269504088896341f;

using Number = uint16_t;  // the bits of a bfloat16

// Inline assembly, since the compiler's intrinsics do not declare that they access memory.
#define LOAD_TILE(tile, from, pitch) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(from), "r"(int64_t(pitch)) : "memory")
#define STORE_TILE(tile, to, pitch) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(pitch)) : "memory")
#define MULTIPLY_TILES(sum, left, right) \
  asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sum::)
#define CLEAR_TILE(tile) asm volatile("tilezero %%tmm" #tile::)

// Configures all eight tiles of this thread as SIDE rows of 64 bytes, for the object's lifetime.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } wanted;
    for (int i = 0; i < 8; ++i) wanted.bytes[i] = 64, wanted.rows[i] = SIDE;
    asm volatile("ldtilecfg %0" ::"m"(wanted) : "memory");
  }
  ~Tiles() { asm volatile("tilerelease" ::); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

int64_t divide_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

int64_t round_up(int64_t count, int64_t unit) { return divide_up(count, unit) * unit; }

template <typename T>
T* allocate(int64_t count) {
  return static_cast<T*>(::operator new(sizeof(T) * count, std::align_val_t(64)));
}

template <typename T>
void release(T* memory) {
  ::operator delete(memory, std::align_val_t(64));
}

// Pointers to the key and values of a position; null beyond the last.
struct Rows {
  const Number* key;
  const Number* value;
};

// A stretch of memory as tiles of right operands. Shared by all threads.
struct Packed {
  Number* key;    // [panels of SIDE positions][depth of the keys / DEPTH] tiles
  Number* value;  // [sets][panels of SIDE channels][STRETCH / DEPTH] tiles
  Rows* rows;     // [STRETCH]
  float* bias;    // [STRETCH], times log2 e; -infinity after the last position: the weight
                  // is negligible against a total of at least 1
  int64_t count;  // positions
  int64_t depth;  // of the keys: channels, rounded up
  int64_t width;  // of the sums of a set: channels, rounded up
};

// Online softmax state of one query; the peak is of scores times log2 e.
struct Running {
  float peak, total;
};

// Scratch of a thread for ROWS queries.
struct Scratch {
  Number* query;    // [ROWS, depth], zero after the last query and channel
  float* scores;    // [ROWS, SCORES]
  Number* weights;  // [ROWS, WEIGHTS]
  float* keep;      // [ROWS]: factor that rescales the sums of preceding stretches
};

// Finds the rows of `count` positions from `first` on; null from position `alive` on.
void find_rows(const ReadMemoryBfloat16& call, int64_t first, int64_t alive, int64_t count,
               Rows* rows) {
  for (int64_t n = 0; n < alive;) {
    const Run run = run_at(call, first + n, alive - n);
    const Number* key = call.key_at<Number>(run);
    const Number* value = call.value_at<Number>(run);
    for (const int64_t end = n + run.count; n < end; ++n) {
      rows[n] = {key, value};
      key += call.key_row;
      value += call.value_row;
    }
  }
  for (int64_t n = alive; n < count; ++n) rows[n] = {nullptr, nullptr};
}

// Packs keys of SIDE positions as tiles; zero after the last position and channel.
void pack_keys(const Rows* rows, int64_t channels, int64_t depth, Number* tiles) {
  for (int64_t n = 0; n < SIDE; ++n) {
    const Number* from = rows[n].key;
    for (int64_t c = 0; c < depth; c += 2) {
      Number* to = tiles + c / DEPTH * TILE + c % DEPTH / 2 * DEPTH + 2 * n;
      to[0] = from && c < channels ? from[c] : 0;
      to[1] = from && c + 1 < channels ? from[c + 1] : 0;
    }
  }
}

// Loads up to SIDE channels of a position's values, from `channel` on.
__m256i load_values(const Number* value, int64_t channel, __mmask16 there) {
  return value ? _mm256_maskz_loadu_epi16(there, value + channel) : _mm256_setzero_si256();
}

// Packs DEPTH positions of up to SIDE channels of a set as a tile, likewise.
void pack_values(const Rows* rows, int64_t channel, int64_t left, Number* tile) {
  const __mmask16 there = left < SIDE ? (1u << left) - 1 : 0xffff;
  for (int64_t n = 0; n < DEPTH; n += 2) {
    const __m256i one = load_values(rows[n].value, channel, there);
    const __m256i next = load_values(rows[n + 1].value, channel, there);
    const __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(one),
                                          _mm512_slli_epi32(_mm512_cvtepu16_epi32(next), 16));
    _mm512_store_si512(tile + n * SIDE, pairs);
  }
}

// Packs positions from `first` on; called by all threads of the team.
void pack(const ReadMemoryBfloat16& call, int64_t first, const Packed& packed) {
  const int64_t padded = round_up(packed.count, DEPTH), panels = packed.width / SIDE;
#pragma omp single
  {
    copy_bias(call, first, packed.count, LOG2_E, packed.bias);
    for (int64_t n = packed.count; n < padded; ++n) packed.bias[n] = -INFINITY;
    find_rows(call, first, packed.count, padded, packed.rows);
  }
#pragma omp for schedule(static) nowait
  for (int64_t n = 0; n < padded; n += SIDE)
    pack_keys(packed.rows + n, call.key_channels, packed.depth, packed.key + n * packed.depth);
#pragma omp for schedule(static)
  for (int64_t panel = 0; panel < call.sets * panels; ++panel) {
    const int64_t c = panel % panels * SIDE, channel = panel / panels * call.value_set + c;
    for (int64_t n = 0; n < packed.count; n += DEPTH)
      pack_values(packed.rows + n, channel, call.value_channels - c,
                  packed.value + (panel * STRETCH + n) * SIDE);
  }
}

// Products of ROWS queries with DEPTH positions, whose panels start at `key`.
void multiply_keys(const Number* query, const Number* key, int64_t depth, float* scores) {
  CLEAR_TILE(0);
  CLEAR_TILE(1);
  CLEAR_TILE(2);
  CLEAR_TILE(3);
  for (int64_t c = 0; c < depth; c += DEPTH) {
    LOAD_TILE(4, query + c, 2 * depth);
    LOAD_TILE(6, key + c * SIDE, 64);
    MULTIPLY_TILES(0, 4, 6);
    LOAD_TILE(7, key + (depth + c) * SIDE, 64);
    MULTIPLY_TILES(1, 4, 7);
    LOAD_TILE(5, query + SIDE * depth + c, 2 * depth);
    MULTIPLY_TILES(2, 5, 6);
    MULTIPLY_TILES(3, 5, 7);
  }
  STORE_TILE(0, scores, 4 * SCORES);
  STORE_TILE(1, scores + SIDE, 4 * SCORES);
  STORE_TILE(2, scores + SIDE * SCORES, 4 * SCORES);
  STORE_TILE(3, scores + SIDE * SCORES + SIDE, 4 * SCORES);
}

// 2^x for x <= 0 with a relative error of 3e-6, far below bfloat16's precision; x below -125 give
// 2^-125 (2.4e-38), since subnormal numbers are many times slower. NaN propagates.
__m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-125.0f), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00956051021f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0559170392f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240249811f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693121968f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.999999191f));
  return _mm512_scalef_ps(p, n);
}

// Turns one query's products into weights relative to its running maximum; `keep` is the factor
// that rescales the preceding sums.
void weigh(const Packed& packed, float scale, const float* scores, Number* weights,
           Running* running, float* keep) {
  const int64_t padded = round_up(packed.count, DEPTH);
  const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
  const auto score = [&](int64_t n) {
    return _mm512_fmadd_ps(_mm512_loadu_ps(scores + n), factor, _mm512_load_ps(packed.bias + n));
  };
  __m512 best = _mm512_set1_ps(running->peak), other = best;
  for (int64_t n = 0; n < padded; n += 2 * SIDE) {
    best = _mm512_max_ps(score(n), best);
    other = _mm512_max_ps(score(n + SIDE), other);
  }
  const float top = _mm512_reduce_max_ps(_mm512_max_ps(best, other));
  const __m512 peak = _mm512_set1_ps(top);
  *keep = _mm512_cvtss_f32(power_of_two(_mm512_set1_ps(running->peak - top)));
  __m512 total = _mm512_setzero_ps(), rest = total;
  for (int64_t n = 0; n < padded; n += 2 * SIDE) {
    const __m512 low = power_of_two(_mm512_sub_ps(score(n), peak));
    const __m512 high = power_of_two(_mm512_sub_ps(score(n + SIDE), peak));
    total = _mm512_add_ps(total, low);
    rest = _mm512_add_ps(rest, high);
    _mm512_storeu_si512(weights + n, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
  running->total = running->total * *keep + _mm512_reduce_add_ps(_mm512_add_ps(total, rest));
  running->peak = top;
}

// sums += weights times one or two panels of values; the tiles of a panel are STRETCH apart.
void multiply_values(const Number* weights, const Number* value, int64_t count, bool two,
                     float* sums, int64_t width) {
  LOAD_TILE(0, sums, 4 * width);
  LOAD_TILE(2, sums + SIDE * width, 4 * width);
  if (two) {
    LOAD_TILE(1, sums + SIDE, 4 * width);
    LOAD_TILE(3, sums + SIDE * width + SIDE, 4 * width);
  }
  for (int64_t n = 0; n < count; n += DEPTH) {
    LOAD_TILE(4, weights + n, 2 * WEIGHTS);
    LOAD_TILE(5, weights + SIDE * WEIGHTS + n, 2 * WEIGHTS);
    LOAD_TILE(6, value + n * SIDE, 64);
    MULTIPLY_TILES(0, 4, 6);
    MULTIPLY_TILES(2, 5, 6);
    if (two) {
      LOAD_TILE(7, value + (STRETCH + n) * SIDE, 64);
      MULTIPLY_TILES(1, 4, 7);
      MULTIPLY_TILES(3, 5, 7);
    }
  }
  STORE_TILE(0, sums, 4 * width);
  STORE_TILE(2, sums + SIDE * width, 4 * width);
  if (two) {
    STORE_TILE(1, sums + SIDE, 4 * width);
    STORE_TILE(3, sums + SIDE * width + SIDE, 4 * width);
  }
}

// Reads one stretch of memory for `count` queries; the sums [ROWS, width] of sets are `set` floats
// apart.
void read_stretch(const ReadMemoryBfloat16& call, const Packed& packed, const Number* query,
                  int64_t count, Running* running, float* sums, int64_t set,
                  const Scratch& scratch) {
  const int64_t depth = packed.depth, width = packed.width;
  memset(scratch.query, 0, sizeof(Number) * ROWS * depth);
  for (int64_t q = 0; q < count; ++q)
    memcpy(scratch.query + q * depth, query + q * call.query_row,
           sizeof(Number) * call.key_channels);
  for (int64_t n = 0; n < packed.count; n += DEPTH)
    multiply_keys(scratch.query, packed.key + n * depth, depth, scratch.scores + n);
  for (int64_t q = 0; q < ROWS; ++q)
    weigh(packed, call.scale, scratch.scores + q * SCORES, scratch.weights + q * WEIGHTS,
          running + q, scratch.keep + q);
  for (int64_t s = 0; s < call.sets; ++s, sums += set) {
    for (int64_t q = 0; q < ROWS; ++q) {
      if (scratch.keep[q] == 1) continue;
      const __m512 keep = _mm512_set1_ps(scratch.keep[q]);
      float* row = sums + q * width;
      for (int64_t c = 0; c < width; c += SIDE)
        _mm512_store_ps(row + c, _mm512_mul_ps(_mm512_load_ps(row + c), keep));
    }
    for (int64_t c = 0; c < width; c += 2 * SIDE)
      multiply_values(scratch.weights, packed.value + (s * width + c) * STRETCH, packed.count,
                      c + SIDE < width, sums + c, width);
  }
}

// Divides the sums by the total and rounds to bfloat16.
void finish(const float* sums, float total, int64_t channels, Number* out) {
  const __m512 inverse = _mm512_set1_ps(1.0f / total);
  for (int64_t c = 0; c < channels; c += SIDE) {
    const int64_t left = channels - c;
    const __mmask16 there = left < SIDE ? (1u << left) - 1 : 0xffff;
    const __m512 mean = _mm512_mul_ps(_mm512_load_ps(sums + c), inverse);
    _mm256_mask_storeu_epi16(out + c, there, (__m256i)_mm512_cvtneps_pbh(mean));
  }
}

// Reads one group with all threads of the team, stretch by stretch, in tasks of ROWS queries. The
// sums are [sets, queries rounded up to ROWS, width].
void read_group(const ReadMemoryBfloat16& call, Packed packed, Running* running, float* sums,
                const Scratch& scratch) {
  const int64_t length = length_of(call);
  const int64_t width = packed.width, padded = round_up(call.queries, ROWS);
#pragma omp for schedule(static) nowait
  for (int64_t q = 0; q < padded; ++q) running[q] = {-FLT_MAX, 0};
#pragma omp for schedule(static)
  for (int64_t row = 0; row < call.sets * padded; ++row)
    memset(sums + row * width, 0, sizeof(float) * width);
  for (int64_t first = 0; first < length; first += STRETCH) {
    packed.count = length - first < STRETCH ? length - first : STRETCH;
    pack(call, first, packed);
#pragma omp for schedule(dynamic, 1)
    for (int64_t q = 0; q < call.queries; q += ROWS)
      read_stretch(call, packed, call.query + q * call.query_row,
                   call.queries - q < ROWS ? call.queries - q : ROWS, running + q, sums + q * width,
                   padded * width, scratch);
  }
#pragma omp for schedule(static)
  for (int64_t row = 0; row < call.sets * call.queries; ++row) {
    const int64_t set = row / call.queries, q = row % call.queries;
    Number* out = call.out + row * call.value_channels;
    if (length == 0)
      memset(out, 0, sizeof(Number) * call.value_channels);
    else
      finish(sums + (set * padded + q) * width, running[q].total, call.value_channels, out);
  }
}

// Reads the groups in turn, each with all threads.
void read_by_all(const ReadMemoryBfloat16& call) {
  const int64_t padded = round_up(call.queries, ROWS);
  Packed packed{};
  packed.depth = round_up(call.key_channels, DEPTH);
  packed.width = round_up(call.value_channels, SIDE);
  packed.key = allocate<Number>(STRETCH * packed.depth);
  packed.value = allocate<Number>(call.sets * packed.width * STRETCH);
  packed.rows = allocate<Rows>(STRETCH);
  packed.bias = allocate<float>(STRETCH);
  Running* running = allocate<Running>(padded);
  float* sums = allocate<float>(call.sets * padded * packed.width);
#pragma omp parallel num_threads(call.threads)
  {
    const Tiles tiles;
    const Scratch scratch{allocate<Number>(ROWS * packed.depth), allocate<float>(ROWS * SCORES),
                          allocate<Number>(ROWS * WEIGHTS), allocate<float>(ROWS)};
    for (int64_t group = 0; group < call.groups; ++group)
      read_group(vosengine::group_of(call, group), packed, running, sums, scratch);
    release(scratch.query);
    release(scratch.scores);
    release(scratch.weights);
    release(scratch.keep);
  }
  release(sums);
  release(running);
  release(packed.bias);
  release(packed.rows);
  release(packed.value);
  release(packed.key);
}

}  // namespace

#pragma GCC pop_options

void vosengine::read_memory_amx(const ReadMemoryBfloat16& call) {
  if (call.sets * call.queries * call.value_channels == 0) return;
  // Small groups are read by one thread each: synchronisation would take longer than the work.
  const bool small = call.queries <= 8 * ROWS && call.groups >= 2 * call.threads;
  if (!small || call.threads == 1) return read_by_all(call);
#pragma omp parallel for num_threads(call.threads) schedule(dynamic, 1)
  for (int64_t group = 0; group < call.groups; ++group) {
    ReadMemoryBfloat16 one = group_of(call, group);
    one.threads = 1;
    read_by_all(one);
  }
}

#endif
