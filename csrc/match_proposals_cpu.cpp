// match_proposals on the CPU: all matrices in one small scratch, rows padded to whole vectors.
//
// Dykstra's corrections simplify: that of the columns is one number per column, and that of the
// rows cancels, since a correction orthogonal to an affine set does not change the next projection.
#ifndef VOS_ISA

#include "match_proposals.h"

#include <cmath>
#include <vector>

using vosengine::MatchProposals;

#define VOS_BODY "match_proposals_cpu.cpp"
#include "for_each_isa.h"

void vosengine::match_proposals_cpu(const MatchProposals& call) {
  if (call.objects == 0 || call.proposals == 0) return;
  VOS_DISPATCH(match_proposals, call);
}

#else

struct Problem {
  int64_t rows, columns, pitch;
  const float* cost;  // [rows, pitch], infinite beyond the columns: X is never positive there
  float* x;           // [rows, pitch]
  float* total;       // [rows, pitch], sum of every X before its projection
  float* negative;    // [rows, pitch], the correction of X >= 0
  float* excess;      // [pitch], the correction of the columns
  float* move;        // [pitch], change of a column's correction
};

static void fill_cost(const MatchProposals& call, const Problem& problem, float* cost) {
  for (int64_t o = 0; o < problem.rows; ++o) {
    const float* from = call.similarity + o * call.stride[0];
    float* row = cost + o * problem.pitch;
    for (int64_t m = 0; m < problem.pitch; ++m)
      row[m] = m < call.proposals    ? -from[m * call.stride[1]]
               : m < problem.columns ? 0.0f
                                     : INFINITY;
  }
}

// Sets a single 1 per row, where the row's cost is least among the columns whose least cost is the
// row's; the other columns count as the highest of all costs.
static void start(const Problem& problem) {
  const int64_t pitch = problem.pitch;
  float highest = problem.cost[0];
  for (int64_t o = 0; o < problem.rows; ++o)
    for (int64_t m = 0; m < problem.columns; ++m)
      if (problem.cost[o * pitch + m] > highest) highest = problem.cost[o * pitch + m];
  float* least = new float[problem.rows];
  int64_t* chosen = new int64_t[problem.rows]();
  for (int64_t o = 0; o < problem.rows; ++o) least[o] = highest;
  for (int64_t m = 0; m < problem.columns; ++m) {
    int64_t first = 0;
    for (int64_t o = 1; o < problem.rows; ++o)
      if (problem.cost[o * pitch + m] < problem.cost[first * pitch + m]) first = o;
    if (problem.cost[first * pitch + m] < least[first]) {
      least[first] = problem.cost[first * pitch + m];
      chosen[first] = m;
    }
  }
  for (int64_t o = 0; o < problem.rows; ++o)
    problem.x[o * pitch + chosen[o]] = problem.total[o * pitch + chosen[o]] = 1;
  delete[] least;
  delete[] chosen;
}

static void descend(const Problem& problem, float rate) {
  for (int64_t i = 0; i < problem.rows * problem.pitch; i += VOS_WIDTH) {
    const vfloat x = load(problem.x + i) - rate * load(problem.cost + i);
    store(problem.x + i, x);
    store(problem.total + i, load(problem.total + i) + x);
  }
}

// One round of Dykstra: entries and columns in a first pass, rows in a second. NaN propagates:
// minimum and maximum return their second argument if either is NaN.
static void project(const Problem& problem) {
  const int64_t rows = problem.rows, pitch = problem.pitch;
  const float per_row = 1.0f / static_cast<float>(rows);
  const float per_column = 1.0f / static_cast<float>(problem.columns);
  for (int64_t m = 0; m < pitch; m += VOS_WIDTH) {
    vfloat sum = {};
    for (int64_t i = m; i < rows * pitch; i += pitch) {
      const vfloat corrected = load(problem.x + i) + load(problem.negative + i);
      const vfloat positive = maximum(vfloat{}, corrected);
      store(problem.negative + i, minimum(vfloat{}, corrected));
      store(problem.x + i, positive);
      sum += positive;
    }
    const vfloat before = load(problem.excess + m);
    const vfloat after = maximum(vfloat{}, before + (sum - 1.0f) * per_row);
    store(problem.excess + m, after);
    store(problem.move + m, before - after);
  }
  for (int64_t o = 0; o < rows; ++o) {
    float* x = problem.x + o * pitch;
    vfloat sum = {};
    for (int64_t m = 0; m < pitch; m += VOS_WIDTH) {
      const vfloat moved = load(x + m) + load(problem.move + m);
      store(x + m, moved);
      sum += moved;
    }
    const float surplus = (sum_of(sum) - 1.0f) * per_column;
    for (int64_t m = 0; m < pitch; m += VOS_WIDTH) store(x + m, load(x + m) - surplus);
  }
}

// The mean, with all but each row's maximum set to 0.
static void keep_maxima(const Problem& problem, int64_t steps, float equal) {
  for (int64_t o = 0; o < problem.rows; ++o) {
    const float* total = problem.total + o * problem.pitch;
    float* x = problem.x + o * problem.pitch;
    float highest = -INFINITY;
    for (int64_t m = 0; m < problem.columns; ++m) {
      x[m] = total[m] / static_cast<float>(steps + 1);
      if (x[m] > highest) highest = x[m];
    }
    for (int64_t m = 0; m < problem.columns; ++m)
      if (x[m] < highest - equal) x[m] = 0;
  }
}

static void match_proposals(const MatchProposals& call) {
  Problem problem{};
  problem.rows = call.objects;
  problem.columns = call.proposals > call.objects ? call.proposals : call.objects + 1;
  problem.pitch = (problem.columns + VOS_WIDTH - 1) / VOS_WIDTH * VOS_WIDTH;
  const int64_t size = problem.rows * problem.pitch;
  float* scratch = new float[4 * size + 2 * problem.pitch]();
  problem.cost = scratch;
  problem.x = scratch + size;
  problem.total = scratch + 2 * size;
  problem.negative = scratch + 3 * size;
  problem.excess = scratch + 4 * size;
  problem.move = problem.excess + problem.pitch;
  fill_cost(call, problem, scratch);
  start(problem);
  for (int64_t step = 0; step < call.steps; ++step) {
    descend(problem, call.rate);
    for (int64_t round = 0; round < call.inner; ++round) project(problem);
  }
  if (call.mean) keep_maxima(problem, call.steps, call.equal);
  for (int64_t o = 0; o < call.objects; ++o)
    for (int64_t m = 0; m < call.proposals; ++m)
      call.out[o * call.proposals + m] = problem.x[o * problem.pitch + m];
  delete[] scratch;
}

#endif
