// deform_conv on the CPU: blocks of a few dozen output pixels are sampled into columns that stay in
// the L2 cache, then multiplied by the packed weights.
#ifndef VOS_ISA

#include "deform_conv.h"

#include <cstring>
#include <new>
#include <numeric>

using vosengine::DeformConv;

// Allocates floats aligned to a cache line, so that no vector of a packed pixel crosses a line.
static float* new_floats(int64_t count) {
  return new (std::align_val_t(64)) float[static_cast<size_t>(count)];
}
static void delete_floats(float* floats) { operator delete[](floats, std::align_val_t(64)); }

static int64_t common_divisor(int64_t a, int64_t b) { return std::gcd(a, b); }

#define VOS_BODY "deform_conv_cpu.cpp"
#include "for_each_isa.h"

void vosengine::deform_conv_cpu(const DeformConv& call) { VOS_DISPATCH(convolve, call); }

#else

#include "multiply.h"

// Border of zeros around the packed image. Positions are clamped to [-2, size], so that both
// neighbours of one beyond the image lie in the margin.
constexpr int64_t MARGIN = 2;
constexpr int64_t COLUMNS = 32768;  // floats in the columns of a block of pixels: 128 KiB
constexpr int64_t MOST_PIXELS = 96;
constexpr int64_t BLOCK = 256;  // rows of a panel of weights per product

// A section is a set of channels that share both an offset group and a convolution group. A pixel's
// column is [sections, taps, section], so that the part of a group is contiguous.
struct Plan {
  int64_t taps, plane;           // plane: output pixels of an image
  int64_t side;                  // channels of an offset group
  int64_t section;               // channels of a section
  int64_t packed_width, packed;  // pixels of a packed row, of a packed plane
  int64_t pixels, pitch;         // of a block: its size, and floats from column to column
  int64_t depth, outputs;        // of a group: rows and columns of its matrix
  int64_t panels, block;         // of that matrix: panels of SPAN columns; rows per product
};

static Plan plan_for(const DeformConv& call) {
  Plan plan;
  plan.taps = call.kernel[0] * call.kernel[1];
  plan.plane = call.out_height * call.out_width;
  plan.side = call.channels / call.offset_groups;
  plan.section = common_divisor(plan.side, call.channels / call.groups);
  plan.packed_width = call.width + 2 * MARGIN;
  plan.packed = plan.packed_width * (call.height + 2 * MARGIN);
  plan.pitch = call.channels * plan.taps + 16;  // not a power of two, against cache conflicts
  int64_t pixels = COLUMNS / plan.pitch;
  pixels = pixels > MOST_PIXELS ? MOST_PIXELS : pixels < ROWS ? ROWS : pixels;
  plan.pixels = pixels / ROWS * ROWS;
  plan.depth = call.channels / call.groups * plan.taps;
  plan.outputs = call.outputs / call.groups;
  plan.panels = (plan.outputs + SPAN - 1) / SPAN;
  const int64_t blocks = (plan.depth + BLOCK - 1) / BLOCK;
  plan.block = (plan.depth + blocks - 1) / blocks;
  return plan;
}

// Sampling positions of one tap of one offset group, for every pixel of a block.
struct Samples {
  int32_t cell[MOST_PIXELS + VOS_WIDTH];     // packed pixel at the upper left
  float weight[4][MOST_PIXELS + VOS_WIDTH];  // of the four neighbours, row by row
};

// Scratch of a thread for one block of pixels.
struct Scratch {
  Samples samples;
  float base_y[MOST_PIXELS + VOS_WIDTH], base_x[MOST_PIXELS + VOS_WIDTH];  // of tap (0, 0)
  float* columns;                                                          // [pixels, pitch]
  float* products;  // [pixels, panels * SPAN] of one group
};

// Packs one image with a border of zeros: [offset_groups, packed height, packed width, side].
static void pack_image(const DeformConv& call, const Plan& plan, const float* image, float* out) {
  const int64_t rows = call.height + 2 * MARGIN, row_size = plan.packed_width * plan.side;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < call.offset_groups * rows; ++i) {
    const int64_t group = i / rows, y = i % rows - MARGIN;
    float* row = out + i * row_size;
    if (y < 0 || y >= call.height) {
      memset(row, 0, sizeof(float) * row_size);
      continue;
    }
    memset(row, 0, sizeof(float) * MARGIN * plan.side);
    memset(row + row_size - MARGIN * plan.side, 0, sizeof(float) * MARGIN * plan.side);
    row += MARGIN * plan.side;
    const float* from = image + group * plan.side * call.x_stride[1] + y * call.x_stride[2];
    for (int64_t x = 0; x < call.width; ++x)
      for (int64_t c = 0; c < plan.side; ++c)
        row[x * plan.side + c] = from[c * call.x_stride[1] + x * call.x_stride[3]];
  }
}

// Packs the weights as [groups, panels, depth, SPAN], zero after a group's last output channel.
static void pack_weights(const DeformConv& call, const Plan& plan, float* out) {
  const int64_t sections = plan.depth / plan.taps / plan.section;
#pragma omp for schedule(static) nowait
  for (int64_t i = 0; i < call.groups * plan.panels; ++i) {
    const int64_t group = i / plan.panels, first = i % plan.panels * SPAN;
    float* to = out + i * plan.depth * SPAN;
    for (int64_t s = 0; s < sections; ++s)
      for (int64_t tap = 0; tap < plan.taps; ++tap)
        for (int64_t c = s * plan.section; c < (s + 1) * plan.section; ++c)
          for (int64_t o = first; o < first + SPAN; ++o)
            *to++ = o < plan.outputs
                        ? call.weight[(group * plan.outputs + o) * plan.depth + c * plan.taps + tap]
                        : 0.0f;
  }
}

VOS_INLINE vfloat load_some(const float* from, int64_t count) {
  if (count >= VOS_WIDTH) return load(from);
  vfloat value = {};
  for (int64_t i = 0; i < count; ++i) value[i] = from[i];
  return value;
}

// Splits base + shift into an integer in [-2, size], returned, and a fraction in [0, 1). The base
// is an integer, so the fraction is that of the shift and a large base costs no precision.
VOS_INLINE vfloat split(vfloat base, vfloat shift, float size, vfloat* fraction) {
  const vfloat near = minimum(maximum(shift, -2.0f - base), size - base);  // a NaN becomes -2
  vfloat whole = __builtin_convertvector(__builtin_convertvector(near, vint), vfloat);
  whole = select(whole > near, whole - 1.0f, whole);
  *fraction = near - whole;
  return base + whole;
}

// Computes the cells and weights of tap (i, j) of one offset group for `count` pixels. `shift` and
// `mask` point to the first pixel.
static void locate(const DeformConv& call, const Plan& plan, const float* shift, const float* mask,
                   int64_t i, int64_t j, int64_t count, Scratch* scratch) {
  const float tap_y = i * call.dilation[0], tap_x = j * call.dilation[1];
  Samples& samples = scratch->samples;
  for (int64_t p = 0; p < count; p += VOS_WIDTH) {
    const vfloat shift_y = load_some(shift + p, count - p);
    const vfloat shift_x = load_some(shift + plan.plane + p, count - p);
    const vfloat strength = mask ? load_some(mask + p, count - p) : splat(1.0f);
    vfloat below, right;
    const vfloat y = split(load(scratch->base_y + p) + tap_y, shift_y, call.height, &below);
    const vfloat x = split(load(scratch->base_x + p) + tap_x, shift_x, call.width, &right);
    const vint cell_y = __builtin_convertvector(y, vint) + static_cast<int32_t>(MARGIN);
    const vint cell_x = __builtin_convertvector(x, vint) + static_cast<int32_t>(MARGIN);
    const vint cell = cell_y * static_cast<int32_t>(plan.packed_width) + cell_x;
    memcpy(samples.cell + p, &cell, sizeof(cell));
    const vfloat lost = (shift_y - shift_y) + (shift_x - shift_x);  // 0, or NaN if not finite
    const vfloat lower = strength * below, upper = strength * (1.0f - below);
    store(samples.weight[0] + p, upper * (1.0f - right) + lost);
    store(samples.weight[1] + p, upper * right);
    store(samples.weight[2] + p, lower * (1.0f - right));
    store(samples.weight[3] + p, lower * right);
  }
}

// Half a vector with AVX-512, since groups of 8 channels are common.
constexpr int NARROW = VOS_WIDTH == 16 ? 8 : 4;
using vnarrow = float __attribute__((vector_size(NARROW * 4)));
using vnarrow_unaligned = float __attribute__((vector_size(NARROW * 4), aligned(4), may_alias));

VOS_INLINE vnarrow load_narrow(const float* from) {
  return *reinterpret_cast<const vnarrow_unaligned*>(from);
}

// Samples `channels` contiguous channels for `count` pixels. Inlined, also with constant
// `channels`.
VOS_INLINE void sample(const int64_t channels, const Plan& plan, const float* image,
                       const Samples& samples, int64_t count, float* to) {
  const int64_t below = plan.packed_width * plan.side;
  for (int64_t p = 0; p < count; ++p, to += plan.pitch) {
    const float* a = image + samples.cell[p] * plan.side;
    const float* b = a + plan.side;
    const float* c = a + below;
    const float* d = b + below;
    const float wa = samples.weight[0][p], wb = samples.weight[1][p];
    const float wc = samples.weight[2][p], wd = samples.weight[3][p];
    int64_t i = 0;
    for (; i + VOS_WIDTH <= channels; i += VOS_WIDTH)
      store(to + i, load(a + i) * wa + load(b + i) * wb + load(c + i) * wc + load(d + i) * wd);
    for (; i + NARROW <= channels; i += NARROW)
      *reinterpret_cast<vnarrow_unaligned*>(to + i) =
          load_narrow(a + i) * wa + load_narrow(b + i) * wb + load_narrow(c + i) * wc +
          load_narrow(d + i) * wd;
    for (; i < channels; ++i) to[i] = a[i] * wa + b[i] * wb + c[i] * wc + d[i] * wd;
  }
}

// Samples the columns of `count` pixels from `first` on.
static void sample_block(const DeformConv& call, const Plan& plan, int64_t b, const float* image,
                         int64_t first, int64_t count, Scratch* scratch) {
  for (int64_t p = 0; p < plan.pixels + VOS_WIDTH; ++p) {  // any value beyond `count`
    scratch->base_y[p] = (first + p) / call.out_width * call.stride[0] - call.padding[0];
    scratch->base_x[p] = (first + p) % call.out_width * call.stride[1] - call.padding[1];
  }
  const int64_t sections = plan.side / plan.section;
  for (int64_t group = 0; group < call.offset_groups; ++group)
    for (int64_t tap = 0; tap < plan.taps; ++tap) {
      const int64_t field = (b * call.offset_groups + group) * plan.taps + tap;
      const float* mask = call.mask ? call.mask + field * plan.plane + first : nullptr;
      locate(call, plan, call.offset + 2 * field * plan.plane + first, mask, tap / call.kernel[1],
             tap % call.kernel[1], count, scratch);
      for (int64_t s = 0; s < sections; ++s) {
        const float* from = image + group * plan.packed * plan.side + s * plan.section;
        float* to = scratch->columns + ((group * sections + s) * plan.taps + tap) * plan.section;
        if (plan.section == 8)
          sample(8, plan, from, scratch->samples, count, to);
        else
          sample(plan.section, plan, from, scratch->samples, count, to);
      }
    }
}

constexpr float ONES[] = {1, 1, 1, 1, 1, 1};
static_assert(sizeof(ONES) / sizeof(float) >= ROWS, "one for each row of a tile");

// Computes the output of `count` pixels from `first` on: columns times weights, group by group.
static void multiply_block(const DeformConv& call, const Plan& plan, const float* weights,
                           int64_t first, int64_t count, const Scratch& scratch, float* out) {
  const int64_t width = plan.panels * SPAN;
  for (int64_t group = 0; group < call.groups; ++group) {
    for (int64_t panel = 0; panel < plan.panels; ++panel)
      for (int64_t k = 0; k < plan.depth; k += plan.block)
        for (int64_t p = 0; p < count; p += ROWS)
          multiply_tile(count - p < ROWS ? count - p : ROWS,
                        scratch.columns + p * plan.pitch + group * plan.depth + k, plan.pitch,
                        weights + ((group * plan.panels + panel) * plan.depth + k) * SPAN,
                        plan.depth - k < plan.block ? plan.depth - k : plan.block,
                        scratch.products + p * width + panel * SPAN, width, k ? ONES : nullptr);
    for (int64_t o = 0; o < plan.outputs; ++o) {
      const int64_t channel = group * plan.outputs + o;
      const float bias = call.bias ? call.bias[channel] : 0.0f;
      float* to = out + channel * plan.plane + first;
      for (int64_t p = 0; p < count; ++p) to[p] = scratch.products[p * width + o] + bias;
    }
  }
}

static void convolve(const DeformConv& call) {
  const Plan plan = plan_for(call);
  float* image = new_floats(call.offset_groups * plan.packed * plan.side);
  float* weights = new_floats(call.groups * plan.panels * plan.depth * SPAN);
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    scratch.columns = new_floats(plan.pixels * plan.pitch);
    scratch.products = new_floats(plan.pixels * plan.panels * SPAN);
    pack_weights(call, plan, weights);
    for (int64_t b = 0; b < call.batch; ++b) {
      pack_image(call, plan, call.x + b * call.x_stride[0], image);
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < plan.plane; first += plan.pixels) {
        const int64_t left = plan.plane - first, count = left < plan.pixels ? left : plan.pixels;
        sample_block(call, plan, b, image, first, count, &scratch);
        multiply_block(call, plan, weights, first, count, scratch,
                       call.out + b * call.outputs * plan.plane);
      }
    }
    delete_floats(scratch.columns);
    delete_floats(scratch.products);
  }
  delete_floats(weights);
  delete_floats(image);
}

#endif
