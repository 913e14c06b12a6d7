"""`Dag`, a directed acyclic graph over 0..n-1 in topological order: what algorithms on graphs work on.

It knows nothing of operators or tensors. Indices are a topological order, so most questions are one
pass over them; nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from parallax._record import dataclass
from parallax.errors import InternalError
from parallax.graph._op_graph import OpGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Dag:
    """A directed acyclic graph whose indices are a topological order.

    Invariants: every edge goes from a lower to a higher index; neighbours are distinct and
    ascending; ``successors`` mirrors ``predecessors``. The constructors keep them, `verify_dag` checks them.
    """

    predecessors: tuple[tuple[int, ...], ...]
    successors: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.predecessors)

    @classmethod
    def from_graph(cls, graph: OpGraph) -> Dag:
        """The nodes of a graph, constants and shape arithmetic included."""
        return cls(predecessors=graph.predecessors, successors=graph.successors)

    @classmethod
    def from_predecessors(cls, predecessors: Iterable[Iterable[int]]) -> Dag:
        """Neighbours may come in any order and more than once.

        Raises: InternalError if an edge does not go from a lower to a higher index.
        """
        rows = tuple([tuple(sorted(set(row))) for row in predecessors])
        out: list[list[int]] = [[] for _ in rows]
        for index, row in enumerate(rows):
            if row and (row[0] < 0 or row[-1] >= index):
                raise InternalError(f"edge {row[-1]} -> {index} does not follow the topological order")
            for pred in row:
                out[pred].append(index)
        return cls(predecessors=rows, successors=tuple(map(tuple, out)))

    @classmethod
    def from_edges(cls, size: int, edges: Iterable[tuple[int, int]]) -> Dag:
        """``size`` nodes and the given (tail, head) pairs; repeated pairs count once.

        Raises: InternalError if an edge does not go from a lower to a higher index below ``size``.
        """
        rows: list[list[int]] = [[] for _ in range(size)]
        for tail, head in edges:
            if not 0 <= tail < head < size:
                raise InternalError(f"edge {tail} -> {head} does not follow the topological order of {size} nodes")
            rows[head].append(tail)
        return cls.from_predecessors(rows)

    def quotient(self, group_of: Sequence[int], groups: int) -> Dag:
        """The DAG over groups of nodes: ``group_of[v]`` is the group of ``v``. O(V + E).

        Raises: InternalError if an edge goes from a higher to a lower group, so that the groups are
            not in topological order (or have a cycle among them, and no order at all).
        """
        rows: list[set[int]] = [set() for _ in range(groups)]
        for head, preds in enumerate(self.predecessors):
            group = group_of[head]
            row = rows[group]
            for pred in preds:
                row.add(group_of[pred])
        for group, row in enumerate(rows):
            row.discard(group)
        return Dag.from_predecessors(rows)


def verify_dag(dag: Dag) -> None:
    """Judge of `Dag`'s invariants. Raises InternalError naming the first offence."""
    size = len(dag.predecessors)
    if len(dag.successors) != size:
        raise InternalError(f"{size} rows of predecessors but {len(dag.successors)} of successors")
    forward: set[tuple[int, int]] = set()
    for head, preds in enumerate(dag.predecessors):
        if list(preds) != sorted(set(preds)):
            raise InternalError(f"predecessors of {head} are not distinct and ascending: {preds}")
        for pred in preds:
            if not 0 <= pred < head:
                raise InternalError(f"edge {pred} -> {head} does not follow the topological order")
            forward.add((pred, head))
    backward: set[tuple[int, int]] = set()
    for tail, targets in enumerate(dag.successors):
        if list(targets) != sorted(set(targets)):
            raise InternalError(f"successors of {tail} are not distinct and ascending: {targets}")
        backward.update((tail, head) for head in targets)
    if forward != backward:
        raise InternalError(f"successors do not mirror predecessors: {sorted(forward ^ backward)[:3]}")


def find_barriers(dag: Dag, is_significant: Sequence[bool] | None = None) -> list[int]:
    """The nodes comparable with every other: each is an ancestor or a descendant of them. Ascending, O(V + E).

    Nothing can run beside a barrier, so what lies between two of them is scheduled on its own. All
    nodes before ``b`` are its ancestors iff each of them has a successor at or before ``b`` (follow it:
    the index grows but never passes ``b``); likewise after it. An edge that skips ``b`` (a residual
    connection) is therefore no obstacle, unlike in the stricter notion of an articulation node.

    With ``is_significant``, the significant nodes comparable with every other significant node: what else could run
    beside them is negligible. A successor is then the first significant node on any path through negligible ones.
    """
    size = len(dag)
    below = _nearest(dag.successors, range(size - 1, -1, -1), is_significant, min, size)
    above = _nearest(dag.predecessors, range(size), is_significant, max, -1)
    # after[b]: the earliest last-predecessor of the nodes after b
    after = [size] * (size + 1)
    for index in range(size - 1, -1, -1):
        counts = is_significant is None or is_significant[index]
        after[index] = min(after[index + 1], above[index]) if counts else after[index + 1]
    found: list[int] = []
    before = -1  # the latest first-successor of the nodes before
    for index, first in enumerate(below):
        if is_significant is not None and not is_significant[index]:
            continue
        if before <= index <= after[index + 1]:
            found.append(index)
        before = max(before, first)
    return found


def _nearest(
    neighbours: Sequence[Sequence[int]],
    order: Iterable[int],
    is_significant: Sequence[bool] | None,
    choose: Callable[[Sequence[int]], int],
    none: int,
) -> list[int]:
    """For each node the nearest significant index among its neighbours and what they reach through negligible ones."""
    if is_significant is None:
        return [choose(row) if row else none for row in neighbours]
    nearest = [none] * len(neighbours)
    for index in order:
        row = neighbours[index]
        if row:
            nearest[index] = choose([other if is_significant[other] else nearest[other] for other in row])
    return nearest


def verify_convex(dag: Dag, members: Iterable[int]) -> None:
    """Judge that no path leaves the set and comes back. Linear in the nodes the set spans.

    Raises: InternalError naming the first member reached again from outside.
    """
    inside = set(members)
    if not inside:
        return
    # Outside nodes that some member reaches; only those between the first and last member matter.
    reached: set[int] = set()
    for index in range(min(inside), max(inside) + 1):
        tainted = any(pred in reached for pred in dag.predecessors[index])
        if index in inside:
            if tainted:
                raise InternalError(f"not convex: a path leaves the set and re-enters it at node {index}")
        elif tainted or any(pred in inside for pred in dag.predecessors[index]):
            reached.add(index)
