// What onnxruntime calls: the operators of ops.h and regions.h, registered for a session.
#include "ops.h"
#include "regions.h"

#include <memory>
#include <mutex>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vosengine::onnx {
namespace {

constexpr int OPS_VERSION = 2;  // raised when an operator changes; vosengine/onnx/library.py too

// The operators of sessions with so many threads, and the domain that they are registered in.
struct Domain {
  explicit Domain(int threads)
      : ops{std::make_unique<CustomOp<ReadMemoryOp>>(threads),
            std::make_unique<CustomOp<PrepareFrameOp>>(threads),
            std::make_unique<CustomOp<FinishMasksOp>>(threads),
            std::make_unique<CustomOp<CorrelateFramesOp>>(threads),
            std::make_unique<CustomOp<DeformConvOp>>(threads),
            std::make_unique<CustomOp<PoolRegionsOp>>(threads),
            std::make_unique<CustomOp<GroupCentresOp>>(threads)} {
    check(api->CreateCustomOpDomain("vosengine", &domain));
    for (const auto& op : ops) check(api->CustomOpDomain_Add(domain, op.get()));
  }

  std::unique_ptr<OrtCustomOp> ops[7];
  OrtCustomOpDomain* domain = nullptr;
};

// How many threads the session asks for; without a word, what OpenMP would take.
int threads_of(const OrtSessionOptions* options) {
  constexpr const char* KEY = "vosengine.threads";
  int asked = 0;
  check(api->HasSessionConfigEntry(options, KEY, &asked));
  if (asked) {
    char text[16];
    size_t size = sizeof(text);
    check(api->GetSessionConfigEntry(options, KEY, text, &size));
    const int threads = std::stoi(text);
    VOS_CHECK(threads >= 0, KEY, "at least 0", threads);
    if (threads > 0) return threads;
  }
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Sessions keep pointers to these for as long as they live: never freed.
OrtCustomOpDomain* domain_for(int threads) {
  static std::mutex mutex;
  static auto& domains = *new std::map<int, std::unique_ptr<Domain>>();
  const std::lock_guard<std::mutex> lock(mutex);
  auto& found = domains[threads];
  if (!found) found = std::make_unique<Domain>(threads);
  return found->domain;
}

}  // namespace
}  // namespace vosengine::onnx

#if defined(_WIN32)
#define VOS_EXPORT extern "C" __declspec(dllexport)
#else
#define VOS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

VOS_EXPORT int vosengine_ops_version() { return vosengine::onnx::OPS_VERSION; }

// What onnxruntime calls. Before 1.18 nothing is registered, and its session names what it misses.
VOS_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                     const OrtApiBase* base) {
  using namespace vosengine::onnx;
  const OrtApi* found = base->GetApi(API_VERSION);
  if (!found) return nullptr;
  api = found;
  return guarded("vosengine",
                 [&] { check(api->AddCustomOpDomain(options, domain_for(threads_of(options)))); });
}
