"""How much work an operator is: floating-point operations, bytes touched, and their ratio.

**Convention.** One multiply-accumulate counts as 2 FLOPs. Integer arithmetic of quantised operators
counts like the floating-point arithmetic it stands for. Scalar operations are weighted after
F. McMahon, "The Livermore Fortran Kernels", UCRL-53745 (1986): add, subtract, multiply and compare
1, divide and square root 4, transcendental functions 8. Moving or reinterpreting data is 0 FLOPs.

**Formulas.** Those of the Parallax paper (arXiv:2512.11532, appendix on FLOP estimation):
convolution ``2 * Cin * Hout * Wout * Kh * Kw * Cout``, matrix product ``2 * M * N * K``, element-wise
operators by the elements they write, pooling and reduction by the elements they read. Two departures: a
grouped or depthwise convolution reads only ``Cin / groups`` channels per output (the paper's table
overcounts it by ``groups``), and element-wise operators carry the weights above instead of 1. Operators
the paper does not list follow their definition in the ONNX operator specification or in ONNX Runtime's
``ContribOperators.md``. What an operator this table does not know costs is 0, and said to be unknown.

Bytes are inputs read plus outputs written, each once: what has to move through the caches at least.
"""

from __future__ import annotations

from parallax._record import dataclass
from parallax.graph._formulas import FORMULAS, NO_ARITHMETIC, PARTIAL_BYTES, PER_INPUT_ELEMENT, PER_OUTPUT_ELEMENT
from parallax.graph._op_graph import Node, OpGraph, constant_value
from parallax.graph._shapes import Shapes, UnknownShape

MAX_BODY_DEPTH = 64
"""Bodies nested deeper are not counted (and said to be unknown): no real model comes near."""

_MAX_ITERATIONS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWork:
    """What one run of an operator takes.

    ``known`` is False when the figures are incomplete: the operator is not in the table (it then
    counts as 0), or it is a loop whose number of iterations is not in the model (it then counts as
    one iteration), or a size had to be assumed. None stands for a figure whose shapes are unknown.
    """

    flops: int | None
    bytes: int | None
    """What it reads plus what it writes. Operators that read a part of an input by design (Gather, Slice, Shape, ...)
    count that part, those that only rename data (Reshape, Squeeze, ...) count as if they copied it."""
    known: bool


def node_flops(graph: OpGraph, node: Node) -> int | None:
    """FLOPs of one run of ``node``, 2 per multiply-accumulate; None when shapes are unknown."""
    return node_work(graph, node).flops


def intensity(graph: OpGraph, node: Node) -> float | None:
    """FLOPs per byte moved ("arithmetic intensity"); None when either is unknown, 0 for no bytes."""
    work = node_work(graph, node)
    if work.flops is None or work.bytes is None:
        return None
    return work.flops / work.bytes if work.bytes else 0.0


def node_work(graph: OpGraph, node: Node) -> NodeWork:
    """FLOPs and bytes of one run of ``node``, with what is not known said."""
    return shaped_work(Shapes(graph), node)


def shaped_work(shapes: Shapes, node: Node, *, depth: int = 0) -> NodeWork:
    """Work as `node_work` says, with the shapes looked up by ``shapes`` (which may assume unknown sizes)."""
    if node.bodies:
        return _control_flow_work(shapes, node, depth)
    shapes.assumed = False
    op_type = node.op_type
    flops: int | None
    known = True
    try:
        if (weight := PER_OUTPUT_ELEMENT.get(op_type)) is not None:
            flops = weight * shapes.out_size(node)
        elif op_type in NO_ARITHMETIC:
            flops = 0
        elif (formula := FORMULAS.get(op_type)) is not None:
            flops = formula(shapes, node)
        elif (weight := PER_INPUT_ELEMENT.get(op_type)) is not None:
            flops = weight * shapes.in_size(node)
        else:
            flops, known = 0, False
    except UnknownShape:
        flops = None
    return NodeWork(flops=flops, bytes=_moved_bytes(shapes, node), known=known and not shapes.assumed)


def _moved_bytes(shapes: Shapes, node: Node) -> int | None:
    try:
        if (partial := PARTIAL_BYTES.get(node.op_type)) is not None:
            return partial(shapes, node)
        names = {*node.inputs, *node.outputs}
        names.discard("")
        return sum(map(shapes.bytes, names))
    except UnknownShape:
        return None


# Control flow -------------------------------------------------------------------------------------


def _control_flow_work(shapes: Shapes, node: Node, depth: int) -> NodeWork:
    """If costs its dearer branch; Loop, Scan and SequenceMap their body times the iterations."""
    if depth >= MAX_BODY_DEPTH:
        return NodeWork(flops=0, bytes=0, known=False)
    bodies = [_body_work(shapes.inside(body), body, depth + 1) for _, body in node.bodies]
    known = all(work.known for work in bodies)
    if node.op_type == "If":
        flops = _largest([work.flops for work in bodies])
        moved = _largest([work.bytes for work in bodies])
        return NodeWork(flops=flops, bytes=moved, known=known)
    iterations = iteration_count(shapes, node)
    times = 1 if iterations is None else iterations
    return NodeWork(
        flops=None if bodies[0].flops is None else bodies[0].flops * times,
        bytes=None if bodies[0].bytes is None else bodies[0].bytes * times,
        known=known and iterations is not None and node.op_type in ("Loop", "Scan"),
    )


def _body_work(shapes: Shapes, body: OpGraph, depth: int) -> NodeWork:
    flops: int | None = 0
    moved: int | None = 0
    known = True
    for node in body.nodes:
        work = shaped_work(shapes, node, depth=depth)
        flops = None if flops is None or work.flops is None else flops + work.flops
        moved = None if moved is None or work.bytes is None else moved + work.bytes
        known = known and work.known
    return NodeWork(flops=flops, bytes=moved, known=known)


def _largest(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def iteration_count(shapes: Shapes, node: Node) -> int | None:
    """How often a body runs, where the model tells; None where only the data do."""
    if node.op_type == "Scan":
        # Scan-8 has no scan_input_axes and a batch axis first; it is not counted.
        count = node.attributes.get("num_scan_inputs")
        if not isinstance(count, int) or not 0 < count <= len(node.inputs):
            return None
        axes = node.attributes.get("scan_input_axes")
        axis = axes[0] if isinstance(axes, tuple) and axes else 0
        try:
            return int(shapes.shape(node.inputs[len(node.inputs) - count])[axis])
        except (UnknownShape, IndexError):
            return None
    if node.op_type == "Loop" and node.inputs and node.inputs[0]:
        count_value = constant_value(shapes.graph, node.inputs[0])
        if count_value is not None and count_value.size == 1:
            # A while loop is written as a Loop with the largest trip count there is.
            trips = int(count_value.reshape(()))
            return max(0, trips) if trips <= _MAX_ITERATIONS else None
    return None
