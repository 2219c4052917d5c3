// Versions of CUDA's runtime and driver, and the device count; works without a driver or a device.
#include <cuda_runtime_api.h>

extern "C" void vosengine_cuda_versions(int* runtime, int* driver, int* devices) {
  cudaRuntimeGetVersion(runtime);
  if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
  if (cudaGetDeviceCount(devices) != cudaSuccess) *devices = 0;
  cudaGetLastError();  // no driver is a valid result here: clear the error
}
