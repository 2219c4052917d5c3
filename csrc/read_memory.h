// Attention over a memory: softmax-weighted mean of the values for every query position, by group
// and set of values; the contract is in kernels/read_memory/reference.py.
#pragma once

#include <cstdint>

#include "cuda_target.h"

namespace vosengine {

// Page table of the groups. Without pages group g is page g of the memory.
struct Pages {
  const int32_t* table;  // [groups, columns]: numbers of pages; null without pages
  int64_t columns;       // of the table
  int64_t positions;     // of a page
  int64_t count;         // of pages in the memory; page numbers are clamped to it
};

// Consecutive positions of a group in consecutive rows of one page.
struct Run {
  int64_t page, row, count;
};

template <typename Number>
struct ReadMemoryOf {
  const Number* query;      // element (g, p, c) at query + g * query_group + p * query_row + c
  const int32_t* query_of;  // [groups]: index of a group's query; null: the group's own
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

// The call restricted to its n-th group. This and the next two must not be instantiated in code
// compiled for one instruction set: the linker could use that copy for all.
template <typename Number>
ReadMemoryOf<Number> group_of(const ReadMemoryOf<Number>& call, int64_t n);

// Number of valid positions of the call's first group.
template <typename Number>
int64_t length_of(const ReadMemoryOf<Number>& call);

// The positions of the call's first group from `first` on that lie in one page, at most `most`.
template <typename Number>
Run run_at(const ReadMemoryOf<Number>& call, int64_t first, int64_t most);

// Biases of the call's first group from `first` on, times `factor`.
template <typename Number>
void copy_bias(const ReadMemoryOf<Number>& call, int64_t first, int64_t count, float factor,
               float* to);

void read_memory_cpu(const ReadMemory& call);

// Reads the top_k closest positions of every query.
void read_memory_top_k_cpu(const ReadMemory& call);

// In bfloat16 on processors with AMX; throws std::runtime_error if compiled without AMX.
void read_memory_amx(const ReadMemoryBfloat16& call);

}  // namespace vosengine
