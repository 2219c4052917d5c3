// Where a CUDA kernel runs and what its elements are, free of CUDA's own headers.
#pragma once

namespace vosengine {

// The codes are those of kernels/gpu.py.
enum class Element : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct CudaTarget {
  int device = 0;
  void* stream = nullptr;
};

}  // namespace vosengine
