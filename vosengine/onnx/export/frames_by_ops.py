"""The graphs `prepare` and `finish` with custom operators of the domain "vosengine"."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from ..library import DOMAIN, VERSION

PREPARE = """
prepare (uint8[height, width, 3] frame, int64[2] resized, int64[4] padding)
    => ({element}[1, 3, H, W] prepared) {{
  image = {domain}.prepare_frame <mean = {mean}, std = {std}> (frame, resized, padding)
  axis = Constant <value_ints = [0]> ()
  whole = Unsqueeze (image, axis)
  prepared = Cast <to = {to}> (whole)
}}
"""

# Only rows that are alive and not prompted go through the op. Then every row gets its plane back,
# and the prompt overrides the result.
FINISH = """
finish (float[objects, h, w] logits, bool[objects] alive, uint8[height, width] prompt,
        int64[2] size, double[4] region, int64[4] padding)
    => (uint8[y, x] labels, float[rows, H, W] masks) {{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  first = Constant <value_ints = [0]> ()
  column = Constant <value_ints = [-1, 1, 1]> ()
  nothing = Constant <value_float = 0.0> ()
  none = Cast <to = 2> (zero)
  count = Size (alive)
  end = Add (count, one)
  numbers = Range (one, end, one)
  ids = Cast <to = 2> (numbers)
  most = ReduceMax <keepdims = 0> (prompt)
  said = Greater (most, none)
  counted = If (said) <
    then_branch = named () => (bool[objects] rest) {{
      pixels = Constant <value_ints = [1, 2]> ()
      by_row = Reshape (ids, column)
      image = Unsqueeze (prompt, first)
      shown = Equal (image, by_row)
      counts = Cast <to = 2> (shown)
      highest = ReduceMax <keepdims = 0> (counts, pixels)
      free = Equal (highest, none)
      rest = And (alive, free)
    }},
    else_branch = all_alive () => (bool[objects] same) {{ same = Identity (alive) }}>
  some = Compress <axis = 0> (logits, counted)
  some_ids = Compress <axis = 0> (ids, counted)
  seen, planes = {domain}.finish_masks (some, some_ids, size, region)
  left = Size (some_ids)
  whole = Equal (left, count)
  every = If (whole) <
    then_branch = as_they_are () => (float[rows, y, x] given) {{ given = Identity (planes) }},
    else_branch = spread () => (float[rows, y, x] spread_planes) {{
      flags = Cast <to = 7> (counted)
      order = CumSum (flags, zero)
      last = Add (left, one)
      place = Where (counted, order, last)
      background = Constant <value_ints = [0]> ()
      places = Concat <axis = 0> (background, place)
      room = Constant <value_ints = [0, 0, 0, 1, 0, 0]> ()
      wider = Pad (planes, room, nothing)
      spread_planes = Gather <axis = 0> (wider, places)
    }}>
  labels, probabilities = If (said) <
    then_branch = over () => (uint8[y, x] told, float[rows, y, x] certain) {{
      height, width = Split <num_outputs = 2> (size)
      {rows}
      {columns}
      taken_rows = Gather <axis = 0> (prompt, take_y)
      given_ids = Gather <axis = 1> (taken_rows, take_x)
      is_said = Greater (given_ids, none)
      told = Where (is_said, given_ids, seen)
      table = Range (zero, end, one)
      table_ids = Cast <to = 2> (table)
      by_plane = Reshape (table_ids, column)
      image_ids = Unsqueeze (given_ids, first)
      is_it = Equal (image_ids, by_plane)
      sure = Cast <to = 1> (is_it)
      said_there = Unsqueeze (is_said, first)
      certain = Where (said_there, sure, every)
    }},
    else_branch = alone () => (uint8[y, x] label, float[rows, y, x] plane) {{
      label = Identity (seen)
      plane = Identity (every)
    }}>
  sides_order = Constant <value_ints = [2, 0, 3, 1]> ()
  sides = Gather <axis = 0> (padding, sides_order)
  axes = Constant <value_ints = [1, 2]> ()
  masks = Pad (probabilities, sides, nothing, axes)
}}
"""

# Nearest prompt pixel of every output pixel along one axis.
NEAREST = """
      {side}_of = Squeeze ({side})
      {side}_range = Range (zero, {side}_of, one)
      {side}_index = Cast <to = 11> ({side}_range)
      {side}_half = Constant <value = double {{0.5}}> ()
      {side}_centre = Add ({side}_index, {side}_half)
      {side}_given = Shape <start = {axis}, end = {end}> (prompt)
      {side}_from = Cast <to = 11> ({side}_given)
      {side}_to = Cast <to = 11> ({side})
      {side}_scale = Div ({side}_from, {side}_to)
      {side}_place = Mul ({side}_centre, {side}_scale)
      {side}_floor = Floor ({side}_place)
      take_{name} = Cast <to = 7> ({side}_floor)
"""


def prepare_by_op(
    mean: Sequence[float], std: Sequence[float], half: bool, opset: int
) -> onnx.ModelProto:
    """As frames.prepare_graph."""
    element, to = ("float16", 10) if half else ("float", 1)
    numbers = {"mean": [float(x) for x in mean], "std": [float(x) for x in std]}
    return _parsed(PREPARE.format(domain=DOMAIN, element=element, to=to, **numbers), opset)


def finish_by_op(opset: int) -> onnx.ModelProto:
    """As frames.finish_graph."""
    rows = NEAREST.format(side="height", axis=0, end=1, name="y")
    columns = NEAREST.format(side="width", axis=1, end=2, name="x")
    return _parsed(FINISH.format(domain=DOMAIN, rows=rows, columns=columns), opset)


def _parsed(text: str, opset: int) -> onnx.ModelProto:
    head = f'<ir_version: 10, opset_import: ["": {opset}, "{DOMAIN}": {VERSION}]>'
    return onnx.parser.parse_model(head + text)
