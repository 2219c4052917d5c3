// pool_regions on the CPU: bilinear sampling on a grid is separable. The few rows of cells that a
// row of bins reads are blended into a strip, vectorised along x; bins are then sums over the cells
// of a strip, each times the vector of its weights in neighbouring bins. No gather is needed.
#ifndef VOS_ISA

#include "pool_regions.h"

#include <cstring>

using vosengine::PooledMaps;
using vosengine::PoolRegions;
using vosengine::read_bin;
using vosengine::SampledAxis;

#define VOS_BODY "pool_regions_cpu.cpp"
#include "for_each_isa.h"

void vosengine::pool_regions_cpu(const PoolRegions& call) { VOS_DISPATCH(pool, call); }

#else

constexpr int ROWS = 7;     // rows of bins that share each load of weights; divides 7, 14 and 28
constexpr int VECTORS = 4;  // vectors of a strip that share each load of a row's weight
constexpr int CHANNELS =
    32;  // channels per item of work, for one region: weights are computed once

struct Plan {
  int64_t most;     // cells that one bin can read along one axis
  int64_t vectors;  // of bins in a row
  int64_t channels, items, widest;
};

// Cells that one region reads in one source, and their weights. One per thread.
struct Window {
  int64_t map, left, width;  // the columns of that map in a strip
  int32_t* row_count;        // [size]
  int32_t* row;              // [size, most]
  float* row_weight;         // likewise
  int32_t* column_count;     // [vectors]
  int32_t* column;           // [vectors, VOS_WIDTH * most], counted from left
  float* column_weight;      // likewise, per column a vector of its weights in the bins
  int32_t* bin;              // [most] of one bin of a row, before they are merged into a vector
  float* bin_weight;
};

static SampledAxis axis_of(const PoolRegions& call, const PooledMaps& source, const double* box,
                           int from, int64_t cells) {
  return vosengine::sampled_axis(box, from, source.pixels, cells, call.size, call.sampling,
                                 call.aligned);
}

// Selects the columns of strips: those that are read, and more to fill the last vector.
static void choose_columns(const PooledMaps& source, int32_t from, int32_t end, Window& window) {
  const int64_t whole = (end - from + VOS_WIDTH - 1) / VOS_WIDTH * VOS_WIDTH;
  window.width = whole < source.width ? whole : source.width;
  window.left = from < source.width - window.width ? from : source.width - window.width;
}

static void plan_columns(const Plan& plan, const SampledAxis& axis, int64_t size,
                         const PooledMaps& source, Window& window) {
  int32_t from = axis.cells, end = 0;
  for (int64_t v = 0; v < plan.vectors; ++v) {
    int32_t* column = window.column + v * VOS_WIDTH * plan.most;
    float* vector = window.column_weight + v * VOS_WIDTH * plan.most * VOS_WIDTH;
    int32_t found = 0;
    for (int64_t lane = 0; lane < VOS_WIDTH && v * VOS_WIDTH + lane < size; ++lane) {
      const int32_t count = read_bin(axis, v * VOS_WIDTH + lane, window.bin, window.bin_weight);
      for (int32_t i = 0; i < count; ++i) {
        const int32_t cell = window.bin[i];
        int32_t at = found - 1;
        while (at >= 0 && column[at] != cell) --at;
        if (at < 0) {
          at = found++;
          column[at] = cell;
          store(vector + at * VOS_WIDTH, vfloat{});
        }
        vector[at * VOS_WIDTH + lane] = window.bin_weight[i];
        from = cell < from ? cell : from;
        end = cell >= end ? cell + 1 : end;
      }
    }
    window.column_count[v] = found;
  }
  choose_columns(source, end > from ? from : 0, end, window);
  for (int64_t v = 0; v < plan.vectors; ++v)
    for (int32_t i = 0; i < window.column_count[v]; ++i)
      window.column[v * VOS_WIDTH * plan.most + i] -= window.left;
}

static void plan_window(const PoolRegions& call, const Plan& plan, const PooledMaps& source,
                        int64_t region, Window& window) {
  int64_t image = call.frame ? call.frame[region] : 0;
  image = image < 0 ? 0 : image >= source.batch ? source.batch - 1 : image;
  window.map = source.per_region ? region : image;
  const double* box = call.boxes + region * 4;
  const SampledAxis y = axis_of(call, source, box, 1, source.height);
  const SampledAxis x = axis_of(call, source, box, 0, source.width);
  for (int64_t i = 0; i < call.size; ++i)
    window.row_count[i] =
        read_bin(y, i, window.row + i * plan.most, window.row_weight + i * plan.most);
  plan_columns(plan, x, call.size, source, window);
}

// strip[x] = sum over the taps of weight * cell, for count <= VECTORS vectors.
VOS_INLINE void blend_vectors(int count, const float* map, int64_t pitch, const int32_t* row,
                              const float* weight, int32_t taps, float* strip) {
  vfloat sum[VECTORS] = {};
  for (int32_t t = 0; t < taps; ++t) {
    const float* from = map + row[t] * pitch;
    for (int v = 0; v < count; ++v) sum[v] += load(from + v * VOS_WIDTH) * weight[t];
  }
  for (int v = 0; v < count; ++v) store(strip + v * VOS_WIDTH, sum[v]);
}

static void blend_rows(const float* map, int64_t pitch, const int32_t* row, const float* weight,
                       int32_t taps, int64_t width, float* strip) {
  int64_t x = 0;
  for (; x + VECTORS * VOS_WIDTH <= width; x += VECTORS * VOS_WIDTH)
    blend_vectors(VECTORS, map + x, pitch, row, weight, taps, strip + x);
  for (; x + 2 * VOS_WIDTH <= width; x += 2 * VOS_WIDTH)
    blend_vectors(2, map + x, pitch, row, weight, taps, strip + x);
  for (; x + VOS_WIDTH <= width; x += VOS_WIDTH)
    blend_vectors(1, map + x, pitch, row, weight, taps, strip + x);
  for (; x < width; ++x) {
    float sum = 0;
    for (int32_t t = 0; t < taps; ++t) sum += map[row[t] * pitch + x] * weight[t];
    strip[x] = sum;
  }
}

// Bins of one channel from its strips [size, width]. A row's last vector extends past its end; the
// excess is overwritten by the next vectors.
static void sum_bins(const Plan& plan, const Window& window, const float* strips, int64_t size,
                     float* bins) {
  for (int64_t first = 0; first < size; first += ROWS)
    for (int64_t v = plan.vectors - 1; v >= 0; --v) {
      const int32_t* column = window.column + v * VOS_WIDTH * plan.most;
      const float* weights = window.column_weight + v * VOS_WIDTH * plan.most * VOS_WIDTH;
      vfloat sum[ROWS] = {};
      for (int32_t i = 0; i < window.column_count[v]; ++i) {
        const vfloat weight = load(weights + i * VOS_WIDTH);
        const float* cell = strips + first * window.width + column[i];
        for (int r = 0; r < ROWS; ++r) sum[r] += weight * cell[r * window.width];
      }
      for (int r = 0; r < ROWS && first + r < size; ++r)
        store(bins + (first + r) * size + v * VOS_WIDTH, sum[r]);
    }
}

static void pool_channel(const PoolRegions& call, const Plan& plan, const PooledMaps& source,
                         const Window& window, int64_t channel, float* strips, float* bins,
                         float* out) {
  const float* map =
      source.maps + window.map * source.stride[0] + channel * source.stride[1] + window.left;
  for (int64_t i = 0; i < call.size; ++i)
    blend_rows(map, source.stride[2], window.row + i * plan.most, window.row_weight + i * plan.most,
               window.row_count[i], window.width, strips + i * window.width);
  sum_bins(plan, window, strips, call.size, bins);
  memcpy(out, bins, sizeof(float) * call.size * call.size);
}

static int64_t blocks_of(const PooledMaps& source) {
  return (source.channels + CHANNELS - 1) / CHANNELS;
}

static Plan plan_for(const PoolRegions& call) {
  Plan plan{};
  plan.most = 2 * call.sampling;
  plan.vectors = (call.size + VOS_WIDTH - 1) / VOS_WIDTH;
  for (int64_t s = 0; s < call.source_count; ++s) {
    const PooledMaps& source = call.sources[s];
    plan.channels += source.channels;
    plan.items += blocks_of(source);
    plan.widest = source.width > plan.widest ? source.width : plan.widest;
  }
  return plan;
}

// An item of work is a block of channels of one source, for one region. Items iterate over regions
// first, whose boxes overlap, while the block's maps are in the cache.
static void pool_item(const PoolRegions& call, const Plan& plan, int64_t region, int64_t item,
                      Window& window, float* strips, float* bins) {
  const PooledMaps* source = call.sources;
  int64_t before = 0;
  for (; item >= blocks_of(*source); ++source) {
    item -= blocks_of(*source);
    before += source->channels;
  }
  plan_window(call, plan, *source, region, window);
  const int64_t from = item * CHANNELS;
  const int64_t end = from + CHANNELS < source->channels ? from + CHANNELS : source->channels;
  float* out = call.out + (region * plan.channels + before) * call.size * call.size;
  for (int64_t c = from; c < end; ++c)
    pool_channel(call, plan, *source, window, c, strips, bins, out + c * call.size * call.size);
}

static void pool(const PoolRegions& call) {
  const Plan plan = plan_for(call);
  const int64_t columns = plan.vectors * VOS_WIDTH * plan.most, rows = call.size * plan.most;
#pragma omp parallel num_threads(call.threads)
  {
    int32_t* ints = new int32_t[call.size + rows + plan.vectors + columns + plan.most];
    float* floats = new float[rows + columns * VOS_WIDTH + plan.most];
    Window window{};
    window.row_count = ints;
    window.row = window.row_count + call.size;
    window.column_count = window.row + rows;
    window.column = window.column_count + plan.vectors;
    window.bin = window.column + columns;
    window.row_weight = floats;
    window.column_weight = window.row_weight + rows;
    window.bin_weight = window.column_weight + columns * VOS_WIDTH;
    float* strips = new float[(call.size + ROWS - 1) / ROWS * ROWS * plan.widest]();
    float* bins = new float[call.size * call.size + VOS_WIDTH];
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < call.regions * plan.items; ++item)
      pool_item(call, plan, item % call.regions, item / call.regions, window, strips, bins);
    delete[] ints;
    delete[] floats;
    delete[] strips;
    delete[] bins;
  }
}

#endif
