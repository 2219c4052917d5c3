// What every instruction set's read_memory shares; compiled for any processor.
#include "read_memory.h"

namespace vosengine {

template <typename Number>
ReadMemoryOf<Number> group_of(const ReadMemoryOf<Number>& call, int64_t group) {
  ReadMemoryOf<Number> one = call;
  one.query += group * call.query_group;
  one.key += group * call.key_group;
  one.value += group * call.value_group;
  one.out += group * call.sets * call.queries * call.value_channels;
  if (call.bias) one.bias += group * call.positions;
  if (call.length) one.length += group;
  one.groups = 1;
  return one;
}

template ReadMemory group_of(const ReadMemory&, int64_t);
template ReadMemoryBfloat16 group_of(const ReadMemoryBfloat16&, int64_t);

}  // namespace vosengine
