// Asks the processor once what it has; tests and benchmarks may ask for less.
#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace vosengine {
namespace {

Isa widest() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

const char* name_of(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

}  // namespace

Isa chosen_isa() { return current().load(std::memory_order_relaxed); }

std::string isa_name() { return name_of(chosen_isa()); }

void choose_isa(const std::string& name) {
  const Isa best = widest();
  if (name == "auto") {
    current() = best;
    return;
  }
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (name != name_of(isa)) continue;
    if (isa > best)
      throw std::invalid_argument("instruction set " + name + ": this processor has at most " +
                                  name_of(best));
    current() = isa;
    return;
  }
  throw std::invalid_argument("instruction set: wanted auto, baseline, avx2 or avx512, given " +
                              name);
}

}  // namespace vosengine
