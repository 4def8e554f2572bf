"""All rules by operator and by what is known of its first inputs: one table, in which the first that fits is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matexport.runtime.engines.native.geometry.known import Worked
from matexport.runtime.engines.native.patterns import attention, elementwise, lookups, norms, products, readout, rotary
from matexport.runtime.engines.native.patterns.attention import Holes, Scores
from matexport.runtime.engines.native.patterns.elementwise import Bell, Cube, Slope
from matexport.runtime.engines.native.patterns.lookups import Embedded, Picked
from matexport.runtime.engines.native.patterns.norms import Length, Power, Square
from matexport.runtime.engines.native.patterns.products import Codes, Peak, Share, Sizes, Whole
from matexport.runtime.engines.native.patterns.readout import Filled, Summed, Timed
from matexport.runtime.engines.native.patterns.rotary import Partly, Spun, Turned
from matexport.runtime.engines.native.patterns.values import Grid, Rule

#: Operators whose two inputs may be given in either order.
SWAPPED = frozenset({"Add", "Max", "Mul"})

#: (operator, what the first and maybe the second input is) -> rules. `Worked` is all that follows from shapes, masks
#: and constants.
RULES: Mapping[tuple[Any, ...], Sequence[Rule]] = {
    # lookups
    ("Cast", Picked): [lookups.cast_codes],
    ("Mul", Picked, Picked): [lookups.scale_codes],
    ("Add", Embedded, Embedded): [lookups.add_rows],
    ("Add", Embedded, Picked): [lookups.add_rows],
    ("Add", Picked, Picked): [lookups.add_rows],
    ("Add", Embedded, Worked): [lookups.add_rows],
    ("Add", Picked, Worked): [lookups.add_rows],
    # numbers
    ("Add", Grid, Grid): [elementwise.add_grids],
    ("Add", Grid, Worked): [elementwise.add_constant],
    ("Mul", Grid, Grid): [norms.square, elementwise.multiply_grids],
    ("Mul", Grid, Worked): [norms.weigh_norm, elementwise.multiply_constant, readout.multiply_known],
    ("Div", Grid, Worked): [elementwise.divide_constant],
    ("Neg", Grid): [elementwise.negate],
    ("Gelu", Grid): [elementwise.activate_gelu],
    ("Relu", Grid): [elementwise.activate_plain],
    ("Sigmoid", Grid): [elementwise.activate_plain],
    ("Tanh", Grid): [elementwise.activate_plain],
    ("Erf", Grid): [elementwise.bend],
    ("Pow", Grid, Worked): [norms.raise_power, elementwise.cube],
    ("Mul", Cube, Worked): [elementwise.scale_cube],
    ("Add", Cube, Grid): [elementwise.add_cube],
    ("Tanh", Cube): [elementwise.tanh],
    ("Add", Bell, Worked): [elementwise.shift],
    ("Add", Slope, Worked): [elementwise.shift],
    ("Mul", Bell, Grid): [elementwise.finish_gelu],
    ("Mul", Slope, Grid): [elementwise.finish_gelu],
    # norms and lengths
    ("LayerNormalization", Grid): [norms.normalize],
    ("ReduceMean", Square): [norms.mean_squares],
    ("ReduceSum", Square): [norms.sum_squares],
    ("ReduceL2", Grid): [norms.measure_length],
    ("Add", Power, Worked): [norms.add_epsilon],
    ("Sqrt", Power): [norms.take_root],
    ("Pow", Power, Worked): [norms.raise_root],
    ("Max", Length, Worked): [norms.hold_length],
    ("Clip", Length): [norms.hold_length],
    ("Expand", Length): [norms.keep_length],
    ("Reciprocal", Length): [norms.invert],
    ("Div", Worked, Length): [norms.invert],
    ("Div", Grid, Length): [norms.divide_by_length],
    ("Mul", Grid, Length): [norms.multiply_by_length],
    # products
    ("Abs", Grid): [products.measure_sizes],
    ("ReduceMax", Sizes): [products.find_peak],
    ("ReduceMax", Grid): [products.find_peak],
    ("Max", Peak, Worked): [products.hold_peak],
    ("Clip", Peak): [products.hold_peak],
    ("Div", Grid, Peak): [products.divide_by_peak],
    ("QuantizeLinear", Share): [products.make_codes],
    ("Slice", Codes): [products.cut_codes],
    ("Slice", Peak): [products.cut_codes],
    ("MatMulIntegerToFloat", Codes): [products.multiply_codes],
    ("MatMulInteger", Codes): [products.multiply_whole],
    ("Cast", Whole): [products.cast_whole],
    ("Mul", Whole, Worked): [products.scale_whole],
    ("Mul", Whole, Peak): [products.finish_product],
    ("MatMul", Grid, Worked): [products.multiply_rows],
    ("Gemm", Grid): [products.multiply_general],
    # attention
    ("MatMul", Grid, Grid): [attention.score],
    ("Mul", Scores, Worked): [attention.scale],
    ("Div", Scores, Worked): [attention.scale],
    ("Add", Scores, Worked): [attention.add_mask],
    ("Softmax", Scores): [attention.weigh],
    ("Cast", Scores): [attention.keep_scores],
    ("Identity", Scores): [attention.keep_scores],
    ("IsNaN", Scores): [attention.find_holes],
    ("Where", Holes, Worked): [attention.fill_holes],
    ("MatMul", Scores, Grid): [attention.attend],
    # rotary positions
    ("Concat", Grid, Grid): [rotary.join],
    ("Concat", Partly, Grid): [rotary.join],
    ("Mul", Turned, Worked): [rotary.spin],
    ("Add", Timed, Spun): [rotary.rotate],
    # the read-out
    ("ReduceSum", Timed): [readout.sum_tokens],
    ("Div", Summed, Worked): [readout.divide_sum],
    ("Where", Worked, Worked): [readout.fill_padding],
    ("Where", Worked, Grid): [readout.fill_padding],
    ("ReduceMax", Filled): [readout.take_largest],
    ("GatherElements", Grid, Worked): [readout.gather_token],
}
