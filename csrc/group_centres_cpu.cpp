// group_centres on the CPU. Few cells are above the threshold and most of those have a greater
// neighbour, so each candidate's window is searched from the centre outwards. A bounded heap per
// thread keeps the highest peaks; then one pass over the pixels compares the distances to the
// centres in registers.
#ifndef VOS_ISA

#include "group_centres.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

using vosengine::cutoff_for;
using vosengine::GroupCentres;
using vosengine::is_peak;

namespace {

// One row of pixels, and the centres relative to it.
struct Row {
  const float *offset_y, *offset_x;
  const uint8_t* foreground;
  uint8_t* labels;
  int64_t width, count;   // pixels; centres
  const float* from_y;    // [count], y of the row minus y of the centre
  const float* centre_x;  // [count]
};

}  // namespace

#define VOS_BODY "group_centres_cpu.cpp"
#include "for_each_isa.h"

namespace {

struct Peak {
  float heat;
  int32_t y, x;
};

// Order of the centres: by descending heat, equal ones in reading order.
bool ranks_before(const Peak& a, const Peak& b) {
  if (a.heat != b.heat) return a.heat > b.heat;
  return a.y != b.y ? a.y < b.y : a.x < b.x;
}

// Keeps the `limit` highest of the offered peaks: a heap whose front is the lowest.
void offer(const Peak& peak, int64_t limit, std::vector<Peak>& best) {
  if (static_cast<int64_t>(best.size()) == limit) {
    if (!ranks_before(peak, best.front())) return;
    std::pop_heap(best.begin(), best.end(), ranks_before);
    best.pop_back();
  }
  best.push_back(peak);
  std::push_heap(best.begin(), best.end(), ranks_before);
}

int64_t find_candidates(const GroupCentres& call, const float* row, float cutoff,
                        int32_t* columns) {
  VOS_DISPATCH(find_candidates, call, row, cutoff, columns);
}

void label_row(const Row& row) { VOS_DISPATCH(label_row, row); }

std::vector<Peak> find_peaks(const GroupCentres& call, int64_t b) {
  const float* image = call.heatmap + b * call.heatmap_stride[0];
  const float cutoff = cutoff_for(call.threshold);
  const auto read = [image, &call](int64_t y, int64_t x) {
    return image[y * call.heatmap_stride[1] + x];
  };
  std::vector<Peak> peaks;
#pragma omp parallel num_threads(call.threads)
  {
    std::vector<Peak> best;
    std::vector<int32_t> columns(call.width);
#pragma omp for schedule(static) nowait
    for (int64_t y = 0; y < call.height; ++y) {
      const float* row = image + y * call.heatmap_stride[1];
      const int64_t count = find_candidates(call, row, cutoff, columns.data());
      for (int64_t i = 0; i < count; ++i)
        if (is_peak(y, columns[i], call.height, call.width, call.window / 2, read))
          offer({row[columns[i]], static_cast<int32_t>(y), columns[i]}, call.limit, best);
    }
#pragma omp critical(vosengine_group_centres)
    peaks.insert(peaks.end(), best.begin(), best.end());
  }
  std::sort(peaks.begin(), peaks.end(), ranks_before);
  if (static_cast<int64_t>(peaks.size()) > call.limit) peaks.resize(call.limit);
  return peaks;
}

void write_centres(const GroupCentres& call, const std::vector<Peak>& peaks, int64_t b) {
  int32_t* centres = call.centres + b * call.limit * 2;
  float* scores = call.scores + b * call.limit;
  std::fill_n(centres, call.limit * 2, -1);
  std::fill_n(scores, call.limit, 0.0f);
  for (size_t i = 0; i < peaks.size(); ++i) {
    centres[2 * i] = peaks[i].y;
    centres[2 * i + 1] = peaks[i].x;
    scores[i] = peaks[i].heat;
  }
}

void write_labels(const GroupCentres& call, const std::vector<Peak>& peaks, int64_t b) {
  const int64_t count = peaks.size();
  std::vector<float> centre_x(count);
  for (int64_t c = 0; c < count; ++c) centre_x[c] = static_cast<float>(peaks[c].x);
#pragma omp parallel num_threads(call.threads)
  {
    std::vector<float> from_y(count);
#pragma omp for schedule(dynamic, 16)
    for (int64_t y = 0; y < call.height; ++y) {
      for (int64_t c = 0; c < count; ++c) from_y[c] = static_cast<float>(y - peaks[c].y);
      Row row;
      row.offset_y = call.offset + b * call.offset_stride[0] + y * call.offset_stride[2];
      row.offset_x = row.offset_y + call.offset_stride[1];
      row.foreground =
          call.foreground + b * call.foreground_stride[0] + y * call.foreground_stride[1];
      row.labels = call.labels + (b * call.height + y) * call.width;
      row.width = call.width;
      row.count = count;
      row.from_y = from_y.data();
      row.centre_x = centre_x.data();
      label_row(row);
    }
  }
}

}  // namespace

void vosengine::group_centres_cpu(const GroupCentres& call) {
  for (int64_t b = 0; b < call.batch; ++b) {
    const std::vector<Peak> peaks = find_peaks(call, b);
    write_centres(call, peaks, b);
    write_labels(call, peaks, b);
  }
}

#else

// Pixels that share each load of a centre: two vectors hide the comparison's latency.
constexpr int VECTORS = 2;
constexpr int SPAN = VECTORS * VOS_WIDTH;

VOS_INLINE bool any_of(vint mask) {
  int64_t pairs[VOS_WIDTH / 2], any = 0;
  memcpy(pairs, &mask, sizeof(mask));
  for (int i = 0; i < VOS_WIDTH / 2; ++i) any |= pairs[i];
  return any != 0;
}

// Whether any of SPAN bytes is not 0.
VOS_INLINE bool any_of(const uint8_t* bytes) {
  uint64_t words[SPAN / 8], any = 0;
  memcpy(words, bytes, SPAN);
  for (int i = 0; i < SPAN / 8; ++i) any |= words[i];
  return any != 0;
}

// Writes the columns of the row's finite cells above `cutoff`, ascending, and returns their number.
// Most of those with a greater neighbour on the left or right are left out.
static int64_t find_candidates(const GroupCentres& call, const float* row, float cutoff,
                               int32_t* columns) {
  int64_t count = 0;
  const auto check_one = [&](int64_t x) {
    if (row[x] > cutoff && row[x] <= FLT_MAX) columns[count++] = static_cast<int32_t>(x);
  };
  const vint has_neighbours = vint{} - (call.window > 1);
  check_one(0);
  int64_t x = 1;
  for (; x + VOS_WIDTH < call.width; x += VOS_WIDTH) {
    const vfloat heat = load(row + x), left = load(row + x - 1), right = load(row + x + 1);
    const vint outdone =
        ((left >= heat) & (left <= FLT_MAX)) | ((right > heat) & (right <= FLT_MAX));
    const vint candidate = (heat > cutoff) & (heat <= FLT_MAX) & ~(outdone & has_neighbours);
    if (!any_of(candidate)) continue;
    for (int i = 0; i < VOS_WIDTH; ++i) {
      columns[count] = static_cast<int32_t>(x + i);
      count -= candidate[i];
    }
  }
  for (; x < call.width; ++x) check_one(x);
  return count;
}

// Labels SPAN pixels from x on, with columns `column`: 0 in the background, else 1 + the index of
// the nearest centre. If no distance is finite (NaN, or no centre), the label is 1.
VOS_INLINE void label_span(const Row& row, int64_t x, vfloat column) {
  vfloat least[VECTORS];
  vint nearest[VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    least[v] = splat(INFINITY);
    nearest[v] = vint{} + 1;
  }
  for (int64_t c = 0; c < row.count; ++c)
    for (int v = 0; v < VECTORS; ++v) {
      const vfloat dy = row.from_y[c] + load(row.offset_y + x + v * VOS_WIDTH);
      const vfloat from_x = (column + static_cast<float>(v * VOS_WIDTH)) - row.centre_x[c];
      const vfloat dx = from_x + load(row.offset_x + x + v * VOS_WIDTH);
      const vfloat distance = dy * dy + dx * dx;
      const vint closer = distance < least[v];
      least[v] = select(closer, distance, least[v]);
      nearest[v] = closer ? vint{} + static_cast<int32_t>(c + 1) : nearest[v];
    }
  int32_t chosen[SPAN];
  memcpy(chosen, nearest, sizeof(nearest));
  uint8_t labels[SPAN];
  for (int i = 0; i < SPAN; ++i)
    labels[i] = row.foreground[x + i] ? static_cast<uint8_t>(chosen[i]) : 0;
  memcpy(row.labels + x, labels, SPAN);
}

static void label_row(const Row& row) {
  vfloat lane;
  for (int i = 0; i < VOS_WIDTH; ++i) lane[i] = static_cast<float>(i);
  int64_t x = 0;
  for (; x + SPAN <= row.width; x += SPAN) {
    if (any_of(row.foreground + x))
      label_span(row, x, lane + static_cast<float>(x));
    else
      memset(row.labels + x, 0, SPAN);
  }
  const int64_t left = row.width - x;
  float offset_y[SPAN] = {}, offset_x[SPAN] = {};
  uint8_t foreground[SPAN] = {}, labels[SPAN];
  memcpy(offset_y, row.offset_y + x, sizeof(float) * left);
  memcpy(offset_x, row.offset_x + x, sizeof(float) * left);
  memcpy(foreground, row.foreground + x, left);
  Row rest = row;
  rest.offset_y = offset_y;
  rest.offset_x = offset_x;
  rest.foreground = foreground;
  rest.labels = labels;
  label_span(rest, 0, lane + static_cast<float>(x));
  memcpy(row.labels + x, labels, left);
}

#endif
