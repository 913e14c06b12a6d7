"""Costs without measuring: every node's duration from its shapes and a table of rates.

A node takes ``overhead + max(flops / rate, bytes / bandwidth)``, the roofline of its class of operator
(Williams, Waterman and Patterson, CACM 52(4), 2009), spread over threads by Amdahl's law. The figures
are those of one contemporary x86-64 server core and ONNX Runtime's CPU kernels: good for telling cheap
from dear and serial from parallel before anything has run, not for predicting a latency.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from parallax._record import dataclass
from parallax.errors import ConfigError
from parallax.graph import (
    MAX_BODY_DEPTH,
    CostModel,
    Node,
    OpGraph,
    Shapes,
    UnknownShape,
    constant_value,
    iteration_count,
    shaped_work,
)
from parallax.model import Survey

NODE_OVERHEAD_NS = 2_000
"""Of one kernel call, whatever it does. Measured: a Relu or Reshape of a few elements takes 2 to 3 µs."""

_CONTROL_FLOW_OVERHEAD_NS = 10_000
"""Of starting the nested executor once. Measured: an If around one small Relu takes 9 to 12 µs more than it."""

_SHARE_NS = 40_000
"""Work a further thread must find before it is worth waking. ONNX Runtime's ``ThreadPool::TryParallelFor``
asks for about 100,000 cycles per thread (``kPerThreadCycles``); measured, 20 µs do not split and 80 µs do."""

_DENSE_SHARE_NS = 1_500
"""The same for matrix products, which MLAS splits earlier: 64 Ki multiply-accumulates per thread
(``MLAS_SGEMM_THREAD_COMPLEXITY``), which is this long at the rate of the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """How fast one core runs a class of operator, and how much two cores help.

    ``serial`` is Amdahl's serial share: 2 / s - 1 where two threads run it s times as fast.
    """

    gflops: float
    gbytes: float
    speedup_of_two: float
    share_ns: int = _SHARE_NS

    @property
    def serial(self) -> float:
        return 2 / self.speedup_of_two - 1


# Rates: medians of single operators on one core of an AMD EPYC 9004 (Zen 4, AVX-512), ONNX Runtime 1.31.1,
# float32, tensors of 0.1 to 8 MB that stay in cache. Speed-ups of two threads: the per-operator figures in
# docs/measured-facts.md for matrix products, softmax over an inner axis, normalisation,
# transposition and data movement. Element-wise ones: Exp 1.74, Clip 1.69 and Gelu 1.93 in those runs; softmax, pools,
# conversions and reductions, which split over rows in the same way, are taken to be like them or more careful.
_DENSE = _Rates(gflops=110, gbytes=40, speedup_of_two=1.9, share_ns=_DENSE_SHARE_NS)
_DEPTHWISE = _Rates(gflops=60, gbytes=40, speedup_of_two=1.9, share_ns=_DENSE_SHARE_NS)
# Steps depend on each other; what is left to split is one small product per step.
_RECURRENT = _Rates(gflops=55, gbytes=40, speedup_of_two=1.0)
_ELEMENTWISE = _Rates(gflops=20, gbytes=60, speedup_of_two=1.75)
# Data-dependent control inside the kernel (NonMaxSuppression, TopK, NonZero, Unique).
_BRANCHY = _Rates(gflops=1, gbytes=10, speedup_of_two=1.0)
_SOFTMAX = _Rates(gflops=40, gbytes=40, speedup_of_two=1.75)
# Over an inner axis the kernel transposes there and back on one thread.
_SOFTMAX_INNER = _Rates(gflops=1, gbytes=5, speedup_of_two=1.0)
_NORM = _Rates(gflops=13, gbytes=40, speedup_of_two=1.25)
_REDUCE = _Rates(gflops=11, gbytes=40, speedup_of_two=1.5)
# Over other than the trailing axes it strides through memory. ReduceSum 0.4, ReduceMean 1.3, ReduceMax 2.5.
_REDUCE_INNER = _Rates(gflops=1, gbytes=10, speedup_of_two=1.0)
_POOL = _Rates(gflops=33, gbytes=40, speedup_of_two=1.75)
_INTERPOLATE = _Rates(gflops=6, gbytes=20, speedup_of_two=1.5)
_TRANSPOSE = _Rates(gflops=100, gbytes=20, speedup_of_two=1.05)
_CONCAT = _Rates(gflops=100, gbytes=60, speedup_of_two=1.07)
_SPLIT = _Rates(gflops=100, gbytes=60, speedup_of_two=1.25)
_COPY = _Rates(gflops=100, gbytes=60, speedup_of_two=1.0)
# Picking single elements costs a call of memcpy each, 10 ns.
_GATHER_FINE = _Rates(gflops=100, gbytes=0.8, speedup_of_two=1.0)
_REARRANGE = _Rates(gflops=100, gbytes=4.5, speedup_of_two=1.0)
_CAST = _Rates(gflops=100, gbytes=40, speedup_of_two=1.75)
_FREE = _Rates(gflops=1e9, gbytes=1e9, speedup_of_two=1.0)


def _each(names: str, rates: _Rates) -> dict[str, _Rates]:
    return dict.fromkeys(names.split(), rates)


_CLASSES: Mapping[str, _Rates] = {
    **_each(
        """
        Conv FusedConv NhwcFusedConv ConvInteger QLinearConv ConvTranspose DeformConv CausalConvWithState
        Gemm FusedGemm GemmFloat8 QGemm GemmFastGelu MatMul FusedMatMul FusedMatMulActivation TransposeMatMul
        MatMulInteger MatMulInteger16 MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul MatMulNBits MatMulBnb4
        MatMulFpQ4 Einsum Attention QAttention MultiHeadAttention GroupQueryAttention DecoderMaskedMultiHeadAttention
        """,
        _DENSE,
    ),
    **_each("LSTM GRU RNN DynamicQuantizeLSTM AttnLSTM", _RECURRENT),
    **_each("Softmax LogSoftmax BiasSoftmax QLinearSoftmax Hardmax", _SOFTMAX),
    **_each(
        """
        LayerNormalization SkipLayerNormalization EmbedLayerNormalization SimplifiedLayerNormalization RMSNormalization
        SkipSimplifiedLayerNormalization InstanceNormalization GroupNormalization GroupNorm SkipGroupNorm
        MeanVarianceNormalization LpNormalization LRN
        """,
        _NORM,
    ),
    **_each(
        """
        ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum
        ReduceLogSumExp ArgMax ArgMin CumSum CumProd
        """,
        _REDUCE,
    ),
    **_each(
        """
        MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool NhwcMaxPool QLinearAveragePool
        QLinearGlobalAveragePool MaxRoiPool
        """,
        _POOL,
    ),
    **_each("Resize Upsample GridSample RoiAlign AffineGrid DFT STFT", _INTERPOLATE),
    **_each("NonMaxSuppression TopK Unique NonZero Det Multinomial Compress", _BRANCHY),
    "Transpose": _TRANSPOSE,
    "Concat": _CONCAT,
    "QLinearConcat": _CONCAT,
    "Split": _SPLIT,
    **_each(
        """
        Slice Pad Expand Tile Gather GatherElements GatherND Scatter ScatterElements ScatterND TensorScatter
        ConstantOfShape OneHot EyeLike Range Trilu ReverseSequence CenterCropPad ConcatFromSequence SplitToSequence
        """,
        _COPY,
    ),
    **_each("DepthToSpace SpaceToDepth Col2Im MaxUnpool", _REARRANGE),
    **_each("Cast CastLike QuantizeLinear DequantizeLinear DynamicQuantizeLinear", _CAST),
    # The runtime hands on the same buffer; only the call remains.
    **_each(
        """
        Identity Reshape Squeeze Unsqueeze Flatten Shape Size Constant Dropout BitCast Optional OptionalGetElement
        OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty SequenceLength ExpandDims
        """,
        _FREE,
    ),
}
"""Operators not listed are taken for element-wise ones."""


_FINE_ELEMENTS = 8


def estimate_costs(graph: OpGraph, *, cores: int) -> CostModel:
    """Durations of ``graph``'s nodes on 1 to ``cores`` threads, from shapes alone.

    Pure and linear in the graph, microseconds per node. A dimension that is not known counts as 1, so
    what cannot be known looks cheap and promises nothing; ``known_fraction`` says how much was known.

    Raises: ConfigError if ``cores`` is below 1.
    """
    if cores < 1:
        raise ConfigError(f"costs for {cores} cores", fix="at least 1 core is needed")
    widths = _knots(cores)
    shapes = Shapes(graph, assumed_dim=1)
    rows: list[tuple[int, ...]] = []
    known = 0
    for node in graph.nodes:
        durations, certain = _node_durations(shapes, node, widths, 0)
        rows.append(durations)
        known += certain
    return CostModel(
        source="tables",
        widths=widths,
        durations_ns=tuple(zip(*rows, strict=True)) if rows else ((),) * len(widths),
        latencies_ns=(None,) * len(widths),
        scales=(1.0,) * len(widths),
        known_fraction=known / len(rows) if rows else 1.0,
    )


_LARGEST_TERM_FLOPS, _LARGEST_TERM_BYTES = 16, 24
"""Of one element of a tensor, in an operator that is no product: a softmax's; two inputs and an output of 8 bytes."""

_PICKED_BYTES = 16
"""Read and written, of one element that a Gather picks."""

_REDUCED_FLOPS = 10
"""Of one element that a reduction reads: that of ReduceLogSumExp."""

_PRODUCT_FLOPS = 2_000
"""Of one element that a product writes: a thousand weights each."""


def most_work_ns(survey: Survey, *, with_branches: bool = False) -> int:
    """What the nodes of a model could take on one core at most, their overhead apart, by what the file states.

    Each node is taken to handle the largest tensor that is stated, at the slowest rate of its class. So this is an
    upper bound where no operator makes larger tensors than are stated, and without inferring a single type. What a
    Gather writes that picks rows of a weight is known, which most tensors of recommenders are.

    Args:
        survey: of the model.
        with_branches: whether operators in the branches of Ifs count, as if every branch ran. Other bodies never
            count.
    """
    largest = survey.largest_elements
    most_ns = 0.0
    if with_branches:
        branches = survey.branches
        largest = max(largest, branches.largest_elements)
        most_ns += _most_of(branches.operators) * largest
        # What is called within a node is part of what the node takes.
        most_ns += branches.graphs * _CONTROL_FLOW_OVERHEAD_NS + sum(branches.operators.values()) * NODE_OVERHEAD_NS
    most_ns += _most_of(survey.operators) * largest
    if survey.row_pickers:
        most_ns -= survey.row_pickers * _most_ns("Gather") * largest
        for row, elements in survey.picked_rows.items():
            rates = _COPY if row >= _FINE_ELEMENTS else _GATHER_FINE
            most_ns += elements * _PICKED_BYTES / rates.gbytes
    return round(most_ns)


def _most_of(operators: Mapping[str, int]) -> float:
    """Most ns per element of the largest tensor, for so many nodes of each type."""
    return sum(count * _most_ns(op_type) for op_type, count in operators.items())


@functools.cache
def _most_ns(op_type: str) -> float:
    """Per element."""
    rates = _CLASSES.get(op_type, _ELEMENTWISE)
    if rates in (_DENSE, _RECURRENT):
        return _PRODUCT_FLOPS / rates.gflops
    if op_type == "Gather":
        return _PICKED_BYTES / _GATHER_FINE.gbytes
    if rates is _REDUCE:
        return max(_REDUCED_FLOPS / _REDUCE_INNER.gflops, _LARGEST_TERM_BYTES / _REDUCE_INNER.gbytes)
    slowest = _SOFTMAX_INNER if rates is _SOFTMAX else rates
    return max(_LARGEST_TERM_FLOPS / slowest.gflops, _LARGEST_TERM_BYTES / slowest.gbytes)


def product_flops(width: int) -> float:
    """FLOP/s at which the tables take a large matrix product to run on ``width`` threads: what to scale them by."""
    fixed = _DENSE.serial
    return _DENSE.gflops * 1e9 / (fixed + (1 - fixed) / width)


def _knots(cores: int) -> tuple[int, ...]:
    """Widths worth a column: 1, 2, 3, 4, 6, 8, 12, 16, ... and ``cores``; others are interpolated."""
    knots = {1, cores}
    step = 2
    while step <= cores:
        knots |= {step, step * 3 // 2}
        step *= 2
    return tuple(sorted(width for width in knots if width <= cores))


def _node_durations(shapes: Shapes, node: Node, widths: Sequence[int], depth: int) -> tuple[tuple[int, ...], bool]:
    if node.bodies:
        return _control_flow_durations(shapes, node, widths, depth)
    work = shaped_work(shapes, node)
    rates = _rates(shapes, node)
    serial_ns = max((work.flops or 0) / rates.gflops, (work.bytes or 0) / rates.gbytes)
    certain = work.known and work.flops is not None and work.bytes is not None
    if serial_ns < rates.share_ns or rates.speedup_of_two <= 1.0:
        return (NODE_OVERHEAD_NS + int(serial_ns),) * len(widths), certain
    most = 1 + int(serial_ns / rates.share_ns)
    fixed = rates.serial
    return (
        tuple(
            NODE_OVERHEAD_NS + int(serial_ns * (fixed + (1 - fixed) / (width if width < most else most)))
            for width in widths
        ),
        certain,
    )


def _control_flow_durations(
    shapes: Shapes, node: Node, widths: Sequence[int], depth: int
) -> tuple[tuple[int, ...], bool]:
    """The dearest body once per iteration; a loop whose count is not in the model counts as one."""
    bodies: list[tuple[int, ...]] = []
    certain = depth < MAX_BODY_DEPTH
    for _, body in node.bodies if certain else ():
        inside = shapes.inside(body)
        totals = [_CONTROL_FLOW_OVERHEAD_NS] * len(widths)
        for inner in body.nodes:
            durations, known = _node_durations(inside, inner, widths, depth + 1)
            totals = [total + ns for total, ns in zip(totals, durations, strict=True)]
            certain = certain and known
        bodies.append(tuple(totals))
    iterations = 1
    if node.op_type != "If":
        found = iteration_count(shapes, node)
        certain = certain and found is not None
        iterations = 1 if found is None else found
    return (
        tuple(NODE_OVERHEAD_NS + iterations * max(column) for column in zip(*bodies, strict=True))
        or (NODE_OVERHEAD_NS,) * len(widths),
        certain,
    )


def _rates(shapes: Shapes, node: Node) -> _Rates:
    rates = _CLASSES.get(node.op_type, _ELEMENTWISE)
    try:
        if rates is _DENSE and node.attributes.get("group", 1) != 1:
            weights = shapes.input(node, 3 if node.op_type == "QLinearConv" else 1)
            return _DEPTHWISE if len(weights) > 1 and weights[1] == 1 else _DENSE
        if rates is _SOFTMAX:
            axis = node.attributes.get("axis", -1)
            return _SOFTMAX if axis in (-1, len(shapes.input(node, 0)) - 1) else _SOFTMAX_INNER
        if rates is _REDUCE:
            return _REDUCE if _reduces_trailing(shapes, node) else _REDUCE_INNER
        if node.op_type == "Gather":
            data = shapes.input(node, 0)
            axis = node.attributes.get("axis", 0)
            block = math.prod(data[axis % len(data) + 1 :]) if isinstance(axis, int) and data else 1
            return _COPY if block >= _FINE_ELEMENTS else _GATHER_FINE
    except UnknownShape:
        return rates
    return rates


def _reduces_trailing(shapes: Shapes, node: Node) -> bool:
    """Whether the reduced axes are the last ones; True where the model does not tell."""
    stated = node.attributes.get("axes", node.attributes.get("axis"))
    if stated is None and len(node.inputs) > 1:
        value = constant_value(shapes.graph, node.inputs[1])
        stated = None if value is None else tuple(int(axis) for axis in value.reshape(-1))
    if isinstance(stated, int):
        stated = (stated,)
    if not isinstance(stated, tuple) or not stated:
        return True
    rank = len(shapes.input(node, 0))
    reduced = {axis % rank for axis in stated} if rank else set()
    return reduced == set(range(rank - len(reduced), rank))
