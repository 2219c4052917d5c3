// Marks the inline functions that a CPU kernel and a CUDA kernel share.
#pragma once

#ifdef __CUDACC__
#define VOS_HOST_DEVICE __host__ __device__
#else
#define VOS_HOST_DEVICE
#endif
