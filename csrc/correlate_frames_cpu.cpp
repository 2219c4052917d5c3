// correlate_frames on the CPU: a band matrix product per pair of rows; the scores of a few queries
// stay in the L1 cache, followed by one softmax. The cost volume is never stored.
#ifndef VOS_ISA

#include "correlate_frames.h"

#include <cmath>
#include <cstring>
#include <vector>

using vosengine::CorrelateFrames;

#define VOS_BODY "correlate_frames_cpu.cpp"
#include "for_each_isa.h"

void vosengine::correlate_frames_cpu(const CorrelateFrames& call) { VOS_DISPATCH(correlate, call); }

#else

// QUERIES neighbouring queries share each load of VECTORS * VOS_WIDTH neighbouring candidates; the
// registers (16 with AVX2, 32 with AVX-512) hold their products.
constexpr int QUERIES = VOS_WIDTH == 16 ? 8 : VOS_WIDTH == 8 ? 3 : 2;
constexpr int VECTORS = VOS_WIDTH == 16 ? 2 : VOS_WIDTH == 8 ? 4 : 4;
constexpr int SPAN = VECTORS * VOS_WIDTH;

// Unit-length copy of one image: element (y, c, x) at out[(y * channels + c) * pitch + margin + x],
// zero in the margins, so that candidates beyond the frame have correlation 0.
static void pack_rows(const float* image, const int64_t* stride, int64_t channels, int64_t height,
                      int64_t width, int64_t margin, int64_t pitch, float* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t y = 0; y < height; ++y) {
    float* row = out + y * channels * pitch;
    memset(row, 0, sizeof(float) * channels * pitch);
    for (int64_t x = 0; x < width; ++x) {
      const float* from = image + y * stride[2] + x * stride[3];
      double squares = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const double value = from[c * stride[1]];
        squares += value * value;
      }
      const double norm = sqrt(squares);
      const float inverse = static_cast<float>(1.0 / (norm > 1e-12 ? norm : 1e-12));
      for (int64_t c = 0; c < channels; ++c)
        row[c * pitch + margin + x] = from[c * stride[1]] * inverse;
    }
  }
}

// scores[q][k] += <query x + q, candidate x - radius + k> over CHANNELS channels, k < SPAN.
VOS_INLINE void correlate_tile(const float* queries, int64_t query_pitch, const float* candidates,
                               int64_t pitch, int64_t channels, float* scores) {
  vfloat sum[QUERIES][VECTORS];
  for (int q = 0; q < QUERIES; ++q)
    for (int v = 0; v < VECTORS; ++v) sum[q][v] = load(scores + q * SPAN + v * VOS_WIDTH);
  for (int64_t c = 0; c < channels; ++c) {
    const float* key = candidates + c * pitch;
    vfloat keys[VECTORS];
    for (int v = 0; v < VECTORS; ++v) keys[v] = load(key + v * VOS_WIDTH);
    for (int q = 0; q < QUERIES; ++q) {
      const vfloat value = splat(queries[c * query_pitch + q]);
      for (int v = 0; v < VECTORS; ++v) sum[q][v] += value * keys[v];
    }
  }
  for (int q = 0; q < QUERIES; ++q)
    for (int v = 0; v < VECTORS; ++v) store(scores + q * SPAN + v * VOS_WIDTH, sum[q][v]);
}

// Scratch of a thread for one row of queries.
struct Scratch {
  float* scores;   // [tiles, spans, QUERIES, SPAN] of one row of candidates
  float* windows;  // [tiles * QUERIES, side, window_pitch], zero outside the frame and in the pitch
};

struct Plan {
  int64_t side, window_pitch, pitch, query_pitch, tiles, spans;
};

static Plan plan_for(const CorrelateFrames& call) {
  const auto rounded = [](int64_t n) { return (n + VOS_WIDTH - 1) / VOS_WIDTH * VOS_WIDTH; };
  Plan plan;
  plan.side = 2 * call.radius + 1;
  plan.window_pitch = rounded(plan.side);
  plan.tiles = (call.width + QUERIES - 1) / QUERIES;
  plan.spans = (plan.side + QUERIES - 1 + SPAN - 1) / SPAN;
  plan.query_pitch = rounded(plan.tiles * QUERIES);
  plan.pitch = rounded(plan.tiles * QUERIES + plan.spans * SPAN);
  return plan;
}

// Scores of one row of queries against one row of candidates, written to row v of every window.
// Channels are processed in blocks, so that the candidates of a block stay in the L1 cache for all
// tiles.
static void correlate_rows(const CorrelateFrames& call, const Plan& plan, const float* queries,
                           const float* candidates, int64_t v, const Scratch& scratch) {
  constexpr int64_t BLOCK = 32;
  constexpr int64_t TILE = QUERIES * SPAN;
  memset(scratch.scores, 0, sizeof(float) * plan.tiles * plan.spans * TILE);
  for (int64_t c = 0; c < call.channels; c += BLOCK) {
    const int64_t count = call.channels - c < BLOCK ? call.channels - c : BLOCK;
    for (int64_t tile = 0; tile < plan.tiles; ++tile)
      for (int64_t span = 0; span < plan.spans; ++span)
        correlate_tile(queries + c * plan.query_pitch + tile * QUERIES, plan.query_pitch,
                       candidates + c * plan.pitch + tile * QUERIES + span * SPAN, plan.pitch,
                       count, scratch.scores + (tile * plan.spans + span) * TILE);
  }
  for (int64_t x = 0; x < call.width; ++x) {
    const int64_t q = x % QUERIES;  // its window starts q candidates into the tile's first span
    const float* tile = scratch.scores + x / QUERIES * plan.spans * TILE + q * SPAN;
    float* window = scratch.windows + (x * plan.side + v) * plan.window_pitch;
    for (int64_t span = 0; span < plan.spans; ++span) {
      const int64_t from = span * SPAN > q ? span * SPAN : q;
      const int64_t end = (span + 1) * SPAN < q + plan.side ? (span + 1) * SPAN : q + plan.side;
      if (from < end)
        memcpy(window + from - q, tile + span * TILE + from - span * SPAN,
               sizeof(float) * (end - from));
    }
  }
}

// Soft-argmax and maximum of one query over its window.
static void finish_query(const CorrelateFrames& call, const Plan& plan, const float* window,
                         int64_t y, int64_t x, float* out) {
  const int64_t radius = call.radius;
  const bool exclude = call.exclude_outside;
  const int64_t top = exclude && y < radius ? radius - y : 0;
  const int64_t bottom =
      exclude && call.height - 1 - y < radius ? radius + call.height - y : plan.side;
  const int32_t left = exclude && x < radius ? radius - x : 0;
  const int32_t right =
      exclude && call.width - 1 - x < radius ? radius + call.width - x : plan.side;
  vint lane;
  for (int i = 0; i < VOS_WIDTH; ++i) lane[i] = i;
  vfloat best = splat(-INFINITY), lowest = splat(INFINITY);
  for (int64_t v = top; v < bottom; ++v)
    for (int32_t u = 0; u < plan.side; u += VOS_WIDTH) {
      const vfloat score = load(window + v * plan.window_pitch + u);
      const vint inside = (lane + u >= left) & (lane + u < right);
      best = maximum(best, select(inside, score, splat(-INFINITY)));
      lowest = minimum(lowest, select(inside, score, splat(INFINITY)));
    }
  const float highest = maximum_of(best);
  const float peak = call.temperature * (call.temperature > 0 ? highest : -maximum_of(-lowest));
  vfloat total = {}, sum_x = {}, sum_y = {};
  for (int64_t v = top; v < bottom; ++v)
    for (int32_t u = 0; u < plan.side; u += VOS_WIDTH) {
      const vfloat score = load(window + v * plan.window_pitch + u) * call.temperature - peak;
      const vint inside = (lane + u >= left) & (lane + u < right);
      const vfloat weight = select(inside, exponential(score), vfloat{});
      total += weight;
      sum_x += weight * __builtin_convertvector(lane + (u - static_cast<int32_t>(radius)), vfloat);
      sum_y += weight * static_cast<float>(v - radius);
    }
  const int64_t plane = call.height * call.width;
  const float scale = 1.0f / sum_of(total);
  const bool clean = scale == scale;  // a NaN score always reaches the sum, not the maximum
  out[y * call.width + x] = sum_of(sum_x) * scale;
  out[plane + y * call.width + x] = sum_of(sum_y) * scale;
  out[2 * plane + y * call.width + x] = clean ? highest : scale;
}

static void correlate_image(const CorrelateFrames& call, const Plan& plan, const float* queries,
                            const float* candidates, float* out) {
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    scratch.scores = new float[plan.tiles * plan.spans * QUERIES * SPAN];
    scratch.windows = new float[call.width * plan.side * plan.window_pitch]();
#pragma omp for schedule(dynamic, 1)
    for (int64_t y = 0; y < call.height; ++y) {
      for (int64_t v = 0; v < plan.side; ++v) {
        const int64_t row = y + v - call.radius;
        if (row >= 0 && row < call.height) {
          correlate_rows(call, plan, queries + y * call.channels * plan.query_pitch,
                         candidates + row * call.channels * plan.pitch, v, scratch);
        } else {
          for (int64_t x = 0; x < call.width; ++x)
            memset(scratch.windows + (x * plan.side + v) * plan.window_pitch, 0,
                   sizeof(float) * plan.side);
        }
      }
      for (int64_t x = 0; x < call.width; ++x)
        finish_query(call, plan, scratch.windows + x * plan.side * plan.window_pitch, y, x, out);
    }
    delete[] scratch.scores;
    delete[] scratch.windows;
  }
}

static void correlate(const CorrelateFrames& call) {
  const Plan plan = plan_for(call);
  float* candidates = new float[call.height * call.channels * plan.pitch];
  float* queries = new float[call.height * call.channels * plan.query_pitch];
  for (int64_t b = 0; b < call.batch; ++b) {
    pack_rows(call.previous + b * call.previous_stride[0], call.previous_stride, call.channels,
              call.height, call.width, call.radius, plan.pitch, candidates, call.threads);
    pack_rows(call.query + b * call.query_stride[0], call.query_stride, call.channels, call.height,
              call.width, 0, plan.query_pitch, queries, call.threads);
    correlate_image(call, plan, queries, candidates, call.out + b * 3 * call.height * call.width);
  }
  delete[] candidates;
  delete[] queries;
}

#endif
