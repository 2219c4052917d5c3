// Detects the processor's instruction sets once; tests and benchmarks may select a narrower one.
#include "isa.h"

#include <atomic>
#include <stdexcept>

#ifdef VOS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vosengine {
namespace {

// Whether the processor has AMX bfloat16 tiles, and the system permits this process to use them.
bool has_amx() {
#ifdef VOS_AMX
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool tiles = edx & (1u << 24) && edx & (1u << 22);  // amx-tile, amx-bf16
  if (!tiles || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return false;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // of arch_prctl(2)
  return eax & (1u << 5) /* avx512-bf16 */ &&
         syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

Isa find_widest() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return has_amx() ? Isa::amx : Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa widest() {
  static const Isa found = find_widest();
  return found;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
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
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (name != name_of(isa)) continue;
    if (isa > best)
      throw std::invalid_argument("instruction set " + name + ": this processor has at most " +
                                  name_of(best));
    current() = isa;
    return;
  }
  throw std::invalid_argument(
      "instruction set: wanted auto, baseline, avx2, avx512 or amx, given " + name);
}

}  // namespace vosengine
