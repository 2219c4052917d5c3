// What fit_target does with the samples: scores by a 3x3 kernel, and the gradient by that kernel.
// Included by fit_target_cpu.cpp once per instruction set; it has no include guard for that reason.

// Register tiles: TAPS x VECTORS accumulators on the way forward, TAPS x CHANNELS on the way back.
constexpr int TAPS = VOS_WIDTH == 16 ? 9 : 3;
constexpr int VECTORS = VOS_WIDTH == 16 ? 3 : 4;
constexpr int CHANNELS = VOS_WIDTH == 16 ? 3 : 4;
constexpr int64_t SPAN = VECTORS * VOS_WIDTH;
constexpr int64_t CHANNEL_BLOCK = 96;
constexpr int64_t COLUMNS = 64;  // of [9, channels] or [maps, channels] in one piece of work

// One sample that counts.
struct Item {
  int64_t track;
  const float* features;
  const float* bands;
  const float* targets;
  float weight;
  float* gradient;  // [9, channels]: its part of the track's
};

// What conjugate gradients hold for one track. A vector is [maps, 9] and then [maps, channels].
struct Track {
  float *weights, *solution, *residual, *direction, *product;
  float* taps;      // [9, channels]: both layers, or a change of them, as one kernel
  float* gradient;  // [9, channels]: by that kernel, summed over the items
  double *rho_parts, *cross_parts, *curvature_parts;  // [maps]
  double rho;
  float alpha, beta;
  bool ended;
  int64_t first, end;  // its items
};

// Where an item is worked on: planes [9, pitch], and grids [2, height + 2, width + 2], 0 around.
struct Scratch {
  float *planes, *grids;
};

struct Plan {
  FitTarget call;
  bool joint;
  int64_t size;       // of a vector
  int64_t positions;  // height * width, but at least SPAN: the features are 0 beyond
  int64_t pitch;      // of a plane: whole vectors
  int64_t channel_stride;
  int64_t count;  // of items
  Track* tracks;
  Item* items;
  Scratch* kept;  // one for each item if threads share an item, else null
};

// planes[t][i] = sum over c of taps[t][c] * features[c][i] for SPAN positions.
VOS_INLINE void project_span(const Plan& plan, const float* taps, const float* features,
                             float* planes) {
  const int64_t channels = plan.call.channels;
  for (int64_t block = 0; block < channels; block += CHANNEL_BLOCK) {
    const int64_t end = channels - block < CHANNEL_BLOCK ? channels : block + CHANNEL_BLOCK;
    for (int t = 0; t < 9; t += TAPS) {
      vfloat sum[TAPS][VECTORS];
      for (int j = 0; j < TAPS; ++j)
        for (int v = 0; v < VECTORS; ++v)
          sum[j][v] = block ? load(planes + (t + j) * plan.pitch + v * VOS_WIDTH) : vfloat{};
      for (int64_t c = block; c < end; ++c) {
        const float* from = features + c * plan.channel_stride;
        vfloat value[VECTORS];
        for (int v = 0; v < VECTORS; ++v) value[v] = load(from + v * VOS_WIDTH);
        if (t == 0)
          for (int64_t ahead = SPAN; ahead < 2 * SPAN; ahead += 16)
            __builtin_prefetch(from + ahead);
        for (int j = 0; j < TAPS; ++j) {
          const vfloat tap = splat(taps[(t + j) * channels + c]);
          for (int v = 0; v < VECTORS; ++v) sum[j][v] += tap * value[v];
        }
      }
      for (int j = 0; j < TAPS; ++j)
        for (int v = 0; v < VECTORS; ++v)
          store(planes + (t + j) * plan.pitch + v * VOS_WIDTH, sum[j][v]);
    }
  }
}

// gradient[t][c] = sum over i of planes[t][i] * features[c][i] for CHANNELS channels from c on;
// past the last channel the last one is done again.
static void correlate_channels(const Plan& plan, const Item& item, const float* planes, int64_t c) {
  const int64_t channels = plan.call.channels;
  const int64_t whole = plan.positions / VOS_WIDTH * VOS_WIDTH;
  const float* from[CHANNELS];
  int64_t column[CHANNELS];
  for (int k = 0; k < CHANNELS; ++k) {
    column[k] = c + k < channels ? c + k : channels - 1;
    from[k] = item.features + column[k] * plan.channel_stride;
  }
  for (int t = 0; t < 9; t += TAPS) {
    vfloat sum[TAPS][CHANNELS] = {};
    for (int64_t i = 0; i < plan.pitch; i += VOS_WIDTH) {
      const int64_t at = i < whole ? i : plan.positions - VOS_WIDTH;  // see spread_errors
      vfloat value[CHANNELS];
      for (int k = 0; k < CHANNELS; ++k) value[k] = load(from[k] + at);
      for (int j = 0; j < TAPS; ++j) {
        const vfloat plane = load(planes + (t + j) * plan.pitch + i);
        for (int k = 0; k < CHANNELS; ++k) sum[j][k] += plane * value[k];
      }
    }
    for (int j = 0; j < TAPS; ++j)
      for (int k = 0; k < CHANNELS; ++k)
        item.gradient[(t + j) * channels + column[k]] = sum_of(sum[j][k]);
  }
}

// A padded grid of scores: each plane moved by its tap, and all added.
static void gather_scores(const Plan& plan, const float* planes, float* scores) {
  const int64_t height = plan.call.height, width = plan.call.width, row = width + 2;
  for (int64_t y = 1; y <= height; ++y) memset(scores + y * row + 1, 0, sizeof(float) * width);
  for (int64_t t = 0; t < 9; ++t) {
    const int64_t dy = t / 3 - 1, dx = t % 3 - 1;
    const int64_t right = dx > 0 ? width - 1 : width, bottom = dy > 0 ? height - 1 : height;
    for (int64_t y = dy < 0 ? 1 : 0; y < bottom; ++y) {
      const float* from = planes + t * plan.pitch + (y + dy) * width + dx;
      float* to = scores + (y + 1) * row + 1;
      for (int64_t x = dx < 0 ? 1 : 0; x < right; ++x) to[x] += from[x];
    }
  }
}

// A padded grid of a (N s - b), or of a N s.
static void weigh_scores(const Plan& plan, const Item& item, bool with_targets, const float* scores,
                         float* errors) {
  const int64_t height = plan.call.height, width = plan.call.width, row = width + 2;
  for (int64_t y = 0; y < height; ++y) {
    float* __restrict to = errors + (y + 1) * row + 1;
    for (int64_t x = 0; x < width; ++x) to[x] = with_targets ? -item.targets[y * width + x] : 0;
    for (int64_t k = 0; k < 9; ++k) {
      const float* neighbour = scores + (y + k / 3) * row + k % 3;
      const float* band = item.bands + k * plan.call.band_stride[2] + y * width;
      for (int64_t x = 0; x < width; ++x) to[x] += band[x] * neighbour[x];
    }
    for (int64_t x = 0; x < width; ++x) to[x] *= item.weight;
  }
}

// The transpose of gather_scores. Where the positions are no whole number of vectors, a plane's
// last vector stands for the last VOS_WIDTH positions, 0 where the vectors before it have them.
static void spread_errors(const Plan& plan, const float* errors, float* planes) {
  const int64_t height = plan.call.height, width = plan.call.width, row = width + 2;
  const int64_t shared = plan.pitch - plan.positions;
  for (int64_t t = 0; t < 9; ++t) {
    float* plane = planes + t * plan.pitch;
    for (int64_t y = 0; y < height; ++y)
      memcpy(plane + y * width, errors + (y + 2 - t / 3) * row + 2 - t % 3, sizeof(float) * width);
    memset(plane + height * width, 0, sizeof(float) * (plan.pitch - height * width));
    if (shared) {
      float* last = plane + plan.pitch - VOS_WIDTH;
      memmove(last + shared, last, sizeof(float) * (VOS_WIDTH - shared));
      memset(last, 0, sizeof(float) * shared);
    }
  }
}

static int64_t spans_of(const Plan& plan) { return (plan.positions + SPAN - 1) / SPAN; }

// One span of an item; the last one may overlap the one before.
static void project_item(const Plan& plan, const Item& item, int64_t span, float* planes) {
  const int64_t last = plan.positions - SPAN;
  const int64_t at = span * SPAN < last ? span * SPAN : last;
  project_span(plan, plan.tracks[item.track].taps, item.features + at, planes + at);
}

// From nine planes of products to nine planes of errors.
static void turn_item(const Plan& plan, const Item& item, bool with_targets, const Scratch& at) {
  float* errors = at.grids + (plan.call.height + 2) * (plan.call.width + 2);
  gather_scores(plan, at.planes, at.grids);
  weigh_scores(plan, item, with_targets, at.grids, errors);
  spread_errors(plan, errors, at.planes);
}

// Every track's gradient by its taps: X' a (N s - b), or X' a N s, where s are the taps' scores.
// Many items: a thread takes whole ones, so that a sample is read from memory once. Few, as in a
// first frame: all threads work on each.
static void visit_items(const Plan& plan, bool with_targets, const Scratch& own) {
  const int64_t spans = spans_of(plan), columns = 9 * plan.call.channels;
  const int64_t groups = (plan.call.channels + CHANNELS - 1) / CHANNELS;
  if (plan.kept == nullptr) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < plan.count; ++n) {
      const Item& item = plan.items[n];
      for (int64_t span = 0; span < spans; ++span) project_item(plan, item, span, own.planes);
      turn_item(plan, item, with_targets, own);
      for (int64_t g = 0; g < groups; ++g) correlate_channels(plan, item, own.planes, g * CHANNELS);
    }
  } else {
#pragma omp for collapse(2) schedule(static)
    for (int64_t n = 0; n < plan.count; ++n)
      for (int64_t span = 0; span < spans; ++span)
        project_item(plan, plan.items[n], span, plan.kept[n].planes);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < plan.count; ++n)
      turn_item(plan, plan.items[n], with_targets, plan.kept[n]);
#pragma omp for collapse(2) schedule(static)
    for (int64_t n = 0; n < plan.count; ++n)
      for (int64_t g = 0; g < groups; ++g)
        correlate_channels(plan, plan.items[n], plan.kept[n].planes, g * CHANNELS);
  }
#pragma omp for collapse(2) schedule(static)
  for (int64_t k = 0; k < plan.call.tracks; ++k)
    for (int64_t begin = 0; begin < columns; begin += COLUMNS) {
      const Track& track = plan.tracks[k];
      const int64_t count = columns - begin < COLUMNS ? columns - begin : COLUMNS;
      double total[COLUMNS] = {};
      for (int64_t n = track.first; n < track.end; ++n)
        for (int64_t i = 0; i < count; ++i) total[i] += plan.items[n].gradient[begin + i];
      for (int64_t i = 0; i < count; ++i) track.gradient[begin + i] = static_cast<float>(total[i]);
    }
}

// taps = kernel' projection (+ kernel2' projection2) for COLUMNS channels from `begin` on.
static void compose_layers(const Plan& plan, const float* kernel, const float* projection,
                           const float* kernel2, const float* projection2, int64_t begin,
                           float* taps) {
  const int64_t channels = plan.call.channels, maps = plan.call.maps;
  const int64_t end = channels - begin < COLUMNS ? channels : begin + COLUMNS;
  int64_t c = begin;
  for (; c + VOS_WIDTH <= end; c += VOS_WIDTH) {
    vfloat sum[9] = {};
    for (int64_t d = 0; d < maps; ++d) {
      const vfloat value = load(projection + d * channels + c);
      for (int t = 0; t < 9; ++t) sum[t] += value * kernel[d * 9 + t];
    }
    for (int64_t d = 0; kernel2 && d < maps; ++d) {
      const vfloat value = load(projection2 + d * channels + c);
      for (int t = 0; t < 9; ++t) sum[t] += value * kernel2[d * 9 + t];
    }
    for (int t = 0; t < 9; ++t) store(taps + t * channels + c, sum[t]);
  }
  for (; c < end; ++c)
    for (int64_t t = 0; t < 9; ++t) {
      float sum = 0;
      for (int64_t d = 0; d < maps; ++d) {
        sum += kernel[d * 9 + t] * projection[d * channels + c];
        if (kernel2) sum += kernel2[d * 9 + t] * projection2[d * channels + c];
      }
      taps[t * channels + c] = sum;
    }
}

// The taps that stand for the weights, or for a change of the weights by the product rule.
static void compose_tracks(const Plan& plan, bool change) {
  const FitTarget& call = plan.call;
  const int64_t kernel_size = call.maps * 9;
#pragma omp for collapse(2) schedule(static)
  for (int64_t k = 0; k < call.tracks; ++k)
    for (int64_t begin = 0; begin < call.channels; begin += COLUMNS) {
      const Track& track = plan.tracks[k];
      const float* step = change ? track.direction : track.weights;
      if (plan.joint) {
        compose_layers(plan, track.weights, step + kernel_size, change ? step : nullptr,
                       track.weights + kernel_size, begin, track.taps);
      } else {
        const int64_t end = call.channels - begin < COLUMNS ? call.channels : begin + COLUMNS;
        for (int64_t c = begin; c < end; ++c)
          for (int64_t t = 0; t < 9; ++t) track.taps[t * call.channels + c] = step[c * 9 + t];
      }
    }
}

// Row d of the transpose of compose_tracks (of a change), from the gradient by the taps.
static void decompose_row(const Plan& plan, const Track& track, int64_t d) {
  const int64_t channels = plan.call.channels;
  float* kernel = track.product + d * 9;
  if (!plan.joint) {
    for (int64_t t = 0; t < 9; ++t) kernel[t] = track.gradient[t * channels + d];
    return;
  }
  const int64_t from = plan.call.maps * 9 + d * channels;
  const float *taps = track.weights + d * 9, *projection = track.weights + from;
  float* out = track.product + from;
  vfloat sum[9] = {};
  int64_t c = 0;
  for (; c + VOS_WIDTH <= channels; c += VOS_WIDTH) {
    const vfloat weight = load(projection + c);
    vfloat total{};
    for (int t = 0; t < 9; ++t) {
      const vfloat value = load(track.gradient + t * channels + c);
      total += value * taps[t];
      sum[t] += value * weight;
    }
    store(out + c, total);
  }
  for (int t = 0; t < 9; ++t) kernel[t] = sum_of(sum[t]);
  for (; c < channels; ++c) {
    out[c] = 0;
    for (int64_t t = 0; t < 9; ++t) {
      out[c] += track.gradient[t * channels + c] * taps[t];
      kernel[t] += track.gradient[t * channels + c] * projection[c];
    }
  }
}
