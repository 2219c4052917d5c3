// Relaxed assignment of proposals to objects by projected gradient descent; the contract is in
// kernels/match_proposals/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct MatchProposals {
  const float* similarity;  // element (o, m) at similarity + o*stride[0] + m*stride[1]
  int64_t stride[2];
  int64_t objects, proposals;
  int64_t steps, inner;
  float rate;
  bool mean;    // the answer is the mean before projection, each row's maximum alone
  float equal;  // what is that near to the maximum is the maximum too
  float* out;   // [objects, proposals]
};

void match_proposals_cpu(const MatchProposals& call);

}  // namespace vosengine
