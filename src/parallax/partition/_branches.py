"""Node classes, branches and layers.

After "branch extraction" and "layer construction" in Parallax (arXiv 2512.11532), corrected where the
printed loop leaves nodes out: it runs in topological order, sources and sinks have a class, and each
Splitter, Merger and Split-Merge is a branch of its own, so that branches partition the graph.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Collection

from parallax._record import dataclass
from parallax.errors import InternalError
from parallax.graph import Dag, top_levels, topological_order

_NOTHING: frozenset[int] = frozenset()


class NodeClass(enum.Enum):
    """The paper's classes by (in-degree, out-degree), counted over distinct neighbours, 0 counting as 1."""

    SEQUENTIAL = "sequential"
    """(1, 1)"""
    SPLITTER = "splitter"
    """(1, >1)"""
    MERGER = "merger"
    """(>1, 1)"""
    SPLIT_MERGE = "split-merge"
    """(>1, >1), and control flow whatever its degrees"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A chain of Sequential nodes, or a single node of another class (or a region).

    Invariant: only the first node has predecessors outside, only the last has successors outside.
    """

    index: int
    nodes: tuple[int, ...]
    """In execution order."""
    kind: NodeClass
    """The class of its nodes."""
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchGraph:
    """Holds all branches of a DAG, their dependencies and layers. ``branches[i].index == i``, a topological order."""

    branches: tuple[Branch, ...]
    dag: Dag
    """Edges between branches."""
    branch_of: tuple[int, ...]
    """The branch of each node."""
    layers: tuple[tuple[int, ...], ...]
    """Branch indices of each layer, ascending. Every edge leads to a later layer, so a layer is an antichain."""

    @property
    def parallel_layers(self) -> int:
        """Layers of more than one branch."""
        return sum(len(layer) > 1 for layer in self.layers)

    @property
    def max_branches(self) -> int:
        """The size of the widest layer."""
        return max(map(len, self.layers), default=0)


def classify(dag: Dag, *, control_flow: Collection[int] = _NOTHING) -> tuple[NodeClass, ...]:
    """The class of each node. Nodes in ``control_flow`` (If, Loop, Scan) are forced to Split-Merge. O(V)."""
    return tuple(
        [
            NodeClass.SPLIT_MERGE if index in control_flow else _BY_DEGREE[len(preds) > 1, len(targets) > 1]
            for index, (preds, targets) in enumerate(zip(dag.predecessors, dag.successors, strict=True))
        ]
    )


_BY_DEGREE = {
    (False, False): NodeClass.SEQUENTIAL,
    (False, True): NodeClass.SPLITTER,
    (True, False): NodeClass.MERGER,
    (True, True): NodeClass.SPLIT_MERGE,
}


def find_branches(
    dag: Dag, *, control_flow: Collection[int] = _NOTHING, regions: Collection[int] = _NOTHING
) -> BranchGraph:
    """Extract branches and build layers. O(V + E); branches are numbered by their first node.

    That numbering is a topological order: a chain is entered only at its first and left only at its
    last node, so an edge between branches goes from a last node to a higher first one. A branch's
    layer is the length of the longest path to it, which is when Kahn's sort would release it.

    Args:
        control_flow: nodes forced to Split-Merge.
        regions: nodes that stand for a delegate's region. Each is indivisible and on another device than
            its neighbours, so it is a branch of its own and chains stop at it.
    """
    classes = classify(dag, control_flow=control_flow)
    branch_of = [-1] * len(dag)
    chains: list[list[int]] = []
    for start in range(len(dag)):
        if branch_of[start] >= 0:
            continue
        chain = [start]
        branch_of[start] = len(chains)
        if classes[start] is NodeClass.SEQUENTIAL and start not in regions:
            node = start
            while dag.successors[node]:
                node = dag.successors[node][0]
                if classes[node] is not NodeClass.SEQUENTIAL or node in regions:
                    break
                chain.append(node)
                branch_of[node] = len(chains)
        chains.append(chain)

    between = dag.quotient(branch_of, len(chains))
    layer_of = [level - 1 for level in top_levels(between.predecessors, [1] * len(chains))]
    layers: list[list[int]] = [[] for _ in range(1 + max(layer_of, default=-1))]
    for branch, layer in enumerate(layer_of):
        layers[layer].append(branch)
    return BranchGraph(
        branches=tuple(
            Branch(index=index, nodes=tuple(chain), kind=classes[chain[0]], layer=layer_of[index])
            for index, chain in enumerate(chains)
        ),
        dag=between,
        branch_of=tuple(branch_of),
        layers=tuple(map(tuple, layers)),
    )


def verify_branches(dag: Dag, found: BranchGraph) -> None:
    """Judge of a branch decomposition, from the DAG alone: whoever made it, and whatever rule it chose. O(V + E).

    Raises: InternalError unless every node is in exactly one branch, branches are chains that are entered
        only at their first and left only at their last node, and the branch graph is the DAG's and acyclic.
    """
    home: dict[int, int] = {}
    for position, branch in enumerate(found.branches):
        if branch.index != position or not branch.nodes:
            raise InternalError(f"branch {position} is empty or carries the index {branch.index}")
        for node in branch.nodes:
            if node in home:
                raise InternalError(f"node {node} is in branches {home[node]} and {position}")
            home[node] = position
    if sorted(home) != list(range(len(dag))) or found.branch_of != tuple(home[node] for node in range(len(dag))):
        raise InternalError("branches do not cover the graph, or branch_of disagrees with them")
    edges: set[tuple[int, int]] = set()
    for branch in found.branches:
        for before, after in itertools.pairwise(branch.nodes):
            if dag.successors[before] != (after,) or dag.predecessors[after] != (before,):
                raise InternalError(f"branch {branch.index} is no chain between nodes {before} and {after}")
    for head, preds in enumerate(dag.predecessors):
        edges.update((home[tail], home[head]) for tail in preds if home[tail] != home[head])
    stated = {(tail, head) for head, preds in enumerate(found.dag.predecessors) for tail in preds}
    if edges != stated:
        raise InternalError(f"branch edges differ from the graph's: {sorted(edges ^ stated)[:3]}")
    rows: list[list[int]] = [[] for _ in found.branches]
    for tail, head in edges:
        rows[head].append(tail)
    stuck = len(rows) - len(topological_order(rows))
    if stuck:
        raise InternalError(f"{stuck} branches lie on cycles or behind them")


def verify_layers(found: BranchGraph) -> None:
    """Judge of layers: each branch in one layer, and every edge to a later one. O(V + E).

    If each edge ascends then each path does, so no two branches of a layer are connected: layers are
    antichains, and running them one after the other is legal.
    Raises: InternalError naming the branch or edge at fault.
    """
    layer_of: dict[int, int] = {}
    for layer, members in enumerate(found.layers):
        if not members:
            raise InternalError(f"layer {layer} is empty")
        for branch in members:
            if branch in layer_of or not 0 <= branch < len(found.branches):
                raise InternalError(f"branch {branch} is in two layers, or does not exist")
            layer_of[branch] = layer
            if found.branches[branch].layer != layer:
                raise InternalError(f"branch {branch} says layer {found.branches[branch].layer} but is in {layer}")
    if len(layer_of) != len(found.branches):
        raise InternalError(f"{len(found.branches) - len(layer_of)} branches are in no layer")
    for head, preds in enumerate(found.dag.predecessors):
        for tail in preds:
            if layer_of[tail] >= layer_of[head]:
                raise InternalError(
                    f"layer {layer_of[head]} is no antichain or comes too early: branch {head} needs branch {tail} "
                    f"of layer {layer_of[tail]}"
                )
