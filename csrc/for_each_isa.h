// Compiles the file named by VOS_BODY once per instruction set, each in its own namespace.
//
// A kernel's <op>_cpu.cpp has two halves. The first (VOS_ISA not defined) defines itself as
// VOS_BODY, includes this file and selects, by VOS_DISPATCH, the namespace of the widest set that
// the processor supports. The second is the body: functions on vfloat, which the pragma below
// compiles for AVX-512 (16 floats), AVX2 with FMA (8), and the compiler's default target (4).
// Standard headers must be included before this file: a template instantiated inside the
// pragma could replace the portable one at link time and fault on an older processor.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VOS_X86_DISPATCH 1
#endif

#define VOS_ISA baseline
#define VOS_WIDTH 4
namespace baseline {
#include "simd.h"
#include VOS_BODY
}  // namespace baseline
#undef VOS_INLINE
#undef VOS_ISA
#undef VOS_WIDTH

#ifdef VOS_X86_DISPATCH

#define VOS_ISA avx2
#define VOS_WIDTH 8
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#include "simd.h"
#include VOS_BODY
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef VOS_INLINE
#undef VOS_ISA
#undef VOS_WIDTH

#define VOS_ISA avx512
#define VOS_WIDTH 16
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
namespace avx512 {
#include "simd.h"
#include VOS_BODY
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef VOS_INLINE
#undef VOS_ISA
#undef VOS_WIDTH

#endif  // VOS_X86_DISPATCH

#include "isa.h"

#ifdef VOS_X86_DISPATCH
#define VOS_DISPATCH(function, ...)           \
  switch (vosengine::chosen_isa()) {          \
    case vosengine::Isa::amx:                 \
    case vosengine::Isa::avx512:              \
      return avx512::function(__VA_ARGS__);   \
    case vosengine::Isa::avx2:                \
      return avx2::function(__VA_ARGS__);     \
    default:                                  \
      return baseline::function(__VA_ARGS__); \
  }
#else
#define VOS_DISPATCH(function, ...) return baseline::function(__VA_ARGS__)
#endif
