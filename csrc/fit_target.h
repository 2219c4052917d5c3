// Gauss-Newton with conjugate gradients for two-layer linear score models; the contract is in
// kernels/fit_target/reference.py. Inputs and outputs are float; everything is computed in double.
#pragma once

#include <cstdint>

namespace vosengine {

struct FitTarget {
  const float* features;  // element (k, j, c, cell) at features + k*s0 + j*s1 + c*s2 + cell
  int64_t feature_stride[3];
  const float* bands;  // likewise with (k, j, band, cell)
  int64_t band_stride[3];
  const float* targets;  // (k, j, cell)
  int64_t target_stride[2];
  const float* sample_weight;  // (k, j)
  int64_t weight_stride[2];
  float* kernel;      // [tracks, maps, 9], fitted in place
  float* projection;  // [tracks, maps, channels], likewise, or null: features are maps
  int64_t tracks, samples, channels, height, width, maps;
  const int64_t* iterations;  // conjugate-gradient iterations of each Gauss-Newton step
  int64_t steps;
  double projection_ridge, kernel_ridge;
  int threads;
};

void fit_target_cpu(const FitTarget& call);

}  // namespace vosengine
