// Softmax-weighted mean of memory values for every query position, by group and set of values; the
// contract is in kernels/read_memory/reference.py.
#pragma once

#include <cstdint>

#include "cuda_target.h"

namespace vosengine {

// Where the positions of groups lie. Without pages group g is page g of the memory.
struct Pages {
  const int32_t* table;  // [groups, columns]: numbers of pages; null without pages
  int64_t columns;       // of the table
  int64_t positions;     // of a page
  int64_t count;         // of pages in the memory; a number outside it counts as the nearest one
};

// Positions of a group that lie in rows of one page, one behind the other.
struct Run {
  int64_t page, row, count;
};

template <typename Number>
struct ReadMemoryOf {
  const Number* query;      // element (g, p, c) at query + g * query_group + p * query_row + c
  const int32_t* query_of;  // [groups]: which query a group asks with; null: its own
  const void* key;          // element (page, row, c) likewise, with strides of its own
  const void* value;        // element (page, s, row, c) likewise
  Element element;          // of keys and values, where Number is float
  int64_t query_group, query_row, key_page, key_row, value_page, value_set, value_row;
  Pages pages;
  const float* bias;      // [pages, positions of a page], or null
  const int32_t* length;  // [groups], or null
  Number* out;            // [groups, sets, queries, value_channels]
  int64_t group;          // the first one
  int64_t groups, sets, queries, positions, key_channels, value_channels;
  int64_t query_count;  // queries that query_of chooses from
  int64_t top_k;        // of read_memory_top_k_cpu alone: 1 or more
  float scale;
  int threads;

  template <typename T>
  const T* key_at(const Run& run) const {
    return static_cast<const T*>(key) + run.page * key_page + run.row * key_row;
  }
  template <typename T>
  const T* value_at(const Run& run) const {
    return static_cast<const T*>(value) + run.page * value_page + run.row * value_row;
  }
};

using ReadMemory = ReadMemoryOf<float>;
using ReadMemoryBfloat16 = ReadMemoryOf<uint16_t>;

// The call for that group alone, the n-th of the call. As the next two: not to be instantiated
// where code is compiled for one instruction set, since the linker could take that copy for all.
template <typename Number>
ReadMemoryOf<Number> group_of(const ReadMemoryOf<Number>& call, int64_t n);

// How many positions of the call's first group are alive.
template <typename Number>
int64_t length_of(const ReadMemoryOf<Number>& call);

// The positions of the call's first group from `first` on that lie in one page, `most` at most.
template <typename Number>
Run run_at(const ReadMemoryOf<Number>& call, int64_t first, int64_t most);

// Biases of the call's first group from `first` on, times `factor`.
template <typename Number>
void copy_bias(const ReadMemoryOf<Number>& call, int64_t first, int64_t count, float factor,
               float* to);

void read_memory_cpu(const ReadMemory& call);

// Reads the top_k closest positions of every query.
void read_memory_top_k_cpu(const ReadMemory& call);

// On bfloat16, where the processor has AMX; throws std::runtime_error where it was not compiled.
void read_memory_amx(const ReadMemoryBfloat16& call);

}  // namespace vosengine
