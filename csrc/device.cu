// CUDA's own word on runtime, driver and devices; loads and answers on a machine that has neither.
#include <cuda_runtime_api.h>

extern "C" void vosengine_cuda_versions(int* runtime, int* driver, int* devices) {
  cudaRuntimeGetVersion(runtime);
  if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
  if (cudaGetDeviceCount(devices) != cudaSuccess) *devices = 0;
  cudaGetLastError();  // "no driver" is an answer here; leave no error behind for the next caller
}
