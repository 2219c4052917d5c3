// Softmax-weighted mean of memory values for every query position, group by group; the contract is
// in kernels/read_memory/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

struct ReadMemory {
  const float* query;  // element (p, c) at query + p * query_row + c
  const float* key;    // element (g, n, c) at key + g * key_group + n * key_row + c
  const float* value;  // likewise, with strides of its own
  int64_t query_row, key_group, key_row, value_group, value_row;
  const float* bias;      // [groups, positions], or null
  const int32_t* length;  // [groups], or null
  float* out;             // [groups, queries, value_channels]
  int64_t groups, queries, positions, key_channels, value_channels;
  float scale;
  int threads;
};

void read_memory_cpu(const ReadMemory& call);

}  // namespace vosengine
