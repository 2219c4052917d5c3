// fit_target on the CPU: both layers are combined into one 3x3 kernel of rank `maps`, so that a
// conjugate-gradient iteration costs two products of nine rows with each sample, both while the
// sample is in cache.
#ifndef VOS_ISA

#include "fit_target.h"

#include <cstring>
#include <new>

using vosengine::FitTarget;

#define VOS_BODY "fit_target_cpu.cpp"
#include "for_each_isa.h"

void vosengine::fit_target_cpu(const FitTarget& call) { VOS_DISPATCH(fit_tracks, call); }

#else

#include "fit_target_samples.h"

constexpr double CONVERGED = 1e-28;  // ratio of the squared residual to the first one

// Part of a vector with one ridge: row d of the kernel or of the projection.
struct Part {
  int64_t from, end;
  double ridge;
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
      const double residual = -(track.product[i] + part->ridge * track.weights[i]);
      track.residual[i] = residual;
      track.solution[i] = track.direction[i] = 0;
      track.rho_parts[d] += residual * residual / part->ridge;
    }
}

// direction = residual / ridge + beta direction
static void turn_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  for (const Part* part = parts; part < parts + count; ++part) {
    const double inverse = 1 / part->ridge;
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
    for (; i + LANES <= part->end; i += LANES) {
      const vdouble direction = load(track.direction + i);
      const vdouble product = load(track.product + i) + part->ridge * direction;
      store(track.product + i, product);
      sum += direction * product;
    }
    curvature += sum_of(sum);
    for (; i < part->end; ++i) {
      track.product[i] += part->ridge * track.direction[i];
      curvature += track.direction[i] * track.product[i];
    }
  }
  track.curvature_parts[d] = curvature;
}

// Inner product over a part of two vectors.
static double product_of(const double* a, const double* b, const Part& part) {
  vdouble sum{};
  double rest = 0;
  int64_t i = part.from;
  for (; i + LANES <= part.end; i += LANES) sum += load(a + i) * load(b + i);
  for (; i < part.end; ++i) rest += a[i] * b[i];
  return sum_of(sum) + rest;
}

// into += factor from, over a part
static void add_to(double* into, double factor, const double* from, const Part& part) {
  int64_t i = part.from;
  for (; i + LANES <= part.end; i += LANES)
    store(into + i, load(into + i) + factor * load(from + i));
  for (; i < part.end; ++i) into[i] += factor * from[i];
}

// solution += alpha direction; the next residual = residual - alpha product, and its products with
// all residuals so far
static void move_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  double* next = track.residual + plan.size;
  double* shares = track.share_parts + d * plan.most;
  for (int64_t m = 0; m <= track.turn; ++m) shares[m] = 0;
  for (const Part* part = parts; part < parts + count; ++part) {
    add_to(track.solution, track.alpha, track.direction, *part);
    for (int64_t i = part->from; i < part->end; ++i) next[i] = track.residual[i];
    add_to(next, -track.alpha, track.product, *part);
    for (int64_t m = 0; m <= track.turn; ++m)
      shares[m] += product_of(next, track.residuals + m * plan.size, *part) / part->ridge;
  }
}

// Orthogonalises the next residual against all so far, and computes its products for beta
static void clear_row(const Plan& plan, const Track& track, int64_t d) {
  Part parts[2];
  const int count = parts_of(plan, d, parts);
  double* next = track.residual + plan.size;
  double rho = 0, cross = 0;
  for (const Part* part = parts; part < parts + count; ++part) {
    for (int64_t m = 0; m <= track.turn; ++m)
      add_to(next, -track.shares[m], track.residuals + m * plan.size, *part);
    rho += product_of(next, next, *part) / part->ridge;
    cross += product_of(next, track.residual, *part) / part->ridge;
  }
  track.rho_parts[d] = rho;
  track.cross_parts[d] = cross;
}

static double total_of(const double* parts, int64_t count) {
  double total = 0;
  for (int64_t d = 0; d < count; ++d) total += parts[d];
  return total;
}

// Comparisons with NaN are false: a track with NaN continues, and its result is NaN.
static void start_track(const Plan& plan, Track& track) {
  track.rho = total_of(track.rho_parts, plan.call.maps);
  track.least = CONVERGED * track.rho;
  track.ended = track.rho <= track.least;
  track.beta = 0;
}
static void choose_alpha(const Plan& plan, Track& track) {
  const double curvature = total_of(track.curvature_parts, plan.call.maps);
  if (curvature <= 0) track.ended = true;
  track.alpha = track.ended ? 0 : track.rho / curvature;
}
static void choose_shares(const Plan& plan, Track& track) {
  if (track.ended) return;
  track.norms[track.turn] = track.rho;
  for (int64_t m = 0; m <= track.turn; ++m) {
    double total = 0;
    for (int64_t d = 0; d < plan.call.maps; ++d) total += track.share_parts[d * plan.most + m];
    track.shares[m] = total / track.norms[m];
  }
}
static void choose_beta(const Plan& plan, Track& track) {
  if (track.ended) return;
  track.residual += plan.size;
  ++track.turn;
  const double rho = total_of(track.rho_parts, plan.call.maps);
  const double beta = (rho - total_of(track.cross_parts, plan.call.maps)) / track.rho;
  track.beta = beta < 0 ? 0 : beta;
  track.rho = rho;
  track.ended = rho <= track.least;
}

using RowStep = void (*)(const Plan&, const Track&, int64_t);
using TrackStep = void (*)(const Plan&, Track&);

// Runs one step for all rows of all tracks that have not converged.
static void for_rows(const Plan& plan, RowStep step) {
#pragma omp for collapse(2) schedule(static)
  for (int64_t k = 0; k < plan.call.tracks; ++k)
    for (int64_t d = 0; d < plan.call.maps; ++d)
      if (!plan.tracks[k].ended) step(plan, plan.tracks[k], d);
}
// Runs one step for all tracks.
static void for_tracks(const Plan& plan, TrackStep step) {
#pragma omp for schedule(static)
  for (int64_t k = 0; k < plan.call.tracks; ++k) step(plan, plan.tracks[k]);
}

// One Gauss-Newton step of all tracks; called by all threads of the team.
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
    for_tracks(plan, choose_shares);
    for_rows(plan, clear_row);
    for_tracks(plan, choose_beta);
  }
  for_tracks(plan, [](const Plan& the, Track& track) {
    for (int64_t i = 0; i < the.size; ++i) track.weights[i] += track.solution[i];
    track.ended = false;
    track.residual = track.residuals;
    track.turn = 0;
  });
}

static Plan plan_for(const FitTarget& call) {
  Plan plan{};
  plan.call = call;
  plan.joint = call.projection != nullptr;
  plan.size = call.maps * 9 + (plan.joint ? call.maps * call.channels : 0);
  for (int64_t step = 0; step < call.steps; ++step)
    if (call.iterations[step] > plan.most) plan.most = call.iterations[step];
  const int64_t cells = call.height * call.width;
  plan.positions = cells < TILE ? TILE : cells;
  plan.pitch = (plan.positions / 8 + 1) * 8;
  plan.channel_stride = cells < TILE ? TILE : call.feature_stride[2];
  return plan;
}

// Assigns the arrays of all tracks from one allocation.
static void place_tracks(const Plan& plan, double* from) {
  const FitTarget& call = plan.call;
  for (int64_t k = 0; k < call.tracks; ++k) {
    Track& track = plan.tracks[k];
    track.weights = from;
    track.solution = track.weights + plan.size;
    track.residuals = track.residual = track.solution + plan.size;
    track.direction = track.residuals + (plan.most + 1) * plan.size;
    track.product = track.direction + plan.size;
    track.taps = track.product + plan.size;
    track.gradient = track.taps + 9 * call.channels;
    track.rho_parts = track.gradient + 9 * call.channels;
    track.cross_parts = track.rho_parts + call.maps;
    track.curvature_parts = track.cross_parts + call.maps;
    track.norms = track.curvature_parts + call.maps;
    track.shares = track.norms + plan.most;
    track.share_parts = track.shares + plan.most;
    track.ended = false;
    track.turn = 0;
    from = track.share_parts + call.maps * plan.most;
  }
}

static void load_weights(const Plan& plan) {
  const int64_t kernel_size = plan.call.maps * 9, projection_size = plan.size - kernel_size;
  for (int64_t k = 0; k < plan.call.tracks; ++k) {
    double* weights = plan.tracks[k].weights;
    const float* kernel = plan.call.kernel + k * kernel_size;
    for (int64_t i = 0; i < kernel_size; ++i) weights[i] = kernel[i];
    if (!plan.joint) continue;
    const float* projection = plan.call.projection + k * projection_size;
    for (int64_t i = 0; i < projection_size; ++i) weights[kernel_size + i] = projection[i];
  }
}
static void store_weights(const Plan& plan) {
  const int64_t kernel_size = plan.call.maps * 9, projection_size = plan.size - kernel_size;
  for (int64_t k = 0; k < plan.call.tracks; ++k) {
    const double* weights = plan.tracks[k].weights;
    float* kernel = plan.call.kernel + k * kernel_size;
    for (int64_t i = 0; i < kernel_size; ++i) kernel[i] = static_cast<float>(weights[i]);
    if (!plan.joint) continue;
    float* projection = plan.call.projection + k * projection_size;
    for (int64_t i = 0; i < projection_size; ++i)
      projection[i] = static_cast<float>(weights[kernel_size + i]);
  }
}

// Makes an item per sample of nonzero weight. A grid smaller than TILE is copied into `packed`,
// which is zeroed.
static void place_items(Plan& plan, float* packed, double* gradients) {
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
        memcpy(packed + c * TILE, item.features + c * call.feature_stride[2],
               sizeof(float) * cells);
      item.features = packed;
      packed += call.channels * TILE;
    }
    plan.tracks[k].end = plan.count;
  }
}

static Scratch new_scratch(const Plan& plan) {
  const int64_t planes = MARGIN + 9 * plan.pitch;
  const int64_t scores = (plan.call.height + 2) * (plan.call.width + 2);
  const size_t bytes = sizeof(double) * static_cast<size_t>(planes + scores);
  double* memory = static_cast<double*>(::operator new(bytes, std::align_val_t(64)));
  memset(memory + planes, 0, sizeof(double) * scores);
  return {memory + MARGIN, memory + planes};
}
static void delete_scratch(const Scratch& scratch) {
  ::operator delete(scratch.planes - MARGIN, std::align_val_t(64));
}

static void fit_tracks(const FitTarget& call) {
  Plan plan = plan_for(call);
  const int64_t most = call.tracks * call.samples;
  const bool tiny = call.height * call.width < TILE;
  plan.tracks = new Track[call.tracks];
  plan.items = new Item[most];
  const int64_t each = (5 + plan.most) * plan.size + 18 * call.channels + 3 * call.maps +
                       (2 + call.maps) * plan.most;
  double* vectors = new double[call.tracks * each];
  float* packed = tiny ? new float[most * call.channels * TILE]() : nullptr;
  double* gradients = new double[most * 9 * call.channels];
  place_tracks(plan, vectors);
  place_items(plan, packed, gradients);
  load_weights(plan);
  const bool shared = plan.count < 4 * call.threads;
  const int64_t kept = shared ? plan.count : 0;
  plan.kept = shared ? new Scratch[kept] : nullptr;
  for (int64_t n = 0; n < kept; ++n) plan.kept[n] = new_scratch(plan);
#pragma omp parallel num_threads(call.threads)
  {
    const Scratch own = new_scratch(plan);
    for (int64_t step = 0; step < call.steps; ++step) step_tracks(plan, call.iterations[step], own);
    delete_scratch(own);
  }
  store_weights(plan);
  for (int64_t n = 0; n < kept; ++n) delete_scratch(plan.kept[n]);
  delete[] plan.kept;
  delete[] gradients;
  delete[] packed;
  delete[] vectors;
  delete[] plan.items;
  delete[] plan.tracks;
}

#endif
