// Passes of fit_target over the samples: scores of a 3x3 kernel, and the gradient by that kernel.
// Included by fit_target_cpu.cpp once per instruction set; it has no include guard for that reason.

// Register tiles: 9 taps x VECTORS accumulators on the way forward, 9 x CHANNELS on the way back.
// All nine taps share each load of a sample: its conversion to double costs as much as two FMAs.
constexpr int VECTORS = VOS_WIDTH == 16 ? 2 : 1;
constexpr int CHANNELS = VOS_WIDTH == 16 ? 2 : 1;
constexpr int64_t TILE = VECTORS * LANES;
constexpr int64_t SPAN = 64;           // positions projected per piece of work
constexpr int64_t CHANNEL_BLOCK = 32;  // channels of a SPAN per pass, which stay in cache
constexpr int64_t BLOCK = 256;         // positions of the nine planes, which stay in cache
constexpr int64_t GROUP = 16;          // channels correlated per piece of work, if items are few
constexpr int64_t MARGIN = 8;          // doubles before the planes
constexpr int64_t COLUMNS = 64;  // columns of [9, channels] or [maps, channels] per piece of work

// One sample with a weight above 0.
struct Item {
  int64_t track;
  const float* features;
  const float* bands;
  const float* targets;
  double weight;
  double* gradient;  // [9, channels]: its contribution to the track's
};

// Conjugate-gradient state of one track. A vector is [maps, 9] followed by [maps, channels].
struct Track {
  double *weights, *solution, *direction, *product;
  double *residuals, *residual;  // of all iterations so far, and the last one
  double* taps;                  // [channels, 9]: both layers, or a change of both, as one kernel
  double* gradient;              // [9, channels]: by that kernel, summed over the items
  double *rho_parts, *cross_parts, *curvature_parts;  // [maps]
  double *norms, *shares;  // [most]: of the residuals, and the projections of the next one on them
  double* share_parts;     // [maps, most]
  int64_t turn;            // iterations so far
  double rho, alpha, beta;
  double least;  // rho at which the track has converged
  bool ended;
  int64_t first, end;  // its items
};

// Scratch of one item: planes [9, pitch] after MARGIN, and a grid of scores [height + 2, width + 2]
// with a border of 0.
struct Scratch {
  double *planes, *scores;
};

struct Plan {
  FitTarget call;
  bool joint;
  int64_t size;       // of a vector
  int64_t most;       // iterations of a Gauss-Newton step
  int64_t positions;  // height * width, at least TILE: features beyond the grid are 0
  int64_t pitch;      // of a plane: a multiple of the cache line, greater than the positions
  int64_t channel_stride;
  int64_t count;  // of items
  Track* tracks;
  Item* items;
  Scratch* kept;  // one per item if threads share items, else null
};

// planes[t][i] (+)= sum over c of taps[c][t] * features[c][i] for TILE positions.
VOS_INLINE void project_tile(const Plan& plan, const double* taps, const float* features,
                             int64_t channels, bool first, double* planes) {
  vdouble sum[9][VECTORS];
  for (int t = 0; t < 9; ++t)
    for (int v = 0; v < VECTORS; ++v)
      sum[t][v] = first ? vdouble{} : load(planes + t * plan.pitch + v * LANES);
  for (int64_t c = 0; c < channels; ++c, taps += 9, features += plan.channel_stride) {
    vdouble value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) value[v] = widen(features + v * LANES);
    for (int t = 0; t < 9; ++t)
      for (int v = 0; v < VECTORS; ++v) sum[t][v] += value[v] * taps[t];
  }
  for (int t = 0; t < 9; ++t)
    for (int v = 0; v < VECTORS; ++v) store(planes + t * plan.pitch + v * LANES, sum[t][v]);
}

// The same for consecutive tiles. The channels of a block lie in different memory pages, which
// hardware does not prefetch: every tile prefetches a part of the next block.
static void project_tiles(const Plan& plan, const Item& item, int64_t at, int64_t tiles,
                          double* planes) {
  const int64_t channels = plan.call.channels, share = (CHANNEL_BLOCK + tiles - 1) / tiles;
  const double* taps = plan.tracks[item.track].taps;
  for (int64_t c = 0; c < channels; c += CHANNEL_BLOCK) {
    const int64_t left = channels - c, count = left < CHANNEL_BLOCK ? left : CHANNEL_BLOCK;
    const float* features = item.features + c * plan.channel_stride + at;
    const float* next = left > CHANNEL_BLOCK ? features + CHANNEL_BLOCK * plan.channel_stride
                                             : item.features + at + tiles * TILE;
    for (int64_t n = 0; n < tiles; ++n) {
      for (int64_t k = n * share; k < (n + 1) * share; ++k)
        for (int64_t i = 0; i < tiles * TILE; i += 16)
          __builtin_prefetch(next + k * plan.channel_stride + i);
      project_tile(plan, taps + c * 9, features + n * TILE, count, c == 0, planes + at + n * TILE);
    }
  }
}

// gradient[t][c] = sum over i of planes[t][i] * features[c][i] for some channels.
static void correlate_channels(const Plan& plan, const Item& item, const double* planes,
                               int64_t begin, int64_t end) {
  const int64_t channels = plan.call.channels, whole = plan.positions / LANES * LANES;
  for (int64_t block = 0; block < plan.positions; block += BLOCK) {
    const int64_t stop = block + BLOCK < plan.positions ? block + BLOCK : plan.positions;
    for (int64_t c = begin; c < end; c += CHANNELS) {
      const float* from[CHANNELS];
      for (int k = 0; k < CHANNELS; ++k)
        from[k] = item.features + (c + k < end ? c + k : end - 1) * plan.channel_stride;
      vdouble sum[9][CHANNELS] = {};
      for (int64_t i = block; i < stop; i += LANES) {
        const int64_t at = i < whole ? i : plan.positions - LANES;  // see spread_errors
        vdouble value[CHANNELS];
        for (int k = 0; k < CHANNELS; ++k) value[k] = widen(from[k] + at);
        for (int t = 0; t < 9; ++t) {
          const vdouble plane = load(planes + t * plan.pitch + i);
          for (int k = 0; k < CHANNELS; ++k) sum[t][k] += plane * value[k];
        }
      }
      for (int k = 0; k < CHANNELS && c + k < end; ++k)
        for (int t = 0; t < 9; ++t) {
          double* to = item.gradient + t * channels + c + k;
          *to = (block ? *to : 0) + sum_of(sum[t][k]);
        }
    }
  }
}

// Zeros the columns of a plane that a tap shifts off the grid (the last or the first) and the
// elements after its end, so that reads beyond the ends of a row give 0.
static void close_plane(const Plan& plan, int64_t t, double* plane) {
  const int64_t height = plan.call.height, width = plan.call.width;
  memset(plane + height * width, 0, sizeof(double) * (plan.pitch - height * width));
  if (t % 3 == 1) return;
  for (int64_t y = 0; y < height; ++y) plane[y * width + (t % 3 == 0 ? width - 1 : 0)] = 0;
}

// Padded grid of scores: the sum of all planes, each shifted by its tap.
static void gather_scores(const Plan& plan, double* planes, double* scores) {
  const int64_t height = plan.call.height, width = plan.call.width, row = width + 2;
  planes[-1] = 0;
  for (int64_t t = 0; t < 9; ++t) close_plane(plan, t, planes + t * plan.pitch);
  for (int64_t y = 0; y < height; ++y) {
    const int64_t first = y > 0 ? 0 : 3, end = y + 1 < height ? 9 : 6;
    const double* from[9];
    for (int64_t t = first; t < end; ++t)
      from[t] = planes + t * plan.pitch + (y + t / 3 - 1) * width + t % 3 - 1;
    double* to = scores + (y + 1) * row + 1;
    int64_t x = 0;
    for (; x + LANES <= width; x += LANES) {
      vdouble sum{};
      for (int64_t t = first; t < end; ++t) sum += load(from[t] + x);
      store(to + x, sum);
    }
    for (; x < width; ++x) {
      double sum = 0;
      for (int64_t t = first; t < end; ++t) sum += from[t][x];
      to[x] = sum;
    }
  }
}

// Writes a (N s - b), or a N s, [height, width], to the plane of the middle tap.
static void weigh_scores(const Plan& plan, const Item& item, bool with_targets,
                         const double* scores, double* errors) {
  const int64_t height = plan.call.height, width = plan.call.width, row = width + 2;
  for (int64_t y = 0; y < height; ++y) {
    const double* near = scores + y * row;
    const float* bands = item.bands + y * width;
    const float* targets = item.targets + y * width;
    double* to = errors + y * width;
    int64_t x = 0;
    for (; x + LANES <= width; x += LANES) {
      vdouble sum = with_targets ? -widen(targets + x) : vdouble{};
      for (int64_t k = 0; k < 9; ++k)
        sum +=
            widen(bands + k * plan.call.band_stride[2] + x) * load(near + k / 3 * row + k % 3 + x);
      store(to + x, sum * item.weight);
    }
    for (; x < width; ++x) {
      double sum = with_targets ? -targets[x] : 0;
      for (int64_t k = 0; k < 9; ++k)
        sum += static_cast<double>(bands[k * plan.call.band_stride[2] + x]) *
               near[k / 3 * row + k % 3 + x];
      to[x] = sum * item.weight;
    }
  }
}

// Transpose of gather_scores, from the plane of the middle tap. If the positions are not a multiple
// of the vector length, a plane's last vector covers the last LANES positions, with 0 for those
// that preceding vectors cover.
static void spread_errors(const Plan& plan, double* planes) {
  const int64_t cells = plan.call.height * plan.call.width;
  const int64_t whole = plan.positions / LANES * LANES, beyond = plan.positions - whole;
  const double* errors = planes + 4 * plan.pitch;
  const int64_t order[] = {0, 1, 2, 3, 5, 6, 7, 8, 4};
  for (const int64_t t : order) {
    double* plane = planes + t * plan.pitch;
    const int64_t moved = (t / 3 - 1) * plan.call.width + t % 3 - 1;
    const int64_t before = moved > 0 ? moved : 0, after = moved < 0 ? -moved : 0;
    const int64_t count = cells - before - after;
    if (t != 4) memset(plane, 0, sizeof(double) * cells);
    if (t != 4 && count > 0) memcpy(plane + before, errors + after, sizeof(double) * count);
    close_plane(plan, t, plane);
    if (beyond) {
      double* last = plane + whole;
      memmove(last + LANES - beyond, last, sizeof(double) * beyond);
      memset(last, 0, sizeof(double) * (LANES - beyond));
    }
  }
}

static int64_t spans_of(const Plan& plan) {
  return plan.positions < SPAN ? 1 : plan.positions / SPAN;
}

// One span of an item. The last span includes the remainder: its last tile ends with the positions
// and recomputes some of them.
static void project_item(const Plan& plan, const Item& item, int64_t span, double* planes) {
  const int64_t begin = span * SPAN;
  const int64_t end = span + 1 < spans_of(plan) ? begin + SPAN : plan.positions;
  project_tiles(plan, item, begin, (end - begin) / TILE, planes);
  if ((end - begin) % TILE) project_tiles(plan, item, end - TILE, 1, planes);
}

// Turns nine planes of products into nine planes of errors.
static void turn_item(const Plan& plan, const Item& item, bool with_targets, const Scratch& at) {
  gather_scores(plan, at.planes, at.scores);
  weigh_scores(plan, item, with_targets, at.scores, at.planes + 4 * plan.pitch);
  spread_errors(plan, at.planes);
}

// Gradient of every track by its taps: X' a (N s - b), or X' a N s, where s are the taps' scores.
// If items are many, a thread processes whole items, so that a sample is read from memory once; if
// few, as in a first frame, all threads share each item.
static void visit_items(const Plan& plan, bool with_targets, const Scratch& own) {
  const int64_t spans = spans_of(plan), columns = 9 * plan.call.channels;
  const int64_t channels = plan.call.channels, groups = (channels + GROUP - 1) / GROUP;
  if (plan.kept == nullptr) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < plan.count; ++n) {
      const Item& item = plan.items[n];
      for (int64_t span = 0; span < spans; ++span) project_item(plan, item, span, own.planes);
      turn_item(plan, item, with_targets, own);
      correlate_channels(plan, item, own.planes, 0, channels);
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
        correlate_channels(plan, plan.items[n], plan.kept[n].planes, g * GROUP,
                           g + 1 < groups ? (g + 1) * GROUP : channels);
  }
#pragma omp for collapse(2) schedule(static)
  for (int64_t k = 0; k < plan.call.tracks; ++k)
    for (int64_t begin = 0; begin < columns; begin += COLUMNS) {
      const Track& track = plan.tracks[k];
      const int64_t count = columns - begin < COLUMNS ? columns - begin : COLUMNS;
      double total[COLUMNS] = {};
      for (int64_t n = track.first; n < track.end; ++n)
        for (int64_t i = 0; i < count; ++i) total[i] += plan.items[n].gradient[begin + i];
      for (int64_t i = 0; i < count; ++i) track.gradient[begin + i] = total[i];
    }
}

// taps = projection' kernel (+ projection2' kernel2) for the channels from `begin` to `end`.
static void compose_layers(const Plan& plan, const double* kernel, const double* projection,
                           const double* kernel2, const double* projection2, int64_t begin,
                           int64_t end, double* taps) {
  const int64_t channels = plan.call.channels, maps = plan.call.maps;
  for (int64_t c = begin; c < end;) {
    const bool many = c + LANES <= end;
    vdouble sum[9] = {};
    for (int64_t d = 0; d < maps; ++d) {
      const double* from = projection + d * channels + c;
      const vdouble value = many ? load(from) : *from - vdouble{};
      for (int t = 0; t < 9; ++t) sum[t] += value * kernel[d * 9 + t];
    }
    for (int64_t d = 0; kernel2 && d < maps; ++d) {
      const double* from = projection2 + d * channels + c;
      const vdouble value = many ? load(from) : *from - vdouble{};
      for (int t = 0; t < 9; ++t) sum[t] += value * kernel2[d * 9 + t];
    }
    for (const int64_t stop = many ? c + LANES : c + 1, first = c; c < stop; ++c)
      for (int t = 0; t < 9; ++t) taps[c * 9 + t] = sum[t][c - first];
  }
}

// Taps equivalent to the weights, or to a change of the weights by the product rule.
static void compose_tracks(const Plan& plan, bool change) {
  const FitTarget& call = plan.call;
  const int64_t kernel_size = call.maps * 9;
#pragma omp for collapse(2) schedule(static)
  for (int64_t k = 0; k < call.tracks; ++k)
    for (int64_t begin = 0; begin < call.channels; begin += COLUMNS) {
      const Track& track = plan.tracks[k];
      const double* step = change ? track.direction : track.weights;
      const int64_t end = call.channels - begin < COLUMNS ? call.channels : begin + COLUMNS;
      if (plan.joint)
        compose_layers(plan, track.weights, step + kernel_size, change ? step : nullptr,
                       track.weights + kernel_size, begin, end, track.taps);
      else
        memcpy(track.taps + begin * 9, step + begin * 9, sizeof(double) * 9 * (end - begin));
    }
}

// Row d of the transpose of compose_tracks (of a change), from the gradient by the taps.
static void decompose_row(const Plan& plan, const Track& track, int64_t d) {
  const int64_t channels = plan.call.channels;
  double* kernel = track.product + d * 9;
  if (!plan.joint) {
    for (int64_t t = 0; t < 9; ++t) kernel[t] = track.gradient[t * channels + d];
    return;
  }
  const int64_t from = plan.call.maps * 9 + d * channels;
  const double *taps = track.weights + d * 9, *projection = track.weights + from;
  double* out = track.product + from;
  vdouble sum[9] = {};
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) {
    const vdouble weight = load(projection + c);
    vdouble total{};
    for (int t = 0; t < 9; ++t) {
      const vdouble value = load(track.gradient + t * channels + c);
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
