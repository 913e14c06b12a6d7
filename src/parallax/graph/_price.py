"""How much work a part of a model is, and what a device takes for it."""

from __future__ import annotations

from dataclasses import dataclass

from parallax.graph._elements import ELEMENT_TYPES
from parallax.graph._op_graph import Node, OpGraph
from parallax.graph._work import node_work


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorWork:
    """Describes one operator's share of the work of a part of a model."""

    op_type: str
    flops: int
    touched_bytes: int
    """Bytes it reads and writes, weights included."""
    element_type: str = "float32"
    """It computes in, as `ElementType.name` has it."""


def operator_work(graph: OpGraph, node: Node) -> OperatorWork:
    """The work of one operator. It computes in the element type of its first result, where that is known.

    Figures that are not known count as 0.

    Args:
        graph: with types, as `Model.inferred` gives it.
    """
    work = node_work(graph, node)
    known = (graph.tensors.get(name) for name in node.outputs if name)
    types = [ELEMENT_TYPES[info.dtype].name for info in known if info is not None and info.dtype in ELEMENT_TYPES]
    return OperatorWork(
        op_type=node.op_type,
        flops=work.flops or 0,
        touched_bytes=work.bytes or 0,
        element_type=types[0] if types else "float32",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What running a part once amounts to."""

    operators: tuple[OperatorWork, ...]
    moved_bytes: tuple[int, ...] = ()
    """Bytes of each tensor that it needs from other domains, or that they need from it."""

    @property
    def flops(self) -> int:
        return sum(operator.flops for operator in self.operators)

    @property
    def touched_bytes(self) -> int:
        return sum(operator.touched_bytes for operator in self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """An estimate of one run, in ns, by its parts."""

    launch_ns: int
    compute_ns: int
    transfer_ns: int

    @property
    def total_ns(self) -> int:
        return self.launch_ns + self.compute_ns + self.transfer_ns
