// One tensor-core product of a warp: 16 x 16 times 16 x 8 half-precision elements, accumulated in
// float. On a CPU that emulates CUDA, computed by shuffles.
//
// Lane 4 g + q holds, two elements to a register, the first in the lower half:
//   a  rows g (a[0], a[2]) and g + 8 (a[1], a[3]); columns 2 q, 2 q + 1, and 8 more in a[2], a[3]
//   b  column g; rows 2 q, 2 q + 1 (b[0]), and 8 more (b[1])
//   d  rows g (d[0], d[1]) and g + 8 (d[2], d[3]); columns 2 q, 2 q + 1
#pragma once

#include "cuda_launch.h"

namespace vosengine {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t pair_of(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ uint32_t pair_of(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], __half) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], __nv_bfloat16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // unreachable: kernels/gpu.py refuses bfloat16 here
#endif
}

#else

template <typename T>
uint32_t pair_of(float low, float high, T) {
  const T both[2] = {from_float<T>(low), from_float<T>(high)};
  uint32_t bits;
  std::memcpy(&bits, both, sizeof(bits));
  return bits;
}

template <typename T>
float dot_of_pairs(uint32_t a, uint32_t b) {
  T x[2], y[2];
  std::memcpy(x, &a, sizeof(a));
  std::memcpy(y, &b, sizeof(b));
  return to_float(x[0]) * to_float(y[0]) + to_float(x[1]) * to_float(y[1]);
}

template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  const auto joined = [](uint32_t low, uint32_t high) {
    return static_cast<uint64_t>(high) << 32 | low;
  };
  uint64_t first[32], second[32], columns[32];
  emulated::exchange(0xffffffffu, joined(a[0], a[1]), first);
  emulated::exchange(0xffffffffu, joined(a[2], a[3]), second);
  emulated::exchange(0xffffffffu, joined(b[0], b[1]), columns);
  const unsigned row = emulated::lane() / 4, column = emulated::lane() % 4 * 2;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned q = 0; q < 4; ++q) {
      const unsigned shift = i / 2 * 32;  // the upper halves belong to row + 8
      const uint64_t other = columns[(column + i % 2) * 4 + q];
      d[i] += dot_of_pairs<T>(static_cast<uint32_t>(first[row * 4 + q] >> shift),
                              static_cast<uint32_t>(other));
      d[i] += dot_of_pairs<T>(static_cast<uint32_t>(second[row * 4 + q] >> shift),
                              static_cast<uint32_t>(other >> 32));
    }
}

#endif

}  // namespace vosengine
