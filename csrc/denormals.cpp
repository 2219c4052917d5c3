#include "denormals.h"

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace vosengine {

bool flush_denormals([[maybe_unused]] bool flush, [[maybe_unused]] int threads) {
#ifdef __SSE2__
  constexpr unsigned BITS = 0x8040;  // results (FTZ) and arguments (DAZ)
  const bool before = (_mm_getcsr() & BITS) == BITS;
#pragma omp parallel num_threads(threads)
  _mm_setcsr(flush ? _mm_getcsr() | BITS : _mm_getcsr() & ~BITS);
  return before;
#else
  return false;
#endif
}

}  // namespace vosengine
