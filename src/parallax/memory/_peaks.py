"""What a group of nodes (a segment, a branch) needs while it runs: peaks from node-level liveness.

After "peak estimate M_i" in Parallax (arXiv 2512.11532): tensors live from the node that makes them to the
last that reads them, in topological order; what is needed outside stays to the end; a running sum over
the ends of these intervals gives the peak. Kernels' own scratch space and weights repacked by the runtime
are not in it: they are not tensors of the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from parallax._record import dataclass
from parallax.graph import Node, OpGraph, SizeExpression, SizeTable, TensorInfo, size_expression


class GroupPeak(NamedTuple):
    """Peaks of one group of nodes, in bytes."""

    interior_bytes: int
    """Of tensors made and used up inside: what the runtime allocates while the group runs, boundary tensors
    living elsewhere."""
    total_bytes: int
    """With what the group reads from outside (all along) and what it hands on (from when it is made)."""
    unknown_tensors: int
    """Tensors of unknown size, counted as 0."""


class PeakTable:
    """Peaks of groups of nodes for any sizes: what depends on the graph alone is computed once.

    Linear in nodes and edges to make; `bind` is a running sum over arrays. Views (Reshape and the like) share the bytes
    of their input. No operator is taken to overwrite an input, though the runtime lets some: the higher, safer peak.

    Args:
        graph: the graph.
        groups: node indices of each group, ascending. Groups may overlap.
        kept: per group the tensors that live to its end; default: those read by other nodes, and the graph's outputs.
    """

    __slots__ = ("_bodies", "_constant", "_everything", "_interior", "_members", "_sizes", "_starts", "symbols")

    VIEWS: ClassVar[frozenset[str]] = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
    """Operators whose output always shares its input's bytes in ONNX Runtime (``Alias`` in its kernel definitions)."""

    def __init__(
        self,
        graph: OpGraph,
        groups: Sequence[Sequence[int]],
        *,
        kept: Sequence[Collection[str]] | None = None,
    ) -> None:
        self._build(graph, groups, kept, input_symbols(graph), {})

    def _build(
        self,
        graph: OpGraph,
        groups: Sequence[Sequence[int]],
        kept: Sequence[Collection[str]] | None,
        symbols: Collection[str],
        outer: Mapping[str, TensorInfo],
    ) -> None:
        columns = _Columns({**outer, **graph.initializers, **graph.tensors}, symbols)
        # Two running sums, (column, +1 | -1) each: what is made and used up inside, and everything.
        interior: list[tuple[int, int]] = []
        everything: list[tuple[int, int]] = []
        starts: list[tuple[int, int]] = []
        self._members: list[tuple[int, ...]] = []
        self._bodies: list[tuple[int, int, PeakTable]] = []  # column, group, table
        for number, nodes in enumerate(groups):
            starts.append((len(interior), len(everything)))
            interior.append((columns.nothing, 1))
            everything.append((columns.nothing, 1))
            blocks = _blocks(graph, nodes, None if kept is None else frozenset(kept[number]), columns)
            self._members.append(tuple([block.column for block in blocks]))
            born: list[list[_Block]] = [[] for _ in nodes]
            dead: list[list[_Block]] = [[] for _ in nodes]
            for block in blocks:
                born[block.first].append(block)
                dead[block.last].append(block)
            for step, index in enumerate(nodes):
                for block in born[step]:
                    everything.append((block.column, 1))
                    if block.is_interior:
                        interior.append((block.column, 1))
                for _, body in graph.nodes[index].bodies:
                    # All that a body allocates comes and goes as one column.
                    table = PeakTable.__new__(PeakTable)
                    members, ends = [range(len(body.nodes))], [body.output_names]
                    table._build(body, members, ends, symbols, columns.types)
                    column = columns.reserve()
                    self._bodies.append((column, number, table))
                    interior += [(column, 1), (column, -1)]
                    everything += [(column, 1), (column, -1)]
                for block in dead[step]:
                    everything.append((block.column, -1))
                    if block.is_interior:
                        interior.append((block.column, -1))
        self._starts = (
            np.array([at for at, _ in starts], dtype=np.intp),
            np.array([at for _, at in starts], dtype=np.intp),
        )
        self._interior = _columns_and_signs(interior)
        self._everything = _columns_and_signs(everything)
        self._sizes = SizeTable(columns.expressions)
        self.symbols: tuple[str, ...] = tuple(
            sorted({*self._sizes.symbols, *(name for _, _, table in self._bodies for name in table.symbols)})
        )
        """Every dimension a peak depends on, ascending."""
        self._constant: tuple[GroupPeak, ...] | None = None
        if not self.symbols:
            self._constant = self.bind({})

    def bind(self, dims: Mapping[str, int]) -> tuple[GroupPeak, ...]:
        """The peaks of each group for these dimensions."""
        if self._constant is not None:
            return self._constant
        known = self._sizes.bind(dims)
        sizes = np.array([size or 0 for size in known], dtype=np.int64)
        missing = {column for column, size in enumerate(known) if size is None}
        unknown = [len(missing.intersection(members)) if missing else 0 for members in self._members]
        for column, number, table in self._bodies:
            (peak,) = table.bind(dims)
            sizes[column] = peak.total_bytes
            unknown[number] += peak.unknown_tensors
        if not self._members:
            return ()
        interior = _highest(*self._interior, self._starts[0], sizes)
        everything = _highest(*self._everything, self._starts[1], sizes)
        return tuple(map(GroupPeak, interior, everything, unknown))


def input_symbols(graph: OpGraph) -> frozenset[str]:
    """The names of the dimensions of a model's inputs."""
    return frozenset(
        dim for info in (*graph.inputs, *graph.overridable) for dim in info.shape or () if isinstance(dim, str)
    )


class _Columns:
    """Numbers the tensors whose sizes a table needs."""

    __slots__ = ("_numbers", "_symbols", "expressions", "nothing", "types")

    def __init__(self, types: Mapping[str, TensorInfo], symbols: Collection[str]) -> None:
        self.types = types
        self._symbols = symbols
        self._numbers: dict[str, int] = {}
        self.expressions: list[SizeExpression | None] = [SizeExpression(terms=(), bits=8)]
        self.nothing = 0
        """A column of size 0."""

    def of(self, tensor: str) -> int:
        number = self._numbers.get(tensor)
        if number is None:
            info = self.types.get(tensor)
            number = self._numbers[tensor] = len(self.expressions)
            self.expressions.append(None if info is None else size_expression(info, symbols=self._symbols))
        return number

    def reserve(self) -> int:
        """A column for what is no tensor."""
        self.expressions.append(None)
        return len(self.expressions) - 1


@dataclass(slots=True, kw_only=True)
class _Block:
    """Bytes that one tensor, or several one after the other, occupy while a group runs."""

    column: int
    first: int
    """Position in the group of the node that makes it, 0 for what comes from outside."""
    last: int
    """Position of the last node that needs it, inclusive."""
    is_interior: bool


def _blocks(graph: OpGraph, nodes: Sequence[int], kept: Collection[str] | None, columns: _Columns) -> list[_Block]:
    """The blocks of a group: of what it reads, what it makes for itself, and what it hands on.

    Weights (initializers, constants) are not among them: they are there before, during and after. Nor
    are tensors of the graph around a body.
    """
    last_use: dict[str, int] = {}
    for step, index in enumerate(nodes):
        for name in _reads(graph.nodes[index]):
            last_use[name] = step
    end = len(nodes) - 1
    if kept is None:
        inside = frozenset(nodes)
        kept = frozenset(
            name
            for index in nodes
            for name in graph.nodes[index].outputs
            if name in graph.output_names or not inside.issuperset(graph.consumers.get(name, ()))
        )
    fed = {info.name for info in (*graph.inputs, *graph.overridable)}
    made = {name for index in nodes for name in graph.nodes[index].outputs}
    blocks: dict[str, _Block] = {}  # tensor -> where it lives; views share a block
    found: list[_Block] = []
    for name in last_use:
        source = graph.producers.get(name)
        is_weight = name not in fed if source is None else graph.nodes[source].op_type == "Constant"
        if name not in made and not is_weight:
            found.append(_Block(column=columns.of(name), first=0, last=end, is_interior=False))
    for step, index in enumerate(nodes):
        node = graph.nodes[index]
        if node.op_type == "Constant" and not node.domain:
            continue
        for position, name in enumerate(node.outputs):
            if not name or name in blocks:
                continue
            if name in kept:
                blocks[name] = _Block(column=columns.of(name), first=step, last=end, is_interior=False)
                found.append(blocks[name])
                continue
            last = last_use.get(name, step)
            if not node.domain and position == 0 and node.inputs and node.op_type in PeakTable.VIEWS:
                shared = blocks.get(node.inputs[0])
                if shared is None or not shared.is_interior:
                    if node.inputs[0]:
                        continue  # a view of what lives outside takes no bytes of its own
                else:
                    shared.last = max(shared.last, last)
                    blocks[name] = shared
                    continue
            blocks[name] = _Block(column=columns.of(name), first=step, last=last, is_interior=True)
            found.append(blocks[name])
    return found


def _reads(node: Node) -> tuple[str, ...]:
    return tuple(name for name in (*node.inputs, *node.captures) if name)


def _columns_and_signs(events: Sequence[tuple[int, int]]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    return np.array([column for column, _ in events], dtype=np.intp), np.array([sign for _, sign in events], np.int64)


def _highest(
    columns: npt.NDArray[np.intp],
    signs: npt.NDArray[np.int64],
    starts: npt.NDArray[np.intp],
    sizes: npt.NDArray[np.int64],
) -> list[int]:
    """Per group the highest value of its running sum. Each group's events add up to 0."""
    highest: list[int] = np.maximum.reduceat(np.cumsum(signs * sizes[columns]), starts).tolist()
    return highest
