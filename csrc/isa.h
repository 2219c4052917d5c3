// Which instruction set the CPU kernels use: the widest the processor has, or a narrower one asked
// for.
#pragma once

#include <string>

// AMX's kernels want a compiler and an assembler that know it, and Linux, which lends the tiles.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 11
#define VOS_AMX 1
#endif

namespace vosengine {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, amx = 3 };

Isa chosen_isa();
std::string isa_name();
// "auto", "baseline", "avx2", "avx512" or "amx" (AVX-512 with bfloat16, and AMX's tiles of that);
// throws std::invalid_argument for a set the processor lacks.
void choose_isa(const std::string& name);

}  // namespace vosengine
