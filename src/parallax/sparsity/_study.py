"""All operators of a model with the zeros of what they read: weights from the file, activations from runs on
examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from parallax._record import dataclass
from parallax.graph import NUMPY_TYPES, Node, OpGraph, constant_value, node_work
from parallax.model import Model
from parallax.partition import find_constants
from parallax.schedule.placement import middle_thresholds
from parallax.sparsity._fetch import FETCHED_BYTES, Progress, fetch_tensors
from parallax.sparsity._operators import OperatorZeros, SparsityReport, ZeroShare
from parallax.sparsity._weights import CHANNELLED, Array, WeightCount, count_weight, zero_share

_QUANTISED: Final = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "MatMulNBits", "Dequantize")
"""How the names of operators begin whose operands are integers that stand for other numbers."""


def study_zeros(
    model: Model,
    examples: Sequence[Mapping[str, Any]],
    *,
    min_flops: float | None = None,
    max_zeros: float | None = None,
    width: int = 1,
    limit_bytes: int = FETCHED_BYTES,
    progress: Progress | None = None,
) -> SparsityReport:
    """Count the zeros that each operator reads.

    Activations are counted on ONNX Runtime, unoptimised, a few tensors per run (`fetch_tensors`), each example on its
    own. Weights are counted in the file; those that the model computes from constants (dequantised, transposed) in a
    run. What a runtime computes when it loads the model is left out. Operators inside bodies are there with their
    weights, their work for one iteration, and no activations.

    Args:
        model: in the shapes of the examples.
        examples: feeds (input name -> array), all of the same shapes; at least one.
        min_flops: the threshold of work, in FLOPs. None: the middle one of those that the placer ``thresholds`` tries.
        max_zeros: the threshold of zeros, 0 to 1; likewise.
        width: threads of one run.
        limit_bytes: what the tensors that one run returns may take, unless one alone takes more.
        progress: called with (runs done, runs in all) after each run.

    Raises:
        BackendError: ONNX Runtime cannot open the model, or run it on the examples.
        UnsupportedModelError: the model can be run whole only.
    """
    graph = model.inferred()
    operands = _Operands.of(graph)
    seen: dict[str, list[float]] = {}
    counted: dict[tuple[int, int], WeightCount | None] = {}
    readers: dict[str, list[tuple[int, int]]] = {}
    wanted: dict[str, None] = {}
    for node in operands.nodes:
        main = operands.main(node)
        if main is not None and main in graph.producers and not _why_unseen(model, graph, node, main):
            wanted[main] = None
        for position, name in operands.weights(node):
            if name in graph.producers and _held(model, name) is None and model.can_split_at(name):
                wanted[name] = None
                readers.setdefault(name, []).append((node.index, position))

    def visit(name: str, value: Array) -> None:
        if name in readers:
            # The same in every example: counted once.
            for index, position in readers.pop(name):
                counted[index, position] = count_weight(graph.nodes[index], position, value)
        elif name not in operands.fixed and (share := zero_share(value)) is not None:
            seen.setdefault(name, []).append(share)

    fetches = fetch_tensors(
        model, examples, list(wanted), visit, width=width, limit_bytes=limit_bytes, progress=progress
    )
    for info in (*graph.inputs, *graph.overridable):
        shares = [zero_share(_fed(model, example, info.name)) for example in examples]
        seen[info.name] = [share for share in shares if share is not None]
    rows: list[OperatorZeros] = []
    for node in operands.nodes:
        main = operands.main(node)
        row = _row(model, graph, node, operands, counted)
        if main is not None and seen.get(main):
            row = replace(row, seen=ZeroShare.of(seen[main]), why_unseen="")
        rows.append(row)
        rows.extend(_rows_inside(model, node, node.name))
    return _report(rows, examples=len(examples), runs=len(fetches), min_flops=min_flops, max_zeros=max_zeros)


def _report(
    rows: Sequence[OperatorZeros], *, examples: int, runs: int, min_flops: float | None, max_zeros: float | None
) -> SparsityReport:
    middle_flops, middle_zeros = middle_thresholds([row.flops for row in rows], [row.zeros for row in rows])
    return SparsityReport(
        operators=tuple(rows),
        examples=examples,
        runs=runs,
        min_flops=middle_flops if min_flops is None else min_flops,
        max_zeros=middle_zeros if max_zeros is None else max_zeros,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operands:
    """Which operands of a graph's operators are weights, and which is the main input."""

    graph: OpGraph
    fixed: frozenset[str]
    """Tensors that no input of the model changes."""
    nodes: tuple[Node, ...]
    """Those that run: all but what is computed when the model is loaded."""

    @classmethod
    def of(cls, graph: OpGraph) -> _Operands:
        constants = find_constants(graph)
        overridable = {info.name for info in graph.overridable}
        fixed = {name for name in graph.initializers if name not in overridable}
        fixed.update(name for index in constants for name in graph.nodes[index].outputs)
        nodes = tuple(node for node in graph.nodes if node.index not in constants)
        return cls(graph=graph, fixed=frozenset(fixed - {""}), nodes=nodes)

    def main(self, node: Node) -> str | None:
        """The first input that is no constant."""
        return next((name for name in node.inputs if name and name not in self.fixed), None)

    def weights(self, node: Node) -> tuple[tuple[int, str], ...]:
        """(position, name) of the weight with channels, or else of all constants of floating-point numbers."""
        fixed = [(position, name) for position, name in enumerate(node.inputs) if name in self.fixed]
        if node.op_type in CHANNELLED and node.domain in ("", "ai.onnx"):
            positions = (1, 0) if node.op_type in ("Gemm", "MatMul") else (1,)
            return tuple(entry for position in positions for entry in fixed if entry[0] == position)[:1]
        return tuple(entry for entry in fixed if self._is_float(entry[1]))

    def _is_float(self, name: str) -> bool:
        info = self.graph.tensors.get(name) or self.graph.initializers.get(name)
        dtype = None if info is None else NUMPY_TYPES.get(info.dtype)
        return dtype is not None and dtype.kind == "f"


def _row(
    model: Model,
    graph: OpGraph,
    node: Node,
    operands: _Operands,
    counted: Mapping[tuple[int, int], WeightCount | None],
) -> OperatorZeros:
    """An operator with its weights; nothing is seen of its main input yet."""
    work = node_work(graph, node)
    main = operands.main(node)
    weights = []
    for position, name in operands.weights(node):
        found = counted.get((node.index, position))
        values = None if found is not None else _held(model, name)
        if values is not None:
            found = count_weight(node, position, values)
        if found is not None:
            weights.append(found)
    return OperatorZeros(
        name=node.name,
        op_type=node.op_type,
        inside=None,
        activation=main,
        seen=None,
        why_unseen=_why_unseen(model, graph, node, main) or "no example gave it a number",
        weights=_together(weights),
        flops=work.flops or 0,
        moved_bytes=work.bytes or 0,
        is_work_known=work.known and work.flops is not None,
    )


def _together(weights: Sequence[WeightCount]) -> WeightCount | None:
    if len(weights) <= 1:
        return weights[0] if weights else None
    return WeightCount(elements=sum(entry.elements for entry in weights), zeros=sum(entry.zeros for entry in weights))


def _why_unseen(model: Model, graph: OpGraph, node: Node, main: str | None) -> str:
    """Why the zeros of the main input are not to be counted; "" where they are."""
    if main is None:
        return "it reads nothing that an input of the model changes"
    if node.op_type.startswith(_QUANTISED):
        return "its input is quantised: a zero there stands for another number"
    info = graph.tensors.get(main)
    if info is not None and (info.kind != "tensor" or (info.dtype and info.dtype not in NUMPY_TYPES)):
        return f"its input {main!r} is no tensor of numbers that numpy has"
    if main in graph.producers and not model.can_split_at(main):
        return f"the type of its input {main!r} is not known"
    return ""


def _held(model: Model, name: str) -> Array | None:
    """The value of a constant that the file holds; None for one that is computed, or no numbers."""
    value = constant_value(model.graph, name)
    return model.initializer(name) if value is None else value


def _fed(model: Model, example: Mapping[str, Any], name: str) -> Array | None:
    return np.asarray(example[name]) if name in example else _held(model, name)


def _rows_inside(model: Model, node: Node, label: str) -> Iterator[OperatorZeros]:
    """The operators in the bodies of a node, at any depth, with their weights. ``label``: what the node is called."""
    if not node.bodies:
        return
    obstacle = model.why_no_bodies(node.index)
    if obstacle is not None:
        yield from _unread_rows(node, label, obstacle)
        return
    for body in model.bodies(node.index):
        graph = body.model.inferred()
        operands = _Operands.of(graph)
        for inner in operands.nodes:
            name = f"{label}/{body.attribute}/{inner.name}"
            row = _row(body.model, graph, inner, operands, {})
            yield replace(row, name=name, inside=label, why_unseen="it is inside control flow")
            yield from _rows_inside(body.model, inner, name)


def _unread_rows(node: Node, label: str, obstacle: str) -> Iterator[OperatorZeros]:
    """The operators in bodies that cannot be taken out: neither weights nor activations are seen."""
    for attribute, graph in node.bodies:
        for inner in graph.nodes:
            work = node_work(graph, inner)
            name = f"{label}/{attribute}/{inner.name}"
            yield OperatorZeros(
                name=name,
                op_type=inner.op_type,
                inside=label,
                activation=None,
                seen=None,
                why_unseen=f"it is inside control flow, and its weights cannot be taken out: {obstacle}",
                weights=None,
                flops=work.flops or 0,
                moved_bytes=work.bytes or 0,
                is_work_known=False,
            )
            yield from _unread_rows(inner, name, obstacle)
