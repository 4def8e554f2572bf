"""What a graph may hold: the operators that `export` writes, and their like that compute on tensors alone.

An allow-list. Every export verifies what it wrote, so an operator that is missing here fails it by name. What loops,
branches, brings functions, makes sequences or strings, draws random numbers or reads files is not on it.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Domain -> operators. What a trace holds, what the stages after it write, and what precisions need of onnxruntime.
OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset({
        "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil",
        "Clip", "Concat", "ConstantOfShape", "Conv", "Cos", "CumSum", "DequantizeLinear", "Div", "Einsum",
        "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
        "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual", "GroupNormalization",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN",
        "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization",
        "MatMul", "MatMulInteger", "Max", "MaxPool", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
        "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round",
        "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax",
        "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "TopK",
        "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    }),
    "com.microsoft": frozenset({"GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits"}),
}  # fmt: skip

#: What the versions mean that a graph may name: of each domain, and of the file. What export writes (20, 1 and 10; 17
#: and 8, or 21 and 10, for the target portable), and the others of the default domain in which the operators above are
#: the same, take more types, or are given their axes as an attribute.
OPSETS: Mapping[str, range] = {"": range(17, 27), "ai.onnx": range(17, 27), "com.microsoft": range(1, 2)}
IR_VERSIONS = range(8, 14)

#: Graphs hold no weights; 300 profiles of a 48-layer parent stay far below this.
MAX_GRAPH_BYTES = 64 << 20

#: Nodes of one graph. A parent of 48 layers with int8 products has about 10,000.
MAX_NODES = 1 << 16

#: Axes of a tensor, and the length of one.
MAX_RANK, MAX_LENGTH = 16, 1 << 40

#: An ONNX type that no tensor of ours has: text.
STRING = 8
