// group_centres on CUDA in two kernels: the highest peaks of every part of an image, then, in each
// block, the highest of those and the labels of its pixels. There are no counters in device memory:
// nothing is zeroed before, and the result does not depend on the order of blocks.
//
// A peak is encoded as one unique number that grows with its rank: its heat, then its position.
#include "group_centres.h"

#include <cmath>

#include "cuda_launch.h"

namespace vosengine {
namespace {

using Peak = unsigned long long;  // 0 is none

constexpr int THREADS = 256;
constexpr int PIXELS = 4;         // of one thread at a time
constexpr int MOST = 255;         // centres of an image
constexpr int CAPACITY = 768;     // peaks ranked at a time, including those kept so far
constexpr int MOST_BLOCKS = 512;  // per image in the second kernel: each merges all lists

__device__ __forceinline__ Peak peak_of(float heat, unsigned place) {
  const unsigned bits = __float_as_uint(heat + 0.0f);  // -0 equals 0
  const unsigned rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<Peak>(rising) << 32 | ~place;
}

__device__ __forceinline__ unsigned place_of(Peak peak) { return ~static_cast<unsigned>(peak); }

__device__ __forceinline__ float heat_of(Peak peak) {
  const unsigned rising = static_cast<unsigned>(peak >> 32);
  return __uint_as_float(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}

// Peaks that a block collects, in shared memory.
struct Collection {
  Peak offered[CAPACITY];
  Peak best[MOST + 1];  // by rank
  int count;            // of offered peaks, including those without room
};

// Collects the peaks that `offer_all(worst, offer)` offers, keeps the `limit` highest, sorted, and
// returns their number. An offer returns false if there is no room: offer_all then returns and is
// called again once the peaks so far are ranked, of which `worst` is the last (0 if fewer).
template <typename OfferAll>
__device__ __forceinline__ int collect(Collection& into, int limit, OfferAll&& offer_all) {
  if (threadIdx.x == 0) into.count = 0;
  __syncthreads();
  Peak worst = 0;
  for (;;) {
    offer_all(worst, [&](Peak peak) {
      const int place = atomicAdd(&into.count, 1);
      if (place < CAPACITY) into.offered[place] = peak;
      return place < CAPACITY;
    });
    __syncthreads();
    const bool more = into.count > CAPACITY;
    const int count = more ? CAPACITY : into.count, kept = min(count, limit);
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const Peak mine = into.offered[i];
      int rank = 0;
      for (int other = 0; other < count; ++other) rank += into.offered[other] > mine;
      if (rank < limit) into.best[rank] = mine;
    }
    __syncthreads();
    if (!more) return kept;
    for (int i = threadIdx.x; i < kept; i += THREADS) into.offered[i] = into.best[i];
    if (threadIdx.x == 0) into.count = kept;
    worst = kept == limit ? into.best[limit - 1] : 0;
    __syncthreads();
  }
}

struct Division {
  int parts;          // of every image, a block each
  unsigned each;      // pixels of a part
  unsigned of_image;  // pixels
};

// Block `list` of image b writes the highest peaks of its part to peaks[b, list], then a 0.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    find_peaks(const GroupCentresCuda call, const Division division, float cutoff, int radius) {
  VOS_SHARED_BYTES(shared);
  Collection& found = *reinterpret_cast<Collection*>(shared);
  const int64_t b = blockIdx.x / division.parts;
  const unsigned list = blockIdx.x % division.parts;
  const T* image = static_cast<const T*>(call.heatmap) + b * call.heatmap_stride[0];
  const unsigned end = min((list + 1) * division.each, division.of_image);
  unsigned next = list * division.each + threadIdx.x;

  const auto read = [&](int64_t y, int64_t x) {
    return to_float(image[y * call.heatmap_stride[1] + x * call.heatmap_stride[2]]);
  };
  const auto offer_all = [&](Peak worst, auto&& offer) {
    while (next < end) {
      float heat[PIXELS];
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
        const unsigned place = min(next + i * THREADS, division.of_image - 1);
        heat[i] = read(place / call.width, place % call.width);
      }
#pragma unroll 1
      for (int i = 0; i < PIXELS; ++i, next += THREADS) {
        const float mine = i == 0 ? heat[0] : i == 1 ? heat[1] : i == 2 ? heat[2] : heat[3];
        if (next >= end || !(mine > cutoff && mine <= FLT_MAX)) continue;
        const Peak peak = peak_of(mine, next);
        if (peak > worst &&
            is_peak(next / call.width, next % call.width, call.height, call.width, radius, read) &&
            !offer(peak))
          return;
      }
    }
  };
  const int count = collect(found, call.limit, offer_all);
  uint64_t* into = call.peaks + static_cast<int64_t>(blockIdx.x) * call.limit;
  for (int i = threadIdx.x; i < call.limit && i <= count; i += THREADS)
    into[i] = i < count ? found.best[i] : 0;
}

struct Centre {
  float y, x;
};

struct Labelling {
  Collection found;
  Centre centres[MOST];
};

template <typename T>
__device__ __forceinline__ void write_centres(const GroupCentresCuda& call, const Peak* best,
                                              int count, int64_t b) {
  int32_t* centres = call.centres + b * call.limit * 2;
  T* scores = static_cast<T*>(call.scores) + b * call.limit;
  for (int i = threadIdx.x; i < call.limit; i += THREADS) {
    const bool there = i < count;
    const unsigned place = there ? place_of(best[i]) : 0;
    centres[2 * i] = there ? static_cast<int32_t>(place / call.width) : -1;
    centres[2 * i + 1] = there ? static_cast<int32_t>(place % call.width) : -1;
    scores[i] = from_float<T>(there ? heat_of(best[i]) : 0);
  }
}

// Whether four consecutive pixels can be one access, for each of the maps.
struct Packed {
  bool offset, foreground, labels;
};

// Loads four elements of a map; `otherwise` beyond its end.
template <typename T, typename Place>
__device__ __forceinline__ Pack<T, PIXELS> read_quad(const T* map, unsigned first, unsigned end,
                                                     bool packed, T otherwise, Place&& place) {
  if (packed) return *reinterpret_cast<const Pack<T, PIXELS>*>(map + first);
  Pack<T, PIXELS> quad;
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) quad.at[i] = first + i < end ? map[place(i)] : otherwise;
  return quad;
}

template <typename T>
struct Image {
  const T *offset_y, *offset_x;
  const uint8_t* foreground;
  uint8_t* labels;
  unsigned pixels;

  __device__ __forceinline__ Image(const GroupCentresCuda& call, unsigned of_image, int64_t b) {
    offset_y = static_cast<const T*>(call.offset) + b * call.offset_stride[0];
    offset_x = offset_y + call.offset_stride[1];
    foreground = call.foreground + b * call.foreground_stride[0];
    labels = call.labels + b * of_image;
    pixels = of_image;
  }
};

// Label: 0 in the background, else 1 + index of the nearest centre; 1 if no distance is finite.
template <typename T>
__device__ __forceinline__ void label_quad(const GroupCentresCuda& call, const Image<T>& image,
                                           const Packed& packed, const Centre* centres, int count,
                                           unsigned first) {
  unsigned y[PIXELS], x[PIXELS];
  y[0] = first / call.width;
  x[0] = first % call.width;
#pragma unroll
  for (int i = 1; i < PIXELS; ++i) {
    const bool wraps = x[i - 1] + 1 == static_cast<unsigned>(call.width);
    y[i] = y[i - 1] + wraps;
    x[i] = wraps ? 0 : x[i - 1] + 1;
  }
  Pack<uint8_t, PIXELS> label = read_quad<uint8_t>(
      image.foreground, first, image.pixels, packed.foreground, 0,
      [&](int i) { return y[i] * call.foreground_stride[1] + x[i] * call.foreground_stride[2]; });
  if (label.at[0] | label.at[1] | label.at[2] | label.at[3]) {
    const auto place = [&](int i) {
      return y[i] * call.offset_stride[2] + x[i] * call.offset_stride[3];
    };
    const T none = from_float<T>(0);
    const auto down = read_quad<T>(image.offset_y, first, image.pixels, packed.offset, none, place);
    const auto right =
        read_quad<T>(image.offset_x, first, image.pixels, packed.offset, none, place);
    float least[PIXELS];
    int nearest[PIXELS];
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      least[i] = INFINITY;
      nearest[i] = 1;
    }
    for (int c = 0; c < count; ++c) {
      const Centre centre = centres[c];
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
        const float dy = (static_cast<float>(y[i]) - centre.y) + to_float(down.at[i]);
        const float dx = (static_cast<float>(x[i]) - centre.x) + to_float(right.at[i]);
        const float distance = dy * dy + dx * dx;
        nearest[i] = distance < least[i] ? c + 1 : nearest[i];
        least[i] = distance < least[i] ? distance : least[i];
      }
    }
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      label.at[i] = label.at[i] ? static_cast<uint8_t>(nearest[i]) : 0;
  }
  if (packed.labels)
    *reinterpret_cast<Pack<uint8_t, PIXELS>*>(image.labels + first) = label;
  else
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      if (first + i < image.pixels) image.labels[first + i] = label.at[i];
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    label_pixels(const GroupCentresCuda call, int parts, unsigned of_image, const Packed packed) {
  VOS_SHARED_BYTES(shared);
  Labelling& labelling = *reinterpret_cast<Labelling*>(shared);
  const int64_t b = blockIdx.x / parts;
  const unsigned part = blockIdx.x % parts;
  const uint64_t* lists = call.peaks + b * call.lists * call.limit;
  int list = threadIdx.x, next = 0;
  const auto offer_all = [&](Peak worst, auto&& offer) {
    while (list < call.lists) {
      const Peak peak = next < call.limit ? lists[list * call.limit + next] : 0;
      if (peak <= worst) {  // and so is the rest of the list
        list += THREADS;
        next = 0;
      } else if (offer(peak)) {
        ++next;
      } else {
        return;
      }
    }
  };
  const int count = collect(labelling.found, call.limit, offer_all);
  const Peak* best = labelling.found.best;
  if (part == 0) write_centres<T>(call, best, count, b);
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const unsigned place = place_of(best[i]);
    labelling.centres[i] = {static_cast<float>(place / call.width),
                            static_cast<float>(place % call.width)};
  }
  __syncthreads();
  const Image<T> image(call, of_image, b);
  for (unsigned first = (part * THREADS + threadIdx.x) * PIXELS; first < of_image;
       first += parts * THREADS * PIXELS)
    label_quad(call, image, packed, labelling.centres, count, first);
}

// Whether pixels are contiguous and element 4i of every image and channel is aligned to a quad.
bool is_packed(const void* map, size_t element_bytes, const int64_t* strides, int leading,
               const GroupCentresCuda& call) {
  bool whole = reinterpret_cast<uintptr_t>(map) % (PIXELS * element_bytes) == 0;
  for (int i = 0; i < leading; ++i) whole = whole && strides[i] % PIXELS == 0;
  return whole && static_cast<int64_t>(call.height) * call.width % PIXELS == 0 &&
         strides[leading] == call.width && strides[leading + 1] == 1;
}

template <typename T>
void group(const GroupCentresCuda& call) {
  const unsigned pixels = static_cast<unsigned>(call.height) * static_cast<unsigned>(call.width);
  const unsigned of_block = THREADS * PIXELS, whole = (pixels + of_block - 1) / of_block;
  Division division{};
  division.parts = call.lists;
  division.each = (whole + call.lists - 1) / call.lists * of_block;
  division.of_image = pixels;
  const int64_t side = call.height > call.width ? call.height : call.width;
  const int radius = static_cast<int>(call.window / 2 < side ? call.window / 2 : side);
  launch("group_centres", call.target, find_peaks<T>,
         dim3(static_cast<unsigned>(call.batch * call.lists)), dim3(THREADS), sizeof(Collection),
         call, division, cutoff_for(call.threshold), radius);

  const Packed packed{
      is_packed(call.offset, sizeof(T), call.offset_stride, 2, call),
      is_packed(call.foreground, 1, call.foreground_stride, 1, call),
      pixels % PIXELS == 0 && reinterpret_cast<uintptr_t>(call.labels) % PIXELS == 0};
  const int parts = static_cast<int>(whole < MOST_BLOCKS ? whole : MOST_BLOCKS);
  launch("group_centres", call.target, label_pixels<T>,
         dim3(static_cast<unsigned>(call.batch * parts)), dim3(THREADS), sizeof(Labelling), call,
         parts, pixels, packed);
}

}  // namespace

void group_centres_cuda(const GroupCentresCuda& call) {
  if (call.batch == 0) return;
  with_element(call.element, [&](auto element) { group<decltype(element)>(call); });
}

}  // namespace vosengine
