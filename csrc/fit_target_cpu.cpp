// fit_target on the CPU: both layers as one 3x3 kernel of rank `maps`, so that a conjugate-gradient
// iteration costs two products of nine rows with each sample, both while the sample is in cache.
#ifndef VOS_ISA

#include "fit_target.h"

#include <cstring>

using vosengine::FitTarget;

#define VOS_BODY "fit_target_cpu.cpp"
#include "for_each_isa.h"

void vosengine::fit_target_cpu(const FitTarget& call) { VOS_DISPATCH(fit_tracks, call); }

#else

#include "fit_target_samples.h"

using vdouble = double __attribute__((vector_size(VOS_WIDTH * 8)));

VOS_INLINE vdouble widen(vfloat value) { return __builtin_convertvector(value, vdouble); }
VOS_INLINE double sum_of_doubles(vdouble value) {
  double total = 0;
  for (int i = 0; i < VOS_WIDTH; ++i) total += value[i];
  return total;
}

// A stretch of a vector with one ridge: row d of the kernel or of the projection.
struct Part {
  int64_t from, end;
  float ridge;
};

static int parts_of(const Plan& plan, int64_t d, Part* parts) {
  const int64_t from = plan.call.maps * 9 + d * plan.call.channels;
  parts[0] = {d * 9, d * 9 + 9, plan.call.kernel_ridge};
  parts[1] = {from, from + plan.call.channels, plan.call.projection_ridge};
  return plan.joint ? 2 : 1;
}

// residual = -(gradient + ridge weights), solution = direction = 0
static void start_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  decompose_row(plan, track, d);
  track.rho_parts[d] = 0;
  for (const Part* part = parts; part < parts + count; ++part)
    for (int64_t i = part->from; i < part->end; ++i) {
      const float residual = -(track.product[i] + part->ridge * track.weights[i]);
      track.residual[i] = residual;
      track.solution[i] = track.direction[i] = 0;
      track.rho_parts[d] += static_cast<double>(residual) * residual / part->ridge;
    }
}

// direction = residual / ridge + beta direction
static void turn_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  for (const Part* part = parts; part < parts + count; ++part) {
    const float inverse = 1 / part->ridge;
    for (int64_t i = part->from; i < part->end; ++i)
      track.direction[i] = track.residual[i] * inverse + track.beta * track.direction[i];
  }
}

// product = gradient + ridge direction, and <direction, product>
static void curve_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  decompose_row(plan, track, d);
  double curvature = 0;
  for (const Part* part = parts; part < parts + count; ++part) {
    vdouble sum{};
    int64_t i = part->from;
    for (; i + VOS_WIDTH <= part->end; i += VOS_WIDTH) {
      const vfloat direction = load(track.direction + i);
      const vfloat product = load(track.product + i) + part->ridge * direction;
      store(track.product + i, product);
      sum += widen(direction) * widen(product);
    }
    curvature += sum_of_doubles(sum);
    for (; i < part->end; ++i) {
      track.product[i] += part->ridge * track.direction[i];
      curvature += static_cast<double>(track.direction[i]) * track.product[i];
    }
  }
  track.curvature_parts[d] = curvature;
}

// solution += alpha direction, residual -= alpha product, and the products of residuals for beta
static void move_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  double rho = 0, cross = 0;
  for (const Part* part = parts; part < parts + count; ++part) {
    vdouble squares{}, products{};
    double square = 0, product = 0;
    int64_t i = part->from;
    for (; i + VOS_WIDTH <= part->end; i += VOS_WIDTH) {
      const vfloat before = load(track.residual + i);
      const vfloat after = before - track.alpha * load(track.product + i);
      store(track.residual + i, after);
      store(track.solution + i, load(track.solution + i) + track.alpha * load(track.direction + i));
      squares += widen(after) * widen(after);
      products += widen(before) * widen(after);
    }
    for (; i < part->end; ++i) {
      const float before = track.residual[i];
      const float after = before - track.alpha * track.product[i];
      track.residual[i] = after;
      track.solution[i] += track.alpha * track.direction[i];
      square += static_cast<double>(after) * after;
      product += static_cast<double>(before) * after;
    }
    rho += (sum_of_doubles(squares) + square) / part->ridge;
    cross += (sum_of_doubles(products) + product) / part->ridge;
  }
  track.rho_parts[d] = rho;
  track.cross_parts[d] = cross;
}

static double total_of(const double* parts, int64_t count) {
  double total = 0;
  for (int64_t d = 0; d < count; ++d) total += parts[d];
  return total;
}

// A comparison with a NaN is false: a track whose numbers are NaN goes on, and its result is NaN.
static void start_track(const Plan& plan, Track& track) {
  track.rho = total_of(track.rho_parts, plan.call.maps);
  track.ended = track.rho <= 0;
  track.beta = 0;
}
static void choose_alpha(const Plan& plan, Track& track) {
  const double curvature = total_of(track.curvature_parts, plan.call.maps);
  if (curvature <= 0) track.ended = true;
  track.alpha = track.ended ? 0 : static_cast<float>(track.rho / curvature);
}
static void choose_beta(const Plan& plan, Track& track) {
  if (track.ended) return;
  const double rho = total_of(track.rho_parts, plan.call.maps);
  const double beta = (rho - total_of(track.cross_parts, plan.call.maps)) / track.rho;
  track.beta = beta < 0 ? 0 : static_cast<float>(beta);
  track.rho = rho;
  track.ended = rho <= 0;
}

using RowStep = void (*)(const Plan&, const Track&, int64_t);
using TrackStep = void (*)(const Plan&, Track&);

// One step for all rows of all tracks that have not ended, and one for the tracks themselves.
static void for_rows(const Plan& plan, RowStep step) {
#pragma omp for collapse(2) schedule(static)
  for (int64_t k = 0; k < plan.call.tracks; ++k)
    for (int64_t d = 0; d < plan.call.maps; ++d)
      if (!plan.tracks[k].ended) step(plan, plan.tracks[k], d);
}
static void for_tracks(const Plan& plan, TrackStep step) {
#pragma omp for schedule(static)
  for (int64_t k = 0; k < plan.call.tracks; ++k) step(plan, plan.tracks[k]);
}

// One Gauss-Newton step of all tracks; run by all threads together.
static void step_tracks(const Plan& plan, int64_t iterations, const Scratch& own) {
  compose_tracks(plan, false);
  visit_items(plan, true, own);
  for_rows(plan, start_row);
  for_tracks(plan, start_track);
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    for_rows(plan, turn_row);
    compose_tracks(plan, true);
    visit_items(plan, false, own);
    for_rows(plan, curve_row);
    for_tracks(plan, choose_alpha);
    for_rows(plan, move_row);
    for_tracks(plan, choose_beta);
  }
  for_tracks(plan, [](const Plan& the, Track& track) {
    for (int64_t i = 0; i < the.size; ++i) track.weights[i] += track.solution[i];
    track.ended = false;
  });
}

static Plan plan_for(const FitTarget& call) {
  Plan plan{};
  plan.call = call;
  plan.joint = call.projection != nullptr;
  plan.size = call.maps * 9 + (plan.joint ? call.maps * call.channels : 0);
  const int64_t cells = call.height * call.width;
  plan.positions = cells < SPAN ? SPAN : cells;
  plan.pitch = (plan.positions + VOS_WIDTH - 1) / VOS_WIDTH * VOS_WIDTH;
  plan.channel_stride = cells < SPAN ? SPAN : call.feature_stride[2];
  return plan;
}

// Views into one block of floats and one of doubles.
static void place_tracks(const Plan& plan, float* floats, double* doubles) {
  const FitTarget& call = plan.call;
  for (int64_t k = 0; k < call.tracks; ++k) {
    Track& track = plan.tracks[k];
    track.weights = floats;
    track.solution = track.weights + plan.size;
    track.residual = track.solution + plan.size;
    track.direction = track.residual + plan.size;
    track.product = track.direction + plan.size;
    track.taps = track.product + plan.size;
    track.gradient = track.taps + 9 * call.channels;
    floats = track.gradient + 9 * call.channels;
    track.rho_parts = doubles + k * 3 * call.maps;
    track.cross_parts = track.rho_parts + call.maps;
    track.curvature_parts = track.cross_parts + call.maps;
    track.ended = false;
  }
}

static void load_weights(const Plan& plan) {
  const int64_t kernel_size = plan.call.maps * 9, projection_size = plan.size - kernel_size;
  for (int64_t k = 0; k < plan.call.tracks; ++k) {
    float* weights = plan.tracks[k].weights;
    memcpy(weights, plan.call.kernel + k * kernel_size, sizeof(float) * kernel_size);
    if (plan.joint)
      memcpy(weights + kernel_size, plan.call.projection + k * projection_size,
             sizeof(float) * projection_size);
  }
}
static void store_weights(const Plan& plan) {
  const int64_t kernel_size = plan.call.maps * 9, projection_size = plan.size - kernel_size;
  for (int64_t k = 0; k < plan.call.tracks; ++k) {
    const float* weights = plan.tracks[k].weights;
    memcpy(plan.call.kernel + k * kernel_size, weights, sizeof(float) * kernel_size);
    if (plan.joint)
      memcpy(plan.call.projection + k * projection_size, weights + kernel_size,
             sizeof(float) * projection_size);
  }
}

// Samples of weight 0 make no item. A grid smaller than SPAN is copied into `packed`, which is 0.
static void place_items(Plan& plan, float* packed, float* gradients) {
  const FitTarget& call = plan.call;
  const int64_t cells = call.height * call.width;
  for (int64_t k = 0; k < call.tracks; ++k) {
    plan.tracks[k].first = plan.count;
    for (int64_t j = 0; j < call.samples; ++j) {
      const float weight =
          call.sample_weight[k * call.weight_stride[0] + j * call.weight_stride[1]];
      if (weight == 0) continue;
      Item& item = plan.items[plan.count];
      item.track = k;
      item.features = call.features + k * call.feature_stride[0] + j * call.feature_stride[1];
      item.bands = call.bands + k * call.band_stride[0] + j * call.band_stride[1];
      item.targets = call.targets + k * call.target_stride[0] + j * call.target_stride[1];
      item.weight = weight;
      item.gradient = gradients + plan.count++ * 9 * call.channels;
      if (packed == nullptr) continue;
      for (int64_t c = 0; c < call.channels; ++c)
        memcpy(packed + c * SPAN, item.features + c * call.feature_stride[2],
               sizeof(float) * cells);
      item.features = packed;
      packed += call.channels * SPAN;
    }
    plan.tracks[k].end = plan.count;
  }
}

static void fit_tracks(const FitTarget& call) {
  Plan plan = plan_for(call);
  const int64_t most = call.tracks * call.samples, grid = (call.height + 2) * (call.width + 2);
  const bool tiny = call.height * call.width < SPAN;
  plan.tracks = new Track[call.tracks];
  plan.items = new Item[most];
  float* floats = new float[call.tracks * (5 * plan.size + 18 * call.channels)];
  double* doubles = new double[call.tracks * 3 * call.maps];
  float* packed = tiny ? new float[most * call.channels * SPAN]() : nullptr;
  float* gradients = new float[most * 9 * call.channels];
  place_tracks(plan, floats, doubles);
  place_items(plan, packed, gradients);
  load_weights(plan);
  const bool shared = plan.count < 4 * call.threads;
  const int64_t kept = shared ? plan.count : 0;
  float* planes = new float[kept * 9 * plan.pitch];
  float* grids = new float[kept * 2 * grid]();
  plan.kept = shared ? new Scratch[kept] : nullptr;
  for (int64_t n = 0; n < kept; ++n)
    plan.kept[n] = {planes + n * 9 * plan.pitch, grids + n * 2 * grid};
#pragma omp parallel num_threads(call.threads)
  {
    const Scratch own{new float[9 * plan.pitch], new float[2 * grid]()};
    for (int64_t step = 0; step < call.steps; ++step) step_tracks(plan, call.iterations[step], own);
    delete[] own.planes;
    delete[] own.grids;
  }
  store_weights(plan);
  delete[] floats;
  delete[] packed;
  delete[] gradients;
  delete[] planes;
  delete[] grids;
  delete[] doubles;
  delete[] plan.tracks;
  delete[] plan.items;
  delete[] plan.kept;
}

#endif
