// Kernels that the emulator's own test runs: some right, some with a fault that it must show.
#include <pybind11/pybind11.h>

#include "cuda_launch.h"

namespace {

using namespace vosengine;

__global__ void reverse(const float* in, float* out, bool with_barrier) {
  VOS_SHARED_BYTES(bytes);
  float* tile = reinterpret_cast<float*>(bytes);
  const int count = blockDim.x, base = blockIdx.x * count;
  tile[threadIdx.x] = in[base + threadIdx.x];
  if (with_barrier) __syncthreads();
  out[base + threadIdx.x] = tile[count - 1 - threadIdx.x];
}

__global__ void sum_of_warp(const float* in, float* out) {
  float sum = in[threadIdx.x];
  for (int flip = 16; flip > 0; flip /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, flip);
  out[threadIdx.x] = sum;
}

__global__ void half_wait(float* out) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  if (threadIdx.x % 2 == 1) __syncwarp(1u << threadIdx.x | 1u);
  out[threadIdx.x] = 1;
}

__global__ void unset(float* out) {
  VOS_SHARED_BYTES(bytes);
  out[threadIdx.x] = reinterpret_cast<float*>(bytes)[threadIdx.x];
}

__global__ void round_trip(const float* in, float* out, Element element) {
  const float x = in[threadIdx.x];
  out[threadIdx.x] = element == Element::float16 ? to_float(from_float<__half>(x))
                                                 : to_float(from_float<__nv_bfloat16>(x));
}

__global__ void copy_pairs(const float* in, float* out) {
  using Pair = Pack<float, 2>;
  reinterpret_cast<Pair*>(out)[threadIdx.x] = reinterpret_cast<const Pair*>(in)[threadIdx.x];
}

float* at(uintptr_t address) { return reinterpret_cast<float*>(address); }

}  // namespace

void bind_selftest(pybind11::module_& module) {
  module.def("reverse", [](uintptr_t in, uintptr_t out, int blocks, int threads, bool barrier) {
    launch("reverse", {}, reverse, dim3(blocks), dim3(threads), sizeof(float) * threads, at(in),
           at(out), barrier);
  });
  module.def("sum_of_warp", [](uintptr_t in, uintptr_t out, int threads) {
    launch("sum_of_warp", {}, sum_of_warp, dim3(1), dim3(threads), 0, at(in), at(out));
  });
  module.def("copy_pairs", [](uintptr_t in, uintptr_t out) {
    launch("copy_pairs", {}, copy_pairs, dim3(1), dim3(4), 0, at(in), at(out));
  });
  module.def("half_wait", [](uintptr_t out) {
    launch("half_wait", {}, half_wait, dim3(1), dim3(32), 0, at(out));
  });
  module.def("unset", [](uintptr_t out, int threads) {
    launch("unset", {}, unset, dim3(1), dim3(threads), sizeof(float) * threads, at(out));
  });
  module.def("round_trip", [](uintptr_t in, uintptr_t out, int threads, int element) {
    launch("round_trip", {}, round_trip, dim3(1), dim3(threads), 0, at(in), at(out),
           static_cast<Element>(element));
  });
}
