// The scheduler behind cuda_runtime.h, and the Python module of the emulated CUDA kernels.
#include <pybind11/pybind11.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {
namespace {

constexpr size_t STACK_BYTES = 64 << 10;

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

// One group of lanes that exchange values; a warp may be divided among several masks.
struct Exchange {
  Barrier before, after;
  uint64_t slots[32] = {};
};

using Warp = std::map<unsigned, Exchange>;  // by mask

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  dim3 thread;
  bool done;
};

struct Grid {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned> order;
  std::vector<unsigned char> shared;
  ucontext_t scheduler;
  Barrier block;
  int votes = 0;
  Fiber* running = nullptr;
  Body body = nullptr;
  void* arguments = nullptr;
  unsigned alive = 0;
  bool progress = false;  // whether a fiber of this round passed a barrier or ended
};

Grid grid;
int chosen_order = 0;
std::mutex one_at_a_time;

unsigned index_of(const Fiber& fiber) { return static_cast<unsigned>(&fiber - grid.fibers.data()); }

void enter() {
  grid.body(grid.arguments);
  grid.running->done = true;
  grid.progress = true;
  --grid.alive;
  swapcontext(&grid.running->context, &grid.scheduler);
}

void yield() {
  Fiber* self = grid.running;
  swapcontext(&self->context, &grid.scheduler);
}

// `expected` is asked again after every wait: threads may end in the meantime.
template <typename Expected>
void wait(Barrier& barrier, Expected expected) {
  const unsigned generation = barrier.generation;
  ++barrier.arrived;
  while (barrier.generation == generation) {
    if (barrier.arrived >= expected()) {
      barrier.arrived = 0;
      ++barrier.generation;
      grid.progress = true;
      return;
    }
    yield();
  }
}

unsigned lanes_of(unsigned mask) {
  const unsigned first = index_of(*grid.running) / 32 * 32;
  unsigned count = 0;
  for (unsigned i = 0; i < 32 && first + i < grid.fibers.size(); ++i)
    if ((mask >> i & 1) && !grid.fibers[first + i].done) ++count;
  return count;
}

void start_block() {
  std::fill(grid.shared.begin(), grid.shared.end(), 0xff);  // every float of it is a NaN
  for (auto& warp : grid.warps) warp.clear();
  grid.block = Barrier{};
  grid.votes = 0;
  grid.alive = static_cast<unsigned>(grid.fibers.size());
  for (auto& fiber : grid.fibers) {
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = &grid.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
}

void run_block() {
  start_block();
  while (grid.alive > 0) {
    grid.progress = false;
    for (const unsigned i : grid.order) {
      Fiber& fiber = grid.fibers[i];
      if (fiber.done) continue;
      grid.running = &fiber;
      threadIdx = fiber.thread;
      swapcontext(&grid.scheduler, &fiber.context);
    }
    if (!grid.progress)
      throw std::runtime_error("deadlock: threads of a block wait at different barriers");
  }
}

void prepare(dim3 block, size_t shared_bytes) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
  grid.fibers.resize(threads);
  grid.warps.assign((threads + 31) / 32, Warp{});
  grid.shared.assign(shared_bytes + 64, 0xff);
  for (unsigned i = 0; i < threads; ++i)
    grid.fibers[i].thread = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
  grid.order.resize(threads);
  std::iota(grid.order.begin(), grid.order.end(), 0u);
  if (chosen_order == 1) std::reverse(grid.order.begin(), grid.order.end());
  if (chosen_order > 1)
    std::shuffle(grid.order.begin(), grid.order.end(), std::mt19937(chosen_order));
}

}  // namespace

void run_grid(dim3 blocks, dim3 block, size_t shared_bytes, Body body, void* arguments) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.y > 65535 || blocks.z > 65535)
    throw std::runtime_error("a grid has at least 1 block, and at most 65535 along y and z");
  prepare(block, shared_bytes);
  grid.body = body;
  grid.arguments = arguments;
  blockDim = block;
  gridDim = blocks;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block();
      }
}

unsigned char* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(grid.shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

void set_order(int order) { chosen_order = order; }

unsigned lane() { return index_of(*grid.running) % 32; }

void wait_for_block() {
  wait(grid.block, [] { return grid.alive; });
}

int vote_of_block(int predicate) {
  grid.votes |= predicate != 0;
  wait_for_block();
  const int result = grid.votes;
  wait_for_block();
  grid.votes = 0;
  wait_for_block();
  return result;
}

void exchange(unsigned mask, uint64_t mine, uint64_t (&all)[32]) {
  Exchange& warp = grid.warps[index_of(*grid.running) / 32][mask];
  warp.slots[lane()] = mine;
  wait(warp.before, [mask] { return lanes_of(mask); });
  std::copy(warp.slots, warp.slots + 32, all);
  wait(warp.after, [mask] { return lanes_of(mask); });
}

}  // namespace emulated

void bind_cuda(pybind11::module_& module);
void bind_selftest(pybind11::module_& module);

PYBIND11_MODULE(cuda_on_cpu, module) {
  module.doc() = "vosengine's CUDA kernels, run on the CPU";
  module.def("set_order", &emulated::set_order);
  bind_cuda(module);
  bind_selftest(module);
}
