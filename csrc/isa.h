// Instruction set of the CPU kernels: the widest that the processor supports, or a narrower one on
// request.
#pragma once

#include <string>

// AMX needs a compiler and an assembler that support it, and Linux, which grants use of the tiles.
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
