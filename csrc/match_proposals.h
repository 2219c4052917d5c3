// Relaxed assignment of proposals to objects by projected gradient descent; the contract is in
// kernels/match_proposals/reference.py.
#pragma once

#include <cstdint>

#include "cuda_target.h"

namespace vosengine {

struct MatchProposals {
  const float* similarity;  // element (o, m) at similarity + o*stride[0] + m*stride[1]
  int64_t stride[2];
  int64_t objects, proposals;
  int64_t steps, inner;
  float rate;
  bool mean;    // answer "dmm": the mean before projection, only each row's maximum
  float equal;  // values this close to the maximum are kept as well
  float* out;   // [objects, proposals]
};

void match_proposals_cpu(const MatchProposals& call);

struct MatchProposalsCuda {
  const void* similarity;  // as above, of `element`
  int64_t stride[2];
  Element element;
  int objects, proposals;
  int64_t steps, inner;
  float rate;
  bool mean;
  float equal;
  void* out;  // [objects, proposals] of `element`
  CudaTarget target;
};

void match_proposals_cuda(const MatchProposalsCuda& call);

}  // namespace vosengine
