// Element types and strides, as the operators of ops.h and regions.h need them.
#pragma once

#include "custom_op.h"

namespace vosengine::onnx {

constexpr auto FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto DOUBLE = ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
constexpr auto BOOL = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
constexpr auto UINT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto INT32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto INT64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto ANY = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

// Elements between neighbours along each axis of a tensor that is contiguous.
template <size_t count>
void set_strides(const std::vector<int64_t>& shape, int64_t (&strides)[count]) {
  int64_t step = 1;
  for (size_t i = count; i-- > 0;) {
    strides[i] = step;
    step *= shape[i];
  }
}

}  // namespace vosengine::onnx
