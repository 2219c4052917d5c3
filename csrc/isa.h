// Which instruction set the CPU kernels use: the widest the processor has, or a narrower one asked
// for.
#pragma once

#include <string>

namespace vosengine {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

Isa chosen_isa();
std::string isa_name();
// "auto", "baseline", "avx2" or "avx512"; throws std::invalid_argument for a set the processor
// lacks.
void choose_isa(const std::string& name);

}  // namespace vosengine
