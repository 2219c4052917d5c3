// Softmax-weighted mean of memory values for every query position, by group and set of values; the
// contract is in kernels/read_memory/reference.py.
#pragma once

#include <cstdint>

namespace vosengine {

template <typename Number>
struct ReadMemoryOf {
  const Number* query;  // element (g, p, c) at query + g * query_group + p * query_row + c
  const Number* key;    // element (g, n, c) likewise, with strides of its own
  const Number* value;  // element (g, s, n, c) likewise
  int64_t query_group, query_row, key_group, key_row, value_group, value_set, value_row;
  const float* bias;      // [groups, positions], or null
  const int32_t* length;  // [groups], or null
  Number* out;            // [groups, sets, queries, value_channels]
  int64_t groups, sets, queries, positions, key_channels, value_channels;
  int64_t top_k;  // of read_memory_top_k_cpu alone: 1 or more
  float scale;
  int threads;
};

using ReadMemory = ReadMemoryOf<float>;
using ReadMemoryBfloat16 = ReadMemoryOf<uint16_t>;

// The call for that group alone. Not to be instantiated where code is compiled for one instruction
// set: the linker could take that copy for all of them.
template <typename Number>
ReadMemoryOf<Number> group_of(const ReadMemoryOf<Number>& call, int64_t group);

void read_memory_cpu(const ReadMemory& call);

// Reads the top_k closest positions of every query.
void read_memory_top_k_cpu(const ReadMemory& call);

// On bfloat16, where the processor has AMX; throws std::runtime_error where it was not compiled.
void read_memory_amx(const ReadMemoryBfloat16& call);

}  // namespace vosengine
