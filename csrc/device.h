// Build information of the extension, and CUDA versions and devices of the machine.
#pragma once

#include <map>
#include <string>

namespace vosengine {

// Keys: compiler, openmp, and with CUDA: cuda_runtime, cuda_archs, cuda_driver, cuda_devices.
std::map<std::string, std::string> build_info();

#ifdef VOSENGINE_CUDA
// Runtime version, driver version (0 without a driver) and the number of devices (0 without one).
extern "C" void vosengine_cuda_versions(int* runtime, int* driver, int* devices);
#endif

}  // namespace vosengine
