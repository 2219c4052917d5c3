// Vectors of VOS_WIDTH floats or half as many doubles, as compiler vector extensions.
// Included by for_each_isa.h once per instruction set, inside that set's namespace; it has no
// include guard for that reason.

using vfloat = float __attribute__((vector_size(VOS_WIDTH * 4)));
using vint = int32_t __attribute__((vector_size(VOS_WIDTH * 4)));
using vfloat_unaligned = float __attribute__((vector_size(VOS_WIDTH * 4), aligned(4), may_alias));

// The same width in bytes, with half as many lanes.
constexpr int LANES = VOS_WIDTH / 2;
using vdouble = double __attribute__((vector_size(VOS_WIDTH * 4)));
using vdouble_unaligned = double __attribute__((vector_size(VOS_WIDTH * 4), aligned(8), may_alias));

#define VOS_INLINE static inline __attribute__((always_inline))

VOS_INLINE vfloat load(const float* from) {
  return *reinterpret_cast<const vfloat_unaligned*>(from);
}
VOS_INLINE void store(float* to, vfloat value) { *reinterpret_cast<vfloat_unaligned*>(to) = value; }
VOS_INLINE vdouble load(const double* from) {
  return *reinterpret_cast<const vdouble_unaligned*>(from);
}
VOS_INLINE void store(double* to, vdouble value) {
  *reinterpret_cast<vdouble_unaligned*>(to) = value;
}
// LANES floats as doubles, element by element, which GCC compiles to one instruction;
// __builtin_convertvector between vectors of two sizes compiles to several.
VOS_INLINE vdouble widen(const float* from) {
#if VOS_WIDTH == 16
  return vdouble{from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7]};
#elif VOS_WIDTH == 8
  return vdouble{from[0], from[1], from[2], from[3]};
#else
  return vdouble{from[0], from[1]};
#endif
}
VOS_INLINE vfloat splat(float value) { return value - vfloat{}; }
VOS_INLINE vfloat select(vint mask, vfloat yes, vfloat no) { return mask ? yes : no; }
VOS_INLINE vfloat maximum(vfloat a, vfloat b) { return a > b ? a : b; }
VOS_INLINE vfloat minimum(vfloat a, vfloat b) { return a < b ? a : b; }

VOS_INLINE float sum_of(vfloat value) {
  float total = 0;
  for (int i = 0; i < VOS_WIDTH; ++i) total += value[i];
  return total;
}
VOS_INLINE double sum_of(vdouble value) {
  double total = 0;
  for (int i = 0; i < LANES; ++i) total += value[i];
  return total;
}
VOS_INLINE float maximum_of(vfloat value) {
  float best = value[0];
  for (int i = 1; i < VOS_WIDTH; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

// e^x to about 2 ulp, on [-87, 88]; smaller x give e^-87 (1.6e-38), larger ones e^88 (1.7e38). A
// NaN stays one: minimum and maximum return their second argument where either is NaN. Cody-Waite
// reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes' expf.
VOS_INLINE vfloat exponential(vfloat x) {
  x = minimum(splat(88.0f), maximum(splat(-87.0f), x));
  const vfloat shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vfloat n = (x * 1.44269504088896341f + shifter) - shifter;
  const vfloat r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vfloat p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vint power = (__builtin_convertvector(n, vint) + 127) << 23;
  return p * (vfloat)power;  // a cast between vectors of one size keeps the bits
}
