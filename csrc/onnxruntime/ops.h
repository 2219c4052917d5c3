// The kernels of this folder's parent as operators of onnxruntime, in the domain "vosengine". What
// each computes is defined by kernels/<op>/reference.py; attributes have the names of its
// arguments. Those on regions and objects are in regions.h.
#pragma once

#include "checks.h"
#include "correlate_frames.h"
#include "deform_conv.h"
#include "finish_masks.h"
#include "prepare_frame.h"
#include "read_memory.h"
#include "tensors.h"

namespace vosengine::onnx {

struct ReadMemoryOp {
  static constexpr const char* NAME = "read_memory";
  // query_key, memory_key, memory_value, bias, length, pages, query_of
  static constexpr Port INPUTS[] = {{FLOAT},
                                    {FLOAT},
                                    {FLOAT},
                                    {FLOAT, Kind::optional},
                                    {INT32, Kind::optional},
                                    {INT32, Kind::optional},
                                    {INT32, Kind::optional}};
  static constexpr Port OUTPUTS[] = {{FLOAT}};

  explicit ReadMemoryOp(const Attributes& attributes)
      : scale(attributes.number("scale")), top_k(attributes.integer("top_k")) {
    VOS_CHECK(top_k >= 0, "top_k", "at least 1, or 0 for all positions", top_k);
  }

  void run(const Call& call) const {
    const Tensor query = call.input(0), key = call.input(1), value = call.input(2);
    const Tensor bias = call.input(3), length = call.input(4), pages = call.input(5);
    const Tensor query_of = call.input(6);
    const bool has_sets = value.shape.size() == 4, shared = query.shape.size() == 2;
    Sizes sizes;
    if (pages.given) {
      sizes.match("pages", pages, {"G", "T"});
      sizes.match("memory_key", key, {"K", "L", "Ck"});
      sizes.match("memory_value", value, {"K", "L", "Cv"});
      sizes.match("bias", bias, {"K", "L"});
    } else {
      sizes.match("memory_key", key, {"G", "L", "Ck"});
      if (has_sets)
        sizes.match("memory_value", value, {"G", "S", "L", "Cv"});
      else
        sizes.match("memory_value", value, {"G", "L", "Cv"});
      sizes.match("bias", bias, {"G", "L"});
    }
    sizes.match("length", length, {"G"});
    sizes.match("query_of", query_of, {"G"});
    if (shared && !query_of.given)
      sizes.match("query_key", query, {"P", "Ck"});
    else
      sizes.match("query_key", query, {query_of.given ? "B" : "G", "P", "Ck"});

    ReadMemory read{};
    read.groups = sizes["G"];
    read.sets = has_sets ? sizes["S"] : 1;
    read.queries = sizes["P"];
    read.key_channels = sizes["Ck"];
    read.value_channels = sizes["Cv"];
    const int64_t columns = pages.given ? sizes["T"] : 1, rows = sizes["L"];
    read.positions = columns * rows;
    VOS_CHECK(read.positions > 0, "memory_key", "at least one position", read.positions);
    read.query = query.as<float>();
    read.query_row = read.key_channels;
    read.query_group = shared ? 0 : read.queries * read.key_channels;
    read.query_of = query_of.as<int32_t>();
    read.query_count = query_of.given ? sizes["B"] : read.groups;
    VOS_CHECK(read.query_count > 0 || read.groups == 0, "query_key",
              "at least one query for groups", read.query_count);
    read.key = key.data;
    read.key_row = read.key_channels;
    read.key_page = rows * read.key_row;
    read.value = value.data;
    read.value_row = read.value_channels;
    read.value_set = rows * read.value_row;
    read.value_page = read.sets * read.value_set;
    read.pages = {pages.as<int32_t>(), columns, rows, key.shape[0]};
    read.bias = bias.as<float>();
    read.length = length.as<int32_t>();
    std::vector<int64_t> shape = {read.groups};
    if (has_sets) shape.push_back(read.sets);
    shape.insert(shape.end(), {read.queries, read.value_channels});
    read.out = call.output<float>(0, shape);
    read.scale = scale;
    read.threads = call.threads;
    read.top_k = top_k;
    if (top_k > 0 && top_k < read.positions)
      read_memory_top_k_cpu(read);
    else
      read_memory_cpu(read);
  }

  float scale;
  int64_t top_k;
};

struct PrepareFrameOp {
  static constexpr const char* NAME = "prepare_frame";
  static constexpr Port INPUTS[] = {{ANY}, {INT64}, {INT64}};  // frame, size, padding
  static constexpr Port OUTPUTS[] = {{FLOAT}};

  explicit PrepareFrameOp(const Attributes& attributes)
      : mean(attributes.numbers("mean", 3)), std(attributes.numbers("std", 3)) {}

  void run(const Call& call) const {
    const Tensor frame = call.input(0), size = call.input(1), padding = call.input(2);
    VOS_CHECK(frame.type == UINT8 || frame.type == FLOAT, "frame", "uint8 or float elements",
              static_cast<int>(frame.type));
    Sizes sizes;
    sizes.match("frame", frame, {"H", "W", "3"});
    sizes.match("size", size, {"2"});
    sizes.match("padding", padding, {"4"});
    PrepareFrame prepare{};
    prepare.frame = frame.data;
    prepare.bytes = frame.type == UINT8;
    prepare.height = sizes["H"];
    prepare.width = sizes["W"];
    prepare.row_stride = 3 * prepare.width;
    prepare.resized_height = size.as<int64_t>()[0];
    prepare.resized_width = size.as<int64_t>()[1];
    const int64_t* sides = padding.as<int64_t>();
    for (int64_t length : {prepare.height, prepare.width})
      VOS_CHECK(length > 0, "frame", "at least one pixel", length);
    for (int64_t length : {prepare.resized_height, prepare.resized_width})
      VOS_CHECK(length > 0, "size", "at least 1", length);
    for (int i = 0; i < 4; ++i) VOS_CHECK(sides[i] >= 0, "padding", "at least 0", sides[i]);
    prepare.left = sides[0];
    prepare.right = sides[1];
    prepare.top = sides[2];
    prepare.bottom = sides[3];
    set_normalisation(prepare, mean, std);
    prepare.out = call.output(0, {3, sides[2] + prepare.resized_height + sides[3],
                                  sides[0] + prepare.resized_width + sides[1]});
    prepare.threads = call.threads;
    prepare_frame_cpu(prepare);
  }

  std::vector<float> mean, std;
};

struct FinishMasksOp {
  static constexpr const char* NAME = "finish_masks";
  // logits, ids, size, region, first
  static constexpr Port INPUTS[] = {{FLOAT}, {UINT8}, {INT64}, {DOUBLE}, {INT32, Kind::optional}};
  static constexpr Port OUTPUTS[] = {{UINT8}, {FLOAT, Kind::optional}};  // labels, probabilities

  explicit FinishMasksOp(const Attributes&) {}

  void run(const Call& call) const {
    const Tensor logits = call.input(0), ids = call.input(1), size = call.input(2);
    const Tensor region = call.input(3), first = call.input(4);
    Sizes sizes;
    sizes.match("logits", logits, {"O", "h", "w"});
    sizes.match("ids", ids, {"O"});
    sizes.match("size", size, {"2"});
    sizes.match("region", region, {"4"});
    sizes.match("first", first, {"1+streams"});
    VOS_CHECK(sizes["h"] > 0 && sizes["w"] > 0, "logits", "at least one cell", 0);
    if (first.given) VOS_CHECK(sizes["1+streams"] > 0, "first", "at least 1 number", 0);
    FinishMasks finish{};
    finish.logits = logits.data;
    set_strides(logits.shape, finish.stride);
    finish.ids = ids.as<uint8_t>();
    finish.first = first.as<int32_t>();
    finish.streams = first.given ? sizes["1+streams"] - 1 : 1;
    finish.objects = sizes["O"];
    finish.cells_y = sizes["h"];
    finish.cells_x = sizes["w"];
    finish.height = size.as<int64_t>()[0];
    finish.width = size.as<int64_t>()[1];
    for (int64_t length : {finish.height, finish.width})
      VOS_CHECK(length > 0, "size", "at least 1", length);
    const double* box = region.as<double>();
    finish.top = box[0];
    finish.left = box[1];
    finish.region_height = box[2];
    finish.region_width = box[3];
    std::vector<int64_t> shape = {finish.height, finish.width};
    if (first.given) shape.insert(shape.begin(), finish.streams);
    finish.labels = call.output<uint8_t>(0, shape);
    finish.probabilities =
        call.output<float>(1, {finish.streams + finish.objects, finish.height, finish.width});
    finish.threads = call.threads;
    finish_masks_cpu(finish);
  }
};

struct CorrelateFramesOp {
  static constexpr const char* NAME = "correlate_frames";
  static constexpr Port INPUTS[] = {{FLOAT}, {FLOAT}, {FLOAT}};  // query, previous, temperature
  static constexpr Port OUTPUTS[] = {{FLOAT}};

  explicit CorrelateFramesOp(const Attributes& attributes)
      : radius(attributes.integer("radius")), exclude(attributes.integer("exclude_outside") != 0) {
    VOS_CHECK(radius >= 0, "radius", "at least 0", radius);
  }

  void run(const Call& call) const {
    const Tensor query = call.input(0), previous = call.input(1), temperature = call.input(2);
    Sizes sizes;
    sizes.match("query", query, {"B", "C", "H", "W"});
    sizes.match("previous", previous, {"B", "C", "H", "W"});
    sizes.match("temperature", temperature, {});
    CorrelateFrames correlate{};
    correlate.query = query.as<float>();
    correlate.previous = previous.as<float>();
    set_strides(query.shape, correlate.query_stride);
    set_strides(previous.shape, correlate.previous_stride);
    correlate.batch = sizes["B"];
    correlate.channels = sizes["C"];
    correlate.height = sizes["H"];
    correlate.width = sizes["W"];
    correlate.out = call.output<float>(0, {correlate.batch, 3, correlate.height, correlate.width});
    correlate.radius = radius;
    correlate.temperature = *temperature.as<float>();
    correlate.exclude_outside = exclude;
    correlate.threads = call.threads;
    correlate_frames_cpu(correlate);
  }

  int64_t radius;
  bool exclude;
};

struct DeformConvOp {
  static constexpr const char* NAME = "deform_conv";
  // x, offset, weight, bias, mask
  static constexpr Port INPUTS[] = {
      {FLOAT}, {FLOAT}, {FLOAT}, {FLOAT, Kind::optional}, {FLOAT, Kind::optional}};
  static constexpr Port OUTPUTS[] = {{FLOAT}};

  explicit DeformConvOp(const Attributes& attributes)
      : stride(attributes.integers("stride", 2)),
        padding(attributes.integers("padding", 2)),
        dilation(attributes.integers("dilation", 2)),
        groups(attributes.integer("groups")) {
    for (int i = 0; i < 2; ++i) {
      VOS_CHECK(stride[i] > 0, "stride", "at least 1", stride[i]);
      VOS_CHECK(padding[i] >= 0, "padding", "at least 0", padding[i]);
      VOS_CHECK(dilation[i] > 0, "dilation", "at least 1", dilation[i]);
    }
    VOS_CHECK(groups > 0, "groups", "at least 1", groups);
  }

  void run(const Call& call) const {
    const Tensor x = call.input(0), offset = call.input(1), weight = call.input(2);
    const Tensor bias = call.input(3), mask = call.input(4);
    Sizes sizes;
    sizes.match("x", x, {"B", "C", "H", "W"});
    sizes.match("weight", weight, {"Co", "C/groups", "kh", "kw"});
    sizes.match("offset", offset, {"B", "2*G*kh*kw", "Ho", "Wo"});
    sizes.match("bias", bias, {"Co"});
    sizes.match("mask", mask, {"B", "G*kh*kw", "Ho", "Wo"});
    DeformConv convolve{};
    const int64_t taps = sizes["kh"] * sizes["kw"], pairs = sizes["2*G*kh*kw"];
    VOS_CHECK(taps > 0 && pairs > 0 && pairs % (2 * taps) == 0, "offset",
              "two numbers for every tap of every offset group", pairs);
    convolve.batch = sizes["B"];
    convolve.channels = sizes["C"];
    convolve.outputs = sizes["Co"];
    convolve.groups = groups;
    convolve.offset_groups = pairs / (2 * taps);
    VOS_CHECK(sizes["C/groups"] * groups == convolve.channels && convolve.outputs % groups == 0,
              "groups", "a divisor of the channels of x and weight", groups);
    VOS_CHECK(convolve.channels % convolve.offset_groups == 0, "offset",
              "a number of groups that divides the channels", convolve.offset_groups);
    if (mask.given)
      VOS_CHECK(2 * sizes["G*kh*kw"] == pairs, "mask", "half as many channels as offset",
                sizes["G*kh*kw"]);
    const int64_t sides[] = {sizes["H"], sizes["W"]}, out[] = {sizes["Ho"], sizes["Wo"]};
    for (int i = 0; i < 2; ++i) {
      convolve.kernel[i] = weight.shape[2 + i];
      convolve.stride[i] = stride[i];
      convolve.padding[i] = padding[i];
      convolve.dilation[i] = dilation[i];
      const int64_t reach = dilation[i] * (convolve.kernel[i] - 1) + 1;
      const int64_t room = sides[i] + 2 * padding[i];
      VOS_CHECK(room < 1 << 15, "x", "sides below 32768, padding included", room);
      VOS_CHECK(room >= reach && out[i] == (room - reach) / stride[i] + 1, "offset",
                "the size of the result", out[i]);
    }
    convolve.height = sides[0];
    convolve.width = sides[1];
    convolve.out_height = out[0];
    convolve.out_width = out[1];
    convolve.x = x.as<float>();
    set_strides(x.shape, convolve.x_stride);
    convolve.offset = offset.as<float>();
    convolve.mask = mask.as<float>();
    convolve.weight = weight.as<float>();
    convolve.bias = bias.as<float>();
    convolve.out = call.output<float>(0, {convolve.batch, convolve.outputs, out[0], out[1]});
    convolve.threads = call.threads;
    deform_conv_cpu(convolve);
  }

  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};

}  // namespace vosengine::onnx
