// Conversion of rows of keys and values from any dtype to float. Included by a kernel's body after
// multiply.h, inside the namespace of an instruction set; it has no include guard for that reason.

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

VOS_INLINE float float_of_bits(uint32_t bits) {
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}
VOS_INLINE float to_float(float number) { return number; }
VOS_INLINE float to_float(Bfloat16 number) { return float_of_bits(uint32_t{number.bits} << 16); }
VOS_INLINE float to_float(Float16 number) {
  const uint32_t size = number.bits & 0x7fff, bias = 112u << 23;  // between the two exponents
  const uint32_t normal = (size << 13) + (size < 0x7c00 ? bias : 2 * bias);  // or infinite, or NaN
  const float small = static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f;
  const float magnitude = size < 0x400 ? small : float_of_bits(normal);
  return number.bits & 0x8000 ? -magnitude : magnitude;
}

// VOS_WIDTH numbers at once, likewise.
VOS_INLINE vint load_bits(const uint16_t* from) {
  using Bits = uint16_t __attribute__((vector_size(VOS_WIDTH * 2), aligned(2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bits*>(from), vint);
}
VOS_INLINE vfloat load(const Bfloat16* from) { return (vfloat)(load_bits(&from->bits) << 16); }
VOS_INLINE vfloat load(const Float16* from) {
  const vint bits = load_bits(&from->bits), size = bits & 0x7fff;
  const vint normal = (size << 13) + (112 << 23) + ((size >= 0x7c00) & (112 << 23));
  const vfloat small = __builtin_convertvector(size, vfloat) * 0x1p-24f;
  const vint magnitude = size < 0x400 ? (vint)small : normal;
  return (vfloat)(magnitude | (bits & 0x8000) << 16);
}

template <typename T>
static void pack_keys_of(const ReadMemory& call, int64_t first, int64_t count, float* panel) {
  const int64_t alive = count < SPAN ? count : SPAN;
  for (int64_t n = 0; n < alive;) {
    const vosengine::Run run = vosengine::run_at(call, first + n, alive - n);
    const T* from = call.key_at<T>(run);
    for (const int64_t end = n + run.count; n < end; ++n, from += call.key_row)
      for (int64_t c = 0; c < call.key_channels; ++c) panel[c * SPAN + n] = to_float(from[c]);
  }
  for (int64_t c = 0; c < call.key_channels; ++c)
    for (int64_t n = alive > 0 ? alive : 0; n < SPAN; ++n) panel[c * SPAN + n] = 0;
}

// Packs keys of up to SPAN positions from `first` on, transposed; 0 from position `count` on.
static void pack_keys(const ReadMemory& call, int64_t first, int64_t count, float* panel) {
  switch (call.element) {
    case vosengine::Element::float16:
      return pack_keys_of<Float16>(call, first, count, panel);
    case vosengine::Element::bfloat16:
      return pack_keys_of<Bfloat16>(call, first, count, panel);
    default:
      return pack_keys_of<float>(call, first, count, panel);
  }
}
