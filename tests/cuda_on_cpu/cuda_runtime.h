// CUDA's runtime and device language for a CPU, as far as csrc/*.cu use them, so that the very
// kernels that a GPU runs can be held against their references where there is none.
//
// The threads of a block are fibers: each runs until it waits for others (__syncthreads, a shuffle)
// or ends, in an order that can be chosen (a missing barrier shows in one order or the other). The
// blocks of a grid run one after the other. Shared memory is filled with NaN before each block.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define VOS_SHARED_BYTES(name) unsigned char* const name = emulated::shared_memory()

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

using Body = void (*)(void*);  // one thread's run of a kernel, from its packed arguments

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, Body body, void* arguments);
unsigned char* shared_memory();
void set_order(int order);  // 0 forwards, 1 backwards, else shuffled by this seed
void wait_for_block();
int vote_of_block(int predicate);  // whether any thread's is not 0
// Waits until every lane of `mask` that exists has come, twice: around an exchange of 8 bytes.
void exchange(unsigned mask, uint64_t mine, uint64_t (&all)[32]);
unsigned lane();

template <typename T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  uint64_t all[32];
  exchange(mask, bits_of(value), all);
  return source < 0 || source > 31 ? value : from_bits<T>(all[source]);
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait_for_block(); }
inline int __syncthreads_or(int predicate) { return emulated::vote_of_block(predicate); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  uint64_t all[32];
  emulated::exchange(mask, 0, all);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  const int mine = static_cast<int>(emulated::lane()), other = mine ^ flip;
  return emulated::shuffle(mask, value, other / width == mine / width ? other : mine);
}

// Blocks and fibers run one at a time, so an ordinary read and write cannot be torn.
template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}

inline float __expf(float x) { return std::exp(x); }
inline uint32_t __float_as_uint(float x) {
  return emulated::from_bits<uint32_t>(emulated::bits_of(x));
}
inline float __uint_as_float(uint32_t x) {
  return emulated::from_bits<float>(emulated::bits_of(x));
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<uint32_t>(both >> (by & 31));
}
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename... Wanted, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...),
                               Given&&... given) {
  std::pair<void (*)(Wanted...), std::tuple<Wanted...>> call{
      kernel, std::tuple<Wanted...>(std::forward<Given>(given)...)};
  const auto body = [](void* packed) {
    const auto& [run, arguments] = *static_cast<decltype(call)*>(packed);
    std::apply(run, arguments);
  };
  emulated::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, body, &call);
  return cudaSuccess;
}
