// Register-blocked matrix product on panels of SPAN columns. Included by a kernel's body, inside
// the namespace of an instruction set; it has no include guard for that reason.

// The registers (16 with AVX2, 32 with AVX-512) hold a tile of ROWS x VECTORS vectors, one row of b
// and one element of a. More rows would need more pointers than there are general registers.
constexpr int ROWS = VOS_WIDTH == 4 ? 4 : 6;
constexpr int VECTORS = VOS_WIDTH == 16 ? 4 : 2;
constexpr int SPAN = VECTORS * VOS_WIDTH;

// c = keep * c + a b, or c = a b without keep, for `rows` rows of a and one panel b of `depth`
// rows. Inlined with constant `rows`, so that the sums stay in registers. They start at zero in
// every call: one long sum would have several times the rounding error of a sum of blocks.
VOS_INLINE void multiply_rows(const int rows, const float* a, int64_t a_pitch, const float* b,
                              int64_t depth, float* c, int64_t c_pitch, const float* keep) {
  vfloat sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vfloat row[VECTORS];
    for (int v = 0; v < VECTORS; ++v) row[v] = load(b + k * SPAN + v * VOS_WIDTH);
    for (int r = 0; r < rows; ++r) {
      const vfloat number = splat(a[r * a_pitch + k]);
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += number * row[v];
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      float* to = c + r * c_pitch + v * VOS_WIDTH;
      store(to, keep ? load(to) * keep[r] + sum[r][v] : sum[r][v]);
    }
}

static void multiply_tile(int64_t rows, const float* a, int64_t a_pitch, const float* b,
                          int64_t depth, float* c, int64_t c_pitch, const float* keep) {
  if (rows == ROWS) {
    multiply_rows(ROWS, a, a_pitch, b, depth, c, c_pitch, keep);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      multiply_rows(1, a + r * a_pitch, a_pitch, b, depth, c + r * c_pitch, c_pitch,
                    keep ? keep + r : nullptr);
  }
}
