// One wrapper for every operator that onnxruntime is lent: an Op says its name, its inputs and
// outputs and what it computes; the rest of onnxruntime's C interface is here, once.
//
// An Op is a struct with
//   static constexpr const char* NAME;
//   static constexpr Port INPUTS[], OUTPUTS[];
//   explicit Op(const Attributes&);
//   void run(const Call&) const;
// Whatever they throw becomes the error that onnxruntime reports.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "third_party/onnxruntime/onnxruntime_c_api.h"

namespace vosengine::onnx {

// The lowest onnxruntime that has all that is used here, 1.18.
constexpr uint32_t API_VERSION = 18;

extern const OrtApi* api;  // set where the library is registered

inline void check(OrtStatus* status) {
  if (!status) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw std::runtime_error(message);
}

enum class Kind { required, optional, variadic };

struct Port {
  ONNXTensorElementDataType type;  // UNDEFINED: any
  Kind kind = Kind::required;
};

// A tensor of a call; one that the node leaves out has no data and no axes.
struct Tensor {
  bool given = false;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
  const void* data = nullptr;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

std::string in_words(const std::vector<int64_t>& shape);

// Axes by name: what one tensor says of an axis holds for all that follow.
class Sizes {
 public:
  // Raises std::invalid_argument where the shape is not that; a tensor that is left out is skipped.
  void match(const char* argument, const Tensor& tensor, std::initializer_list<const char*> axes);
  int64_t operator[](const char* axis) const { return sizes_.at(axis); }

 private:
  std::map<std::string, int64_t> sizes_;
};

class Attributes {
 public:
  explicit Attributes(const OrtKernelInfo* info) : info_(info) {}
  int64_t integer(const char* name) const;
  float number(const char* name) const;
  std::vector<int64_t> integers(const char* name, size_t count = 0) const;  // 0: any number
  std::vector<float> numbers(const char* name, size_t count) const;

 private:
  const OrtKernelInfo* info_;
};

class Call {
 public:
  Call(OrtKernelContext* context, int threads) : threads(threads), context_(context) {}
  size_t input_count() const;
  Tensor input(size_t index) const;
  // Where to write an output of that shape; null for one that nobody asked for.
  void* output(size_t index, const std::vector<int64_t>& shape) const;
  template <typename T>
  T* output(size_t index, const std::vector<int64_t>& shape) const {
    return static_cast<T*>(output(index, shape));
  }

  const int threads;

 private:
  OrtKernelContext* context_;
};

template <typename Op>
struct Kernel {
  Op op;
  int threads;
};

// The status for whatever `body` throws, or null.
template <typename Body>
OrtStatus* guarded(const char* name, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    const std::string message = std::string(name) + ": " + error.what();
    return api->CreateStatus(ORT_FAIL, message.c_str());
  }
}

inline OrtCustomOpInputOutputCharacteristic characteristic(Kind kind) {
  if (kind == Kind::optional) return INPUT_OUTPUT_OPTIONAL;
  return kind == Kind::variadic ? INPUT_OUTPUT_VARIADIC : INPUT_OUTPUT_REQUIRED;
}

template <typename Op>
struct CustomOp : OrtCustomOp {
  using Self = const OrtCustomOp*;

  explicit CustomOp(int threads) : OrtCustomOp{}, threads(threads) {
    version = API_VERSION;
    GetName = [](Self) { return Op::NAME; };
    GetExecutionProviderType = [](Self) -> const char* { return nullptr; };
    GetInputTypeCount = [](Self) { return std::size(Op::INPUTS); };
    GetInputType = [](Self, size_t i) { return Op::INPUTS[i].type; };
    GetInputCharacteristic = [](Self, size_t i) { return characteristic(Op::INPUTS[i].kind); };
    GetOutputTypeCount = [](Self) { return std::size(Op::OUTPUTS); };
    GetOutputType = [](Self, size_t i) { return Op::OUTPUTS[i].type; };
    GetOutputCharacteristic = [](Self, size_t i) { return characteristic(Op::OUTPUTS[i].kind); };
    GetInputMemoryType = [](Self, size_t) { return OrtMemTypeDefault; };
    GetVariadicInputMinArity = [](Self) { return 1; };
    GetVariadicInputHomogeneity = [](Self) { return 1; };
    GetVariadicOutputMinArity = [](Self) { return 1; };
    GetVariadicOutputHomogeneity = [](Self) { return 1; };
    CreateKernelV2 = [](Self self, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded(Op::NAME, [&] {
        const int threads = static_cast<const CustomOp*>(self)->threads;
        *kernel = new Kernel<Op>{Op(Attributes(info)), threads};
      });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const auto* made = static_cast<const Kernel<Op>*>(kernel);
      return guarded(Op::NAME, [&] { made->op.run(Call(context, made->threads)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
    GetStartVersion = [](Self) { return 1; };
    GetEndVersion = [](Self) { return 1; };
  }

  const int threads;
};

}  // namespace vosengine::onnx
