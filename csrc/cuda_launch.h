// Shared by all .cu files: device and stream, dispatch on the element type, launch errors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_target.h"

// Dynamic shared memory, 16-byte aligned.
#ifndef VOS_SHARED_BYTES
#define VOS_SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace vosengine {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Sets the current device for the lifetime of the object.
class OnDevice {
 public:
  explicit OnDevice(int device) : wanted_(device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != wanted_) check_cuda(cudaSetDevice(wanted_), "cudaSetDevice");
  }
  ~OnDevice() {
    if (before_ != wanted_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0, wanted_;
};

// Launches a kernel on the target's device and stream; throws if the launch fails.
template <typename... Wanted, typename... Given>
void launch(const char* what, const CudaTarget& target, void (*kernel)(Wanted...), dim3 blocks,
            dim3 threads, size_t shared_bytes, Given&&... given) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
  const OnDevice here(target.device);
  if (shared_bytes > 48 << 10)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               what);
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(target.stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...), what);
}

// Calls `body` with a value of the element type.
template <typename Body>
void with_element(Element element, Body&& body) {
  if (element == Element::float16) return body(__half{});
  if (element == Element::bfloat16) return body(__nv_bfloat16{});
  body(float{});
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// N contiguous elements as one access, of up to 16 bytes if aligned.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

}  // namespace vosengine
