// Build information for `vosengine doctor`.
#include "device.h"

namespace vosengine {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info;
#ifdef __VERSION__
  info["compiler"] = __VERSION__;
#endif
#ifdef _OPENMP
  info["openmp"] = std::to_string(_OPENMP);
#endif
#ifdef VOSENGINE_CUDA
  int runtime = 0, driver = 0, devices = 0;
  vosengine_cuda_versions(&runtime, &driver, &devices);
  info["cuda_archs"] = VOSENGINE_CUDA;
  info["cuda_runtime"] = std::to_string(runtime);
  info["cuda_driver"] = std::to_string(driver);
  info["cuda_devices"] = std::to_string(devices);
#endif
  return info;
}

}  // namespace vosengine
