// Functions that read_memory shares over all instruction sets, compiled for any processor.
#include "read_memory.h"

#include <algorithm>

namespace vosengine {
namespace {

int64_t nearest(int64_t number, int64_t count) {
  return std::clamp<int64_t>(number, 0, std::max<int64_t>(count - 1, 0));
}

}  // namespace

template <typename Number>
ReadMemoryOf<Number> group_of(const ReadMemoryOf<Number>& call, int64_t n) {
  ReadMemoryOf<Number> one = call;
  const int64_t query = call.query_of ? nearest(call.query_of[n], call.query_count) : n;
  one.query += query * call.query_group;
  one.query_of = nullptr;
  one.out += n * call.sets * call.queries * call.value_channels;
  if (call.length) one.length += n;
  one.group += n;
  one.groups = 1;
  return one;
}

template <typename Number>
int64_t length_of(const ReadMemoryOf<Number>& call) {
  return call.length ? std::clamp<int64_t>(*call.length, 0, call.positions) : call.positions;
}

template <typename Number>
Run run_at(const ReadMemoryOf<Number>& call, int64_t first, int64_t most) {
  const Pages& pages = call.pages;
  if (!pages.table) return {call.group, first, most};
  const int64_t column = first / pages.positions, row = first % pages.positions;
  const int64_t page = nearest(pages.table[call.group * pages.columns + column], pages.count);
  return {page, row, std::min(most, pages.positions - row)};
}

template <typename Number>
void copy_bias(const ReadMemoryOf<Number>& call, int64_t first, int64_t count, float factor,
               float* to) {
  for (int64_t n = 0; n < count;) {
    const Run run = run_at(call, first + n, count - n);
    const float* from = call.bias ? call.bias + run.page * call.pages.positions + run.row : nullptr;
    for (int64_t i = 0; i < run.count; ++i) to[n + i] = from ? from[i] * factor : 0.0f;
    n += run.count;
  }
}

#define VOS_INSTANTIATE(Call)                         \
  template Call group_of(const Call&, int64_t);       \
  template int64_t length_of(const Call&);            \
  template Run run_at(const Call&, int64_t, int64_t); \
  template void copy_bias(const Call&, int64_t, int64_t, float, float*);

VOS_INSTANTIATE(ReadMemory)
VOS_INSTANTIATE(ReadMemoryBfloat16)

}  // namespace vosengine
