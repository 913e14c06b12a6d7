"""The table behind `parallax.graph.node_flops`: what each operator type computes and touches.

The convention and the sources are in `parallax.graph._work`. Formulas raise UnknownShape where a size
they need is not known, and assume nothing on their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from parallax.graph._op_graph import Node
from parallax.graph._shapes import Shapes, UnknownShape

Formula = Callable[[Shapes, Node], int]

_DIV = 4
"""Division, square root."""
_EXP = 8
"""exp, log, sin, tanh, erf and their kin: one transcendental."""
_SOFTMAX = 1 + 1 + _EXP + 1 + _DIV
"""Per element: running maximum, subtraction, exponential, sum, division."""
_SIGMOID = _EXP + 1 + _DIV
_GELU = 1 + _EXP + 1 + 2
_MEAN_VARIANCE = 5
"""Per element: sum for the mean, centring, square, sum for the variance, scaling by 1/deviation."""


def _convolution(weight_position: int, bias_position: int) -> Formula:
    """Weights are (Cout, Cin / groups, k...), so their trailing sizes already know the groups."""

    def flops(shapes: Shapes, node: Node) -> int:
        written = shapes.out_size(node)
        per_output = math.prod(shapes.input(node, weight_position)[1:])
        bias = written if shapes.has_input(node, bias_position) else 0
        return 2 * written * per_output + bias

    return flops


def _conv_transpose(shapes: Shapes, node: Node) -> int:
    """Weights are (Cin, Cout / groups, k...); each input element is spread over the trailing sizes."""
    bias = shapes.out_size(node) if shapes.has_input(node, 2) else 0
    return 2 * shapes.in_size(node) * math.prod(shapes.input(node, 1)[1:]) + bias


def _deform_conv(shapes: Shapes, node: Node) -> int:
    """A convolution whose every tap is first interpolated from four neighbours."""
    weights = shapes.input(node, 1)
    written = shapes.output(node)
    taps = math.prod(written[2:]) * written[0] * math.prod(weights[2:]) * shapes.input(node, 0)[1]
    return 2 * math.prod(written) * math.prod(weights[1:]) + 8 * taps


def _gemm(shapes: Shapes, node: Node) -> int:
    left = shapes.input(node, 0)
    if len(left) != 2:
        raise UnknownShape(node.name)
    written = shapes.out_size(node)
    inner = left[0] if node.attributes.get("transA") else left[1]
    return 2 * written * inner + (written if shapes.has_input(node, 2) else 0)


def _matmul(shapes: Shapes, node: Node) -> int:
    """Batch axes broadcast, so the elements written times the inner size count every product."""
    left = shapes.input(node, 0)
    if not left:
        raise UnknownShape(node.name)
    inner = left[-2] if node.attributes.get("transA") and len(left) > 1 else left[-1]
    return 2 * shapes.out_size(node) * inner


def _matmul_packed(shapes: Shapes, node: Node) -> int:
    """Weights in blocks of 4 or so bits, unpacked on the way: a multiply and an add for each."""
    left, written = shapes.input(node, 0), shapes.output(node)
    if not left or not written:
        raise UnknownShape(node.name)
    inner = _int_attribute(node, "K") or left[-1]
    columns = _int_attribute(node, "N") or written[-1]
    return 2 * shapes.out_size(node) * inner + 2 * inner * columns


def _einsum(shapes: Shapes, node: Node) -> int:
    """Every combination of the labels is multiplied and added once per operand beyond the first.

    An upper bound where three or more operands could be contracted pairwise.
    """
    equation = node.attributes.get("equation")
    if not isinstance(equation, str):
        raise UnknownShape(node.name)
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for position, term in enumerate(terms):
        shape = shapes.input(node, position)
        labels = _einsum_labels(term, len(shape))
        if len(labels) != len(shape):
            raise UnknownShape(node.name)
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size) if size else 0
    combinations = math.prod(sizes.values())
    return combinations if len(terms) == 1 else 2 * combinations * (len(terms) - 1)


def _einsum_labels(term: str, rank: int) -> list[str]:
    """Labels of one operand; the axes an ellipsis stands for are numbered from the right."""
    before, ellipsis, after = term.partition("...")
    if not ellipsis:
        return list(term)
    hidden = rank - len(before) - len(after)
    return [*before, *(f".{axis}" for axis in range(hidden, 0, -1)), *after]


def _recurrent(gates: int, pointwise: int) -> Formula:
    """Both products for each step, batch entry and direction, then ``pointwise`` per hidden unit.

    ``W`` is (directions, gates * hidden, input) and ``R`` (directions, gates * hidden, hidden), so
    their element counts hold directions and gates already.
    """

    def flops(shapes: Shapes, node: Node) -> int:
        sequence = shapes.input(node, 0)
        recurrence = shapes.input(node, 2)
        if len(sequence) != 3 or len(recurrence) != 3:
            raise UnknownShape(node.name)
        steps = sequence[0] * sequence[1]  # sequence and batch, in either layout
        hidden = _int_attribute(node, "hidden_size") or max(1, recurrence[1] // gates)
        products = 2 * (shapes.in_size(node, 1) + math.prod(recurrence))
        return steps * (products + pointwise * recurrence[0] * hidden)

    return flops


def _attention_core(batch_heads: int, queries: int, keys: int, key_size: int, value_size: int) -> int:
    """Scores, scaled softmax over the keys, and the weighted sum of the values."""
    scores = batch_heads * queries * keys
    return 2 * scores * (key_size + value_size) + (1 + _SOFTMAX) * scores


def _onnx_attention(shapes: Shapes, node: Node) -> int:
    """``Attention`` of the ONNX standard: Q, K, V given, of rank 3 (packed heads) or 4."""
    query, key, value = (shapes.input(node, position) for position in range(3))
    past = shapes.input(node, 4)[2] if shapes.has_input(node, 4) else 0
    if len(query) == 4:
        keys = key[2] + past
        return _attention_core(query[0] * query[1], query[2], keys, query[3], value[3])
    query_heads = _int_attribute(node, "q_num_heads") or 1
    key_heads = _int_attribute(node, "kv_num_heads") or query_heads
    keys = key[1] + past
    return _attention_core(query[0] * query_heads, query[1], keys, query[2] // query_heads, value[2] // key_heads)


def _packed_attention(shapes: Shapes, node: Node) -> int:
    """``com.microsoft.Attention``: input (batch, sequence, size) times packed QKV weights first."""
    if shapes.input_name(node, 0) and len(shapes.input(node, 0)) != 3:
        raise UnknownShape(node.name)
    batch, queries, _ = shapes.input(node, 0)
    hidden = shapes.output(node)[2]
    projection = 2 * batch * queries * shapes.in_size(node, 1)
    past = shapes.input(node, 4)[3] if shapes.has_input(node, 4) and len(shapes.input(node, 4)) == 5 else 0
    heads = _int_attribute(node, "num_heads") or 1
    size = hidden // heads
    return projection + _attention_core(batch * heads, queries, queries + past, size, size)


def _multi_head_attention(shapes: Shapes, node: Node) -> int:
    """``MultiHeadAttention`` and ``GroupQueryAttention``: Q, K and V projected already.

    Keys may be (batch, sequence, size), (batch, heads, sequence, head size), or packed into the query.
    """
    query = shapes.input(node, 0)
    batch, queries = query[0], query[1]
    heads = _int_attribute(node, "num_heads") or 1
    hidden = shapes.output(node)[-1]
    keys = queries
    if len(node.outputs) > 1 and node.outputs[1] and len(shapes.output(node, 1)) == 4:
        keys = shapes.output(node, 1)[2]  # the present keys: past ones included
    elif shapes.has_input(node, 1):
        key = shapes.input(node, 1)
        keys = key[2] if len(key) == 4 else key[1]
    size = hidden // heads
    return _attention_core(batch * heads, queries, keys, size, size)


def _pool(weight: int) -> Formula:
    def flops(shapes: Shapes, node: Node) -> int:
        kernel = node.attributes.get("kernel_shape")
        if not isinstance(kernel, tuple):
            raise UnknownShape(node.name)
        return weight * shapes.out_size(node) * math.prod(int(size) for size in kernel)

    return flops


def _variadic(shapes: Shapes, node: Node) -> int:
    """Max, Min, Mean, Sum: one operation per element and operand beyond the first."""
    return shapes.out_size(node) * max(1, len(node.inputs) - 1)


def _resize(shapes: Shapes, node: Node) -> int:
    """Nearest only picks. Linear and cubic weigh 2 and 4 neighbours per resized axis."""
    mode = node.attributes.get("mode", "nearest")
    neighbours = {"linear": 2, "cubic": 4}.get(str(mode))
    if neighbours is None:
        return 0
    before, after = shapes.input(node, 0), shapes.output(node)
    axes = sum(1 for old, new in zip(before, after, strict=False) if old != new)
    return 2 * shapes.out_size(node) * int(neighbours**axes)


def _grid_sample(shapes: Shapes, node: Node) -> int:
    mode = str(node.attributes.get("mode", "linear"))
    axes = max(0, len(shapes.output(node)) - 2)
    neighbours = {"nearest": 1, "cubic": 4, "bicubic": 4}.get(mode, 2)
    return 2 * shapes.out_size(node) * int(neighbours**axes)


def _roi_align(shapes: Shapes, node: Node) -> int:
    """Bilinear samples, 4 weighed neighbours each; an adaptive sampling ratio counts as 2 per axis."""
    ratio = _int_attribute(node, "sampling_ratio") or 2
    return 8 * ratio * ratio * shapes.out_size(node)


def _local_response(shapes: Shapes, node: Node) -> int:
    window = _int_attribute(node, "size") or 1
    return shapes.out_size(node) * (1 + window + 2 + 2 * _EXP + _DIV)


def _top_k(shapes: Shapes, node: Node) -> int:
    """A heap of k kept over all elements: one comparison per level."""
    kept = max(shapes.output(node), default=1)
    return shapes.in_size(node) * max(1, kept.bit_length())


def _sort(shapes: Shapes, node: Node) -> int:
    count = shapes.in_size(node)
    return count * max(1, count.bit_length())


def _fourier(shapes: Shapes, node: Node) -> int:
    """5 n log2 n per transform, after FFTW's convention (https://www.fftw.org/speed/method.html)."""
    written = shapes.output(node)
    count = math.prod(written) // 2 if written and written[-1] == 2 else math.prod(written)
    axis = _int_attribute(node, "axis")
    length = written[1 if axis is None else axis] if len(written) > 1 else count
    return 5 * count * max(1, length.bit_length() - 1)


def _short_time_fourier(shapes: Shapes, node: Node) -> int:
    """Frames by frequencies, (batch, frames, frequencies, 2): one windowed transform per frame."""
    _, _, bins, _ = _rank(shapes.output(node), 4, node)
    count = shapes.out_size(node) // 2
    return count * (2 + 5 * max(1, bins.bit_length()))


def _determinant(shapes: Shapes, node: Node) -> int:
    """LU decomposition: two thirds of n cubed per matrix."""
    return 2 * shapes.in_size(node) * (shapes.input(node, 0) or (1,))[-1] // 3


def _suppression(shapes: Shapes, node: Node) -> int:
    """Scores are compared and sorted; how many boxes then meet depends on the data and is left out."""
    scores = shapes.input(node, 1)
    boxes = (scores or (1,))[-1]
    return math.prod(scores) * max(1, boxes.bit_length())


def _linear_model(shapes: Shapes, node: Node) -> int:
    coefficients = node.attributes.get("coefficients")
    features = shapes.input(node, 0)
    rows = features[0] if len(features) > 1 else 1
    return 2 * rows * (len(coefficients) if isinstance(coefficients, tuple) else 0)


def _rank(shape: tuple[int, ...], rank: int, node: Node) -> tuple[int, ...]:
    if len(shape) != rank:
        raise UnknownShape(node.name)
    return shape


def _int_attribute(node: Node, name: str) -> int | None:
    value = node.attributes.get(name)
    return value if isinstance(value, int) else None


FORMULAS: Mapping[str, Formula] = {
    "Conv": _convolution(1, 2),
    "FusedConv": _convolution(1, 2),
    "NhwcFusedConv": _convolution(1, 2),
    "CausalConvWithState": _convolution(1, 2),
    "ConvInteger": _convolution(1, 4),
    "QLinearConv": _convolution(3, 8),
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "GemmFloat8": _gemm,
    "QGemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "FusedMatMulActivation": _matmul,
    "TransposeMatMul": _matmul,
    "GemmFastGelu": _matmul,
    "MatMulInteger": _matmul,
    "MatMulInteger16": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulNBits": _matmul_packed,
    "MatMulBnb4": _matmul_packed,
    "MatMulFpQ4": _matmul_packed,
    "Einsum": _einsum,
    # Gates and what follows them per hidden unit: LSTM 3 sigmoids, 2 tanh, 4 products and sums and its
    # biases; GRU 2 sigmoids, 1 tanh; RNN 1 tanh (ONNX operator specification, equations of each).
    "LSTM": _recurrent(4, 3 * _SIGMOID + 2 * _EXP + 12),
    "DynamicQuantizeLSTM": _recurrent(4, 3 * _SIGMOID + 2 * _EXP + 12),
    "GRU": _recurrent(3, 2 * _SIGMOID + _EXP + 10),
    "AttnLSTM": _recurrent(4, 3 * _SIGMOID + 2 * _EXP + 12),
    "RNN": _recurrent(1, _EXP + 3),
    "Attention": lambda shapes, node: (_onnx_attention if node.domain == "" else _packed_attention)(shapes, node),
    "QAttention": _packed_attention,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _multi_head_attention,
    "DecoderMaskedMultiHeadAttention": _multi_head_attention,
    "MaxPool": _pool(1),
    "NhwcMaxPool": _pool(1),
    "AveragePool": _pool(1),
    "QLinearAveragePool": _pool(1),
    "LpPool": _pool(2),
    "Max": _variadic,
    "Min": _variadic,
    "Sum": _variadic,
    "Mean": _variadic,
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "RoiAlign": _roi_align,
    "MaxRoiPool": lambda shapes, node: shapes.in_size(node),
    "LRN": _local_response,
    "TopK": _top_k,
    "Unique": _sort,
    "DFT": _fourier,
    "Rfft": _fourier,
    "Irfft": _fourier,
    "STFT": _short_time_fourier,
    "Det": _determinant,
    "NonMaxSuppression": _suppression,
    "LinearClassifier": _linear_model,
    "LinearRegressor": _linear_model,
}

_Value = TypeVar("_Value")


def _each(names: str, value: _Value) -> dict[str, _Value]:
    return dict.fromkeys(names.split(), value)


PER_OUTPUT_ELEMENT: Mapping[str, int] = {
    # Arithmetic, comparison, logic.
    **_each(
        """
        Add Sub Mul And Or Xor Not Neg Abs Sign Floor Ceil Round Relu Equal Greater GreaterOrEqual Less LessOrEqual
        Where IsNaN IsInf BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Range Binarizer Trilu
        """,
        1,
    ),
    **_each("Clip PRelu LeakyRelu ThresholdedRelu Shrink Imputer Scaler QuantizeWithOrder", 2),
    **_each("DequantizeLinear QLinearAdd QLinearMul BiasAdd BatchNormalization", 2),
    # Round, clip, offset after a division done as a product.
    **_each("QuantizeLinear DynamicQuantizeLinear", 4),
    **_each("Div Reciprocal Sqrt Mod", _DIV),
    **_each("HardSigmoid HardSwish", 4),
    "Softsign": 2 + _DIV,
    # One transcendental.
    **_each("Exp Log Sin Cos Tan Tanh Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Erf", _EXP),
    **_each("Elu Celu Selu", _EXP + 3),
    "Pow": 2 * _EXP,
    **_each("Sigmoid QLinearSigmoid", _SIGMOID),
    **_each("Swish QuickGelu SwiGLU BiasSplitGelu", _SIGMOID + 2),
    "Softplus": 2 * _EXP + 1,
    "Mish": 3 * _EXP + 2,
    "Gelu": _GELU,
    "FastGelu": _EXP + 8,
    "BiasGelu": _GELU + 1,
    # Random draws: a generator step and, for the normal law, a transform.
    **_each("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial", _EXP),
    **_each("HannWindow HammingWindow BlackmanWindow MelWeightMatrix", _EXP + 2),
    "RotaryEmbedding": 3,
    "EmbedLayerNormalization": _MEAN_VARIANCE + 2 + 2,
    "AffineGrid": 6,
    "Col2Im": 1,
}
"""FLOPs per element of the first output."""

PER_INPUT_ELEMENT: Mapping[str, int] = {
    **_each("ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ArgMax ArgMin CumSum CumProd Hardmax", 1),
    **_each("GlobalAveragePool GlobalMaxPool QLinearGlobalAveragePool NonZero NhwcGlobalAveragePool", 1),
    **_each("ReduceL1 ReduceL2 ReduceSumSquare GlobalLpPool", 2),
    "ReduceLogSum": 1,
    "ReduceLogSumExp": 2 + _EXP,
    **_each("Softmax QLinearSoftmax", _SOFTMAX),
    "LogSoftmax": _SOFTMAX,
    "BiasSoftmax": _SOFTMAX + 1,
    **_each("LayerNormalization InstanceNormalization GroupNormalization GroupNorm", _MEAN_VARIANCE + 2),
    **_each("SkipLayerNormalization SkipGroupNorm", _MEAN_VARIANCE + 2 + 2),
    # No mean is taken: square, sum, scale by 1/rms, weight.
    **_each("RMSNormalization SimplifiedLayerNormalization", 4),
    "SkipSimplifiedLayerNormalization": 6,
    "MeanVarianceNormalization": _MEAN_VARIANCE,
    **_each("LpNormalization Normalizer", 2 + _DIV),
    **_each("SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss", _SOFTMAX),
}
"""FLOPs per element of the first input."""

NO_ARITHMETIC = frozenset(
    _each(
        """
        Identity Reshape Squeeze Unsqueeze Flatten Shape Size Constant ConstantOfShape Transpose Concat Split Slice
        Gather GatherElements GatherND Scatter ScatterElements ScatterND TensorScatter Expand Tile Pad Cast CastLike
        BitCast DepthToSpace SpaceToDepth Dropout EyeLike OneHot Compress ReverseSequence CenterCropPad MaxUnpool
        QLinearConcat ReorderInput ReorderOutput MemcpyFromHost MemcpyToHost Optional OptionalGetElement
        OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
        SplitToSequence ConcatFromSequence StringNormalizer StringConcat StringSplit RegexFullMatch TfIdfVectorizer
        ImageDecoder ArrayFeatureExtractor CastMap CategoryMapper DictVectorizer FeatureVectorizer LabelEncoder
        OneHotEncoder ZipMap ExpandDims NhwcPad GatherBlockQuantized RestorePadding RemovePadding
        """,
        0,
    )
)
"""Operators that move, pick, rename or describe data."""

KNOWN_OPERATORS = frozenset({*FORMULAS, *PER_OUTPUT_ELEMENT, *PER_INPUT_ELEMENT, *NO_ARITHMETIC})
"""Operators whose FLOPs this table knows, beside those with bodies."""


def _picked_bytes(shapes: Shapes, node: Node) -> int:
    """Of the first input only as much is read as is written; the other inputs are read whole."""
    rest = sum(shapes.bytes(name) for name in node.inputs[1:] if name)
    return 2 * shapes.bytes(node.outputs[0]) + rest


def _description_bytes(shapes: Shapes, node: Node) -> int:
    """The data behind a Shape or Size are not touched."""
    return 2 * shapes.bytes(node.outputs[0])


PARTIAL_BYTES: Mapping[str, Formula] = {
    **_each("Gather GatherElements GatherND GatherBlockQuantized Slice ArrayFeatureExtractor", _picked_bytes),
    **_each("Shape Size", _description_bytes),
}
