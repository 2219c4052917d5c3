#include "custom_op.h"

#include <cstdlib>

namespace vosengine::onnx {

const OrtApi* api = nullptr;

std::string in_words(const std::vector<int64_t>& shape) {
  std::string words = "[";
  for (size_t i = 0; i < shape.size(); ++i) words += (i ? ", " : "") + std::to_string(shape[i]);
  return words + "]";
}

void Sizes::match(const char* argument, const Tensor& tensor,
                  std::initializer_list<const char*> axes) {
  if (!tensor.given) return;
  bool fits = tensor.shape.size() == axes.size();
  std::string wanted;
  size_t index = 0;
  for (const char* axis : axes) {
    char* end = nullptr;
    const long long number = std::strtoll(axis, &end, 10);
    if (!*end) sizes_[axis] = number;  // an axis of so many
    const auto known = sizes_.find(axis);
    wanted += (index ? ", " : "") + std::string(axis);
    if (known != sizes_.end() && *end) wanted += "=" + std::to_string(known->second);
    if (fits && known != sizes_.end()) fits = tensor.shape[index] == known->second;
    if (fits && known == sizes_.end()) sizes_[axis] = tensor.shape[index];
    ++index;
  }
  if (!fits)
    throw std::invalid_argument(std::string(argument) + ": wanted [" + wanted + "], given " +
                                in_words(tensor.shape));
}

int64_t Attributes::integer(const char* name) const {
  int64_t found = 0;
  check(api->KernelInfoGetAttribute_int64(info_, name, &found));
  return found;
}

float Attributes::number(const char* name) const {
  float found = 0;
  check(api->KernelInfoGetAttribute_float(info_, name, &found));
  return found;
}

namespace {

template <typename T, typename Get>
std::vector<T> several(const Get& get, const OrtKernelInfo* info, const char* name, size_t count) {
  size_t size = 0;
  check(get(info, name, nullptr, &size));
  std::vector<T> found(size);
  check(get(info, name, found.data(), &size));
  if (count && size != count)
    throw std::invalid_argument(std::string(name) + ": wanted " + std::to_string(count) +
                                " numbers, given " + std::to_string(size));
  return found;
}

}  // namespace

std::vector<int64_t> Attributes::integers(const char* name, size_t count) const {
  return several<int64_t>(api->KernelInfoGetAttributeArray_int64, info_, name, count);
}

std::vector<float> Attributes::numbers(const char* name, size_t count) const {
  return several<float>(api->KernelInfoGetAttributeArray_float, info_, name, count);
}

size_t Call::input_count() const {
  size_t count = 0;
  check(api->KernelContext_GetInputCount(context_, &count));
  return count;
}

Tensor Call::input(size_t index) const {
  const OrtValue* value = nullptr;
  if (index < input_count()) check(api->KernelContext_GetInput(context_, index, &value));
  Tensor found;
  if (!value) return found;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api->GetTensorTypeAndShape(value, &info));
  size_t axes = 0;
  OrtStatus* failed = api->GetTensorElementType(info, &found.type);
  if (!failed) failed = api->GetDimensionsCount(info, &axes);
  found.shape.resize(axes);
  if (!failed) failed = api->GetDimensions(info, found.shape.data(), axes);
  api->ReleaseTensorTypeAndShapeInfo(info);
  check(failed);
  void* data = nullptr;
  check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  found.data = data;
  found.given = true;
  return found;
}

void* Call::output(size_t index, const std::vector<int64_t>& shape) const {
  size_t count = 0;
  check(api->KernelContext_GetOutputCount(context_, &count));
  OrtValue* value = nullptr;
  if (index < count)
    check(api->KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  if (value) check(api->GetTensorMutableData(value, &data));
  return data;
}

}  // namespace vosengine::onnx
