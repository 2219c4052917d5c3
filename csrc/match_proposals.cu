// match_proposals on CUDA, in one block. It is bound by the latency of one round of projections:
// 200 rounds run sequentially.
//
// Up to 16 rows and 64 columns, one warp holds everything in registers, 8 lanes along a row and 4
// along a column: a row's sum takes 3 shuffles, a column's 2, without barriers. Larger problems use
// shared memory: a thread per column, then a warp per row, two barriers per round.
//
// Padding columns and rows have infinite cost: their X is never positive. Dykstra's corrections
// simplify as on the CPU: one number per column, none for the rows.
#include "match_proposals.h"

#include <climits>
#include <cmath>

#include "cuda_launch.h"

namespace vosengine {
namespace {

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr int ACROSS = 8, DOWN = 4;  // lanes of the one warp along a row and along a column
constexpr int MOST_THREADS = 1024;

__device__ __forceinline__ float cost_at(const MatchProposalsCuda& call, int o, int m) {
  const int64_t at = o * call.stride[0] + m * call.stride[1];
  if (call.element == Element::float16)
    return -to_float(static_cast<const __half*>(call.similarity)[at]);
  if (call.element == Element::bfloat16)
    return -to_float(static_cast<const __nv_bfloat16*>(call.similarity)[at]);
  return -static_cast<const float*>(call.similarity)[at];
}

__device__ __forceinline__ void write(const MatchProposalsCuda& call, int o, int m, float x) {
  const int64_t at = static_cast<int64_t>(o) * call.proposals + m;
  if (call.element == Element::float16)
    static_cast<__half*>(call.out)[at] = from_float<__half>(x);
  else if (call.element == Element::bfloat16)
    static_cast<__nv_bfloat16*>(call.out)[at] = from_float<__nv_bfloat16>(x);
  else
    static_cast<float*>(call.out)[at] = x;
}

__host__ __device__ __forceinline__ int columns_of(const MatchProposalsCuda& call) {
  return call.proposals > call.objects ? call.proposals : call.objects + 1;
}

// Propagates NaN, unlike fmaxf.
__device__ __forceinline__ float not_below_zero(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
#else
  return x < 0 ? 0 : x;
#endif
}

// Sum, or maximum, of each number over the lanes that differ in bits FROM to BELOW. Sums go bit by
// bit, so that the shuffles of all numbers overlap.
template <int FROM, int BELOW, int COUNT>
__device__ __forceinline__ void sum_over(float (&x)[COUNT]) {
#pragma unroll
  for (int bit = FROM; bit < BELOW; bit *= 2) {
    float other[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) other[i] = __shfl_xor_sync(ALL, x[i], bit);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] += other[i];
  }
}

template <int FROM, int BELOW>
__device__ __forceinline__ float greatest_over(float x) {
#pragma unroll
  for (int bit = FROM; bit < BELOW; bit *= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, bit));
  return x;
}

// Minimum and its index; the first of equal ones.
struct Least {
  float value;
  int at;

  __device__ __forceinline__ void take(float other, int where) {
    if (other < value || (other == value && where < at)) {
      value = other;
      at = where;
    }
  }
};

template <int FROM, int BELOW>
__device__ __forceinline__ Least least_over(Least least) {
#pragma unroll
  for (int bit = FROM; bit < BELOW; bit *= 2) {
    const float value = __shfl_xor_sync(ALL, least.value, bit);
    const int at = __shfl_xor_sync(ALL, least.at, bit);
    least.take(value, at);
  }
  return least;
}

// The matrices [rows, columns] in shared memory. A thread owns columns, a warp rows.
struct Problem {
  int rows, columns, warp, lane, warps;
  float *cost, *x, *negative, *total;
  float *excess, *move;  // [columns], correction of a column and its change
  int* first;            // [columns], the row with the column's least cost

  __device__ __forceinline__ Problem(const MatchProposalsCuda& call, unsigned char* shared) {
    rows = call.objects;
    columns = columns_of(call);
    warp = threadIdx.x / WARP;
    lane = threadIdx.x % WARP;
    warps = blockDim.x / WARP;
    const int size = rows * columns;
    first = reinterpret_cast<int*>(shared);
    excess = reinterpret_cast<float*>(first + columns);
    move = excess + columns;
    cost = move + columns;
    x = cost + size;
    negative = x + size;
    total = call.mean ? negative + size : nullptr;
#pragma unroll 1
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
      const int o = i / columns, m = i % columns;
      cost[i] = m < call.proposals ? cost_at(call, o, m) : 0;
      x[i] = negative[i] = 0;
      if (total) total[i] = 0;
    }
    __syncthreads();
  }

  // Sets a single 1 per row, where the row's cost is least among the columns whose least cost is
  // the row's; the other columns count as the highest of all costs.
  __device__ __forceinline__ void start() const {
#pragma unroll 1
    for (int m = threadIdx.x; m < columns; m += blockDim.x) {
      Least least{cost[m], 0};
      float highest = cost[m];
#pragma unroll 1
      for (int o = 1; o < rows; ++o) {
        least.take(cost[o * columns + m], o);
        highest = fmaxf(highest, cost[o * columns + m]);
      }
      first[m] = least.at;
      excess[m] = highest;  // minimum of the column, until all threads have read it
    }
    __syncthreads();
    float highest = -INFINITY;
#pragma unroll 1
    for (int m = lane; m < columns; m += WARP) highest = fmaxf(highest, excess[m]);
    highest = greatest_over<1, WARP>(highest);
#pragma unroll 1
    for (int o = warp; o < rows; o += warps) {
      Least least{highest, INT_MAX};
#pragma unroll 1
      for (int m = lane; m < columns; m += WARP)
        if (first[m] == o && cost[o * columns + m] < highest) least.take(cost[o * columns + m], m);
      least = least_over<1, WARP>(least);
      const int chosen = least.at == INT_MAX ? 0 : least.at;
      if (lane == 0) x[o * columns + chosen] = 1;
      if (lane == 0 && total) total[o * columns + chosen] = 1;
    }
    __syncthreads();
#pragma unroll 1
    for (int m = threadIdx.x; m < columns; m += blockDim.x) excess[m] = 0;
  }

  __device__ __forceinline__ void descend(float rate) const {
    for (int m = threadIdx.x; m < columns; m += blockDim.x)
      for (int i = m; i < rows * columns; i += columns) {
        x[i] -= rate * cost[i];
        if (total) total[i] += x[i];
      }
  }

  __device__ __forceinline__ void project_columns(float per_row) const {
    for (int m = threadIdx.x; m < columns; m += blockDim.x) {
      float sum = 0;
      for (int i = m; i < rows * columns; i += columns) {
        const float corrected = x[i] + negative[i], positive = not_below_zero(corrected);
        negative[i] = fminf(corrected, 0);
        x[i] = positive;
        sum += positive;
      }
      const float before = excess[m];
      excess[m] = not_below_zero(before + (sum - 1) * per_row);
      move[m] = before - excess[m];
    }
  }

  __device__ __forceinline__ void project_rows(float per_column) const {
    for (int o = warp; o < rows; o += warps) {
      float* row = x + o * columns;
      float sum[1] = {};
      for (int m = lane; m < columns; m += WARP) sum[0] += row[m] + move[m];
      sum_over<1, WARP>(sum);
      const float surplus = (sum[0] - 1) * per_column;
      for (int m = lane; m < columns; m += WARP) row[m] = row[m] + move[m] - surplus;
    }
  }

  // Writes X, or its mean with all but each row's maximum set to 0.
  __device__ __forceinline__ void write_rows(const MatchProposalsCuda& call) const {
    const float count = static_cast<float>(call.steps + 1);
#pragma unroll 1
    for (int o = warp; o < rows; o += warps) {
      const float* row = (call.mean ? total : x) + o * columns;
      float highest = -INFINITY;
#pragma unroll 1
      for (int m = lane; m < columns; m += WARP) highest = fmaxf(highest, row[m] / count);
      highest = greatest_over<1, WARP>(highest);
#pragma unroll 1
      for (int m = lane; m < call.proposals; m += WARP) {
        const float mean = row[m] / count;
        write(call, o, m, !call.mean ? row[m] : mean < highest - call.equal ? 0 : mean);
      }
    }
  }
};

// A lane's share of the matrices: rows down + DOWN*i, columns across + ACROSS*j.
template <int ROWS, int COLUMNS>
struct Share {
  float cost[ROWS][COLUMNS], x[ROWS][COLUMNS], total[ROWS][COLUMNS];
  float negative[ROWS][COLUMNS];  // the correction of X >= 0
  float excess[COLUMNS];          // the correction of the columns

  // Calls the body with every element of this lane and its position.
  template <typename Body>
  static __device__ __forceinline__ void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j)
        body(i, j, static_cast<int>(threadIdx.x) / ACROSS + DOWN * i,
             static_cast<int>(threadIdx.x) % ACROSS + ACROSS * j);
  }

  __device__ __forceinline__ void load(const Problem& problem) {
    each([&](int i, int j, int o, int m) {
      const bool inside = o < problem.rows && m < problem.columns;
      cost[i][j] = inside ? problem.cost[o * problem.columns + m] : INFINITY;
      x[i][j] = total[i][j] = inside ? problem.x[o * problem.columns + m] : 0;
      negative[i][j] = excess[j] = 0;
    });
  }

  __device__ __forceinline__ void store(const Problem& problem) const {
    each([&](int i, int j, int o, int m) {
      if (o >= problem.rows || m >= problem.columns) return;
      problem.x[o * problem.columns + m] = x[i][j];
      if (problem.total) problem.total[o * problem.columns + m] = total[i][j];
    });
  }

  __device__ __forceinline__ void descend(float rate) {
    each([&](int i, int j, int, int) {
      x[i][j] -= rate * cost[i][j];
      total[i][j] += x[i][j];
    });
  }

  // One round of Dykstra: entries, columns, rows.
  __device__ __forceinline__ void project(float per_row, float per_column) {
    float sum[COLUMNS], row_sum[ROWS];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        const float corrected = x[i][j] + negative[i][j];
        negative[i][j] = fminf(corrected, 0);
        x[i][j] = not_below_zero(corrected);
        sum[j] = i == 0 ? x[i][j] : sum[j] + x[i][j];
      }
    }
    sum_over<ACROSS, WARP>(sum);
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      const float before = excess[j];
      excess[j] = not_below_zero(before + (sum[j] - 1) * per_row);
      sum[j] = before - excess[j];  // now the change of the column
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        x[i][j] += sum[j];
        row_sum[i] = j == 0 ? x[i][j] : row_sum[i] + x[i][j];
      }
    }
    sum_over<1, ACROSS>(row_sum);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const float surplus = (row_sum[i] - 1) * per_column;
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) x[i][j] -= surplus;
    }
  }
};

template <int ROWS, int COLUMNS>
__global__ void __launch_bounds__(WARP, 1) match_in_a_warp(const MatchProposalsCuda call) {
  VOS_SHARED_BYTES(shared);
  const Problem problem(call, shared);
  problem.start();
  Share<ROWS, COLUMNS> share;
  share.load(problem);
  const float per_row = 1.0f / static_cast<float>(problem.rows);
  const float per_column = 1.0f / static_cast<float>(problem.columns);
#pragma unroll 1
  for (int64_t step = 0; step < call.steps; ++step) {
    share.descend(call.rate);
#pragma unroll 1
    for (int64_t round = 0; round < call.inner; ++round) share.project(per_row, per_column);
  }
  share.store(problem);
  __syncthreads();
  problem.write_rows(call);
}

__global__ void __launch_bounds__(MOST_THREADS, 1) match_in_a_block(const MatchProposalsCuda call) {
  VOS_SHARED_BYTES(shared);
  const Problem problem(call, shared);
  problem.start();
  const float per_row = 1.0f / static_cast<float>(call.objects);
  const float per_column = 1.0f / static_cast<float>(problem.columns);
  for (int64_t step = 0; step < call.steps; ++step) {
    problem.descend(call.rate);
    for (int64_t round = 0; round < call.inner; ++round) {
      problem.project_columns(per_row);
      __syncthreads();
      problem.project_rows(per_column);
      __syncthreads();
    }
  }
  problem.write_rows(call);
}

size_t shared_bytes(const MatchProposalsCuda& call) {
  const size_t rows = call.objects, columns = columns_of(call);
  return sizeof(float) * columns * (3 + rows * (call.mean ? 4 : 3));
}

template <int ROWS, int COLUMNS>
void launch_warp(const MatchProposalsCuda& call) {
  launch("match_proposals", call.target, match_in_a_warp<ROWS, COLUMNS>, dim3(1), dim3(WARP),
         shared_bytes(call), call);
}

void launch_block(const MatchProposalsCuda& call) {
  const int columns = columns_of(call), whole = (columns + WARP - 1) / WARP * WARP;
  const int warps = call.objects < MOST_THREADS / WARP ? call.objects : MOST_THREADS / WARP;
  const int threads = whole > warps * WARP ? whole : warps * WARP;
  launch("match_proposals", call.target, match_in_a_block, dim3(1),
         dim3(threads < MOST_THREADS ? threads : MOST_THREADS), shared_bytes(call), call);
}

}  // namespace

void match_proposals_cuda(const MatchProposalsCuda& call) {
  if (call.objects == 0 || call.proposals == 0) return;
  if (call.objects > 4 * DOWN || columns_of(call) > 8 * ACROSS) return launch_block(call);
  const bool few_rows = call.objects <= DOWN, few_columns = columns_of(call) <= 4 * ACROSS;
  if (few_rows && few_columns) return launch_warp<1, 4>(call);
  if (few_rows) return launch_warp<1, 8>(call);
  if (few_columns) return launch_warp<4, 4>(call);
  launch_warp<4, 8>(call);
}

}  // namespace vosengine
