// Launch target and element type of a CUDA kernel, without CUDA headers.
#pragma once

namespace vosengine {

// Codes as in kernels/gpu.py.
enum class Element : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct CudaTarget {
  int device = 0;
  void* stream = nullptr;
};

}  // namespace vosengine
