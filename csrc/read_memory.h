// Softmax-weighted mean of memory values for every query position, by group and set of values; the
// contract is in kernels/read_memory/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct ReadMemory {
  const float* query;  // element (g, p, c) at query + g * query_group + p * query_row + c
  const float* key;    // element (g, n, c) likewise, with strides of its own
  const float* value;  // element (g, s, n, c) likewise
  int64_t query_group, query_row, key_group, key_row, value_group, value_set, value_row;
  const float* bias;      // [groups, positions], or null
  const int32_t* length;  // [groups], or null
  float* out;             // [groups, sets, queries, value_channels]
  int64_t groups, sets, queries, positions, key_channels, value_channels;
  float scale;
  int threads;
};

void read_memory_cpu(const ReadMemory& call);

}  // namespace vosengine
