"""Contraction: nodes that no cut may separate become one *fusion group*.

A cut costs more than its hand-over where it separates what the backend would have fused, so groups are
joined by every tensor that is not *fusion-safe*: one that the backend's own optimiser removes. All later
algorithms choose among cuts between groups and cannot make an illegal one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallax.errors import InternalError
from parallax.graph import Dag, OpGraph, UnionFind, strong_components, topological_order
from parallax.partition._cast_back import find_cast_back
from parallax.partition._constants import find_constants, find_replicable, is_shape_arithmetic
from parallax.partition._dequantised import find_bound

CONTROL_FLOW_OPS = frozenset({"If", "Loop", "Scan"})

DEFAULT_TINY_ELEMENTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionGroups:
    """A graph seen as fusion groups: the finest pieces it may be cut into.

    Invariants (`verify_groups` checks them): every node is in exactly one group, except that the nodes
    in ``replicated`` are in each group that reads them; group indices are a topological order of an
    acyclic graph, so every group is convex.
    """

    members: tuple[tuple[int, ...], ...]
    """Node indices of each group, ascending; never empty."""
    dag: Dag
    """Edges between groups."""
    group_of: tuple[int, ...]
    """The group of each node; the first of them for a replicated node."""
    replicated: frozenset[int]
    """Nodes in more than one group. Their value depends on no input of the model (a ``Constant``, or what a
    runtime folds from constants at load), so a copy in each reader costs a run nothing."""
    reads: tuple[tuple[str, ...], ...]
    """For each group the tensors of other groups it reads, in order of first use."""
    writes: tuple[tuple[str, ...], ...]
    """For each group the tensors other groups read from it, in order of production."""
    control_flow: frozenset[int]
    """Groups that hold an If, Loop or Scan, or any node with a body."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def crossing(self) -> tuple[str, ...]:
        """Every tensor that crosses between groups, in order of production."""
        return tuple(name for names in self.writes for name in names)

    def nodes_of(self, groups: Sequence[int]) -> tuple[int, ...]:
        """The nodes of several groups together, ascending, replicated ones once."""
        return tuple(sorted({node for group in groups for node in self.members[group]}))

    def group_costs(self, node_costs: Sequence[int]) -> tuple[int, ...]:
        """The sum of a per-node figure over each group; replicated nodes count nothing, being folded at load."""
        replicated = self.replicated
        return tuple(sum(node_costs[node] for node in group if node not in replicated) for group in self.members)


def group_fusions(
    graph: OpGraph,
    *,
    fusion_safe: frozenset[str] | None = None,
    may_cross: Callable[[str], bool] | None = None,
    tiny_elements: int = DEFAULT_TINY_ELEMENTS,
) -> FusionGroups:
    """Merge nodes until every tensor between them is one that a boundary may cross. O(E log V).

    1. Constants that each reader can copy are set aside (see `find_replicable`); dead nodes, which no output of the
       model needs, are tied to a live one, so that no group is without a result.
    2. Producer and readers of every tensor that may not be cut are joined (union-find), and what reads a dequantised
       weight together (see `find_bound`), and casts that a body captures with what they cast (see `find_cast_back`).
    3. Cycles among the joined groups are merged away (strongly connected components, Tarjan 1972, iterative).
    4. Shape arithmetic on at most ``tiny_elements`` elements joins its only predecessor, else its only successor:
       neither can close a cycle, since every path to (from) it runs through that neighbour.
    5. Groups are numbered topologically, the smallest node first where there is a choice.

    Args:
        fusion_safe: tensors a cut may cross; None allows every tensor. A constant computed once for many
            readers may be cut regardless: optimisers fold it, so it never survives by name.
        may_cross: a further condition on a tensor's name (its type, say).
        tiny_elements: 0 keeps shape arithmetic in groups of its own.
    """
    constants = find_constants(graph)
    copied = find_replicable(graph, constants)
    leader = _join_across_unsafe(graph, fusion_safe, may_cross, constants, copied)
    bound = () if fusion_safe is None else find_bound(graph, fusion_safe, constants)
    for group in (*bound, *find_cast_back(graph, constants)):
        kept = [index for index in group if index not in copied]
        for index in kept:
            leader.union(kept[0], index)
    ordinary = [node.index for node in graph.nodes if node.index not in copied]

    group_of, groups = _number(leader, ordinary)
    edges = _group_edges(graph, group_of, groups, copied)
    order = topological_order(edges)
    if len(order) < len(edges):
        group_of, groups = _merge_components(group_of, edges)
        edges = _group_edges(graph, group_of, groups, copied)
        order = topological_order(edges)
        if len(order) < len(edges):
            raise InternalError("merging strongly connected components left a cycle among groups")
    if tiny_elements > 0:
        merged = _attach_tiny(graph, group_of, groups, edges, order, copied, tiny_elements)
        if merged is not None:
            group_of, groups = merged
            edges = _group_edges(graph, group_of, groups, copied)
            order = topological_order(edges)
            if len(order) < len(edges):
                raise InternalError("attaching shape arithmetic to its only neighbour closed a cycle")
    return _build(graph, group_of, edges, order, copied)


def _join_across_unsafe(
    graph: OpGraph,
    fusion_safe: frozenset[str] | None,
    may_cross: Callable[[str], bool] | None,
    constants: frozenset[int],
    copied: frozenset[int],
) -> UnionFind:
    joined = UnionFind(len(graph.nodes))
    if fusion_safe is not None or may_cross is not None:
        for name, producer in graph.producers.items():
            if producer in constants or name not in graph.consumers:
                continue
            if (fusion_safe is None or name in fusion_safe) and (may_cross is None or may_cross(name)):
                continue
            for consumer in graph.consumers[name]:
                joined.union(producer, consumer)
    live, dead = _split_live(graph, copied)
    if dead:
        # The last live node has no live successor; a cycle closed by this is merged away with the others.
        anchor = live[-1] if live else dead[0]
        for index in dead:
            joined.union(anchor, index)
    return joined


def _split_live(graph: OpGraph, copied: frozenset[int]) -> tuple[list[int], list[int]]:
    """Ordinary nodes some output of the model needs, and those none needs; both ascending."""
    returned = graph.output_names
    alive = [False] * len(graph.nodes)
    for node in reversed(graph.nodes):
        if not alive[node.index]:
            alive[node.index] = any(name in returned for name in node.outputs)
        if alive[node.index]:
            for pred in graph.predecessors[node.index]:
                alive[pred] = True
    live: list[int] = []
    dead: list[int] = []
    for index, is_alive in enumerate(alive):
        if index not in copied:
            (live if is_alive else dead).append(index)
    return live, dead


def _number(joined: UnionFind, ordinary: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Groups in order of their smallest node; -1 for nodes that are not ordinary."""
    group_of = [-1] * len(joined)
    groups: list[list[int]] = []
    of_leader: dict[int, int] = {}
    for index in ordinary:
        leader = joined.find(index)
        group = of_leader.get(leader)
        if group is None:
            group = of_leader[leader] = len(groups)
            groups.append([])
        group_of[index] = group
        groups[group].append(index)
    return group_of, groups


def _group_edges(
    graph: OpGraph, group_of: Sequence[int], groups: Sequence[Sequence[int]], copied: frozenset[int]
) -> list[list[int]]:
    """Distinct predecessor groups of each group, ascending."""
    predecessors = graph.predecessors
    rows: list[list[int]] = []
    for group, nodes in enumerate(groups):
        row = {group_of[pred] for node in nodes for pred in predecessors[node] if pred not in copied}
        row.discard(group)
        rows.append(sorted(row))
    return rows


def _merge_components(group_of: Sequence[int], edges: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    component = strong_components(edges)
    merged = UnionFind(len(group_of))
    first: dict[int, int] = {}
    ordinary: list[int] = []
    for index, group in enumerate(group_of):
        if group >= 0:
            ordinary.append(index)
            merged.union(first.setdefault(component[group], index), index)
    return _number(merged, ordinary)


def _attach_tiny(
    graph: OpGraph,
    group_of: Sequence[int],
    groups: Sequence[Sequence[int]],
    predecessors: Sequence[Sequence[int]],
    order: Sequence[int],
    copied: frozenset[int],
    tiny_elements: int,
) -> tuple[list[int], list[list[int]]] | None:
    returned = graph.output_names
    tiny = [
        all(is_shape_arithmetic(graph, graph.nodes[index], tiny_elements) for index in nodes)
        and not any(name in returned for index in nodes for name in graph.nodes[index].outputs)
        for nodes in groups
    ]
    if not any(tiny):
        return None
    successors: list[list[int]] = [[] for _ in groups]
    for head, row in enumerate(predecessors):
        for tail in row:
            successors[tail].append(head)
    merged = UnionFind(len(groups))
    attached = [False] * len(groups)
    for group in order:
        if tiny[group]:
            neighbours = {merged.find(pred) for pred in predecessors[group]}
            if len(neighbours) == 1:
                merged.union(neighbours.pop(), group)
                attached[group] = True
    for group in reversed(order):
        if tiny[group] and not attached[group]:
            own = merged.find(group)
            if own != group or any(attached[target] and merged.find(target) == own for target in successors[group]):
                continue  # others were attached to it: it is no longer this group alone
            neighbours = {merged.find(target) for target in successors[group]}
            if len(neighbours) == 1:
                merged.union(neighbours.pop(), group)
    nodes = UnionFind(len(group_of))
    ordinary: list[int] = []
    first: dict[int, int] = {}
    for index, group in enumerate(group_of):
        if group >= 0:
            ordinary.append(index)
            nodes.union(first.setdefault(merged.find(group), index), index)
    return _number(nodes, ordinary)


def _build(
    graph: OpGraph,
    group_of: Sequence[int],
    predecessors: Sequence[Sequence[int]],
    order: Sequence[int],
    copied: frozenset[int],
) -> FusionGroups:
    rank = [0] * len(order)
    for position, group in enumerate(order):
        rank[group] = position
    members: list[list[int]] = [[] for _ in order]
    numbered = [-1 if group < 0 else rank[group] for group in group_of]
    for index, group in enumerate(numbered):
        if group >= 0:
            members[group].append(index)
    replicated = _place_copies(graph, numbered, members, copied)
    rows = [[rank[pred] for pred in predecessors[group]] for group in order]
    rows.extend([] for _ in range(len(members) - len(order)))
    reads, writes = _crossing_tensors(graph, numbered, members, copied)
    return FusionGroups(
        members=tuple(tuple(sorted(nodes)) for nodes in members),
        dag=Dag.from_predecessors(rows),
        group_of=tuple(numbered),
        replicated=frozenset(replicated),
        reads=reads,
        writes=writes,
        control_flow=frozenset(
            numbered[node.index] for node in graph.nodes if node.bodies or node.op_type in CONTROL_FLOW_OPS
        ),
    )


def _place_copies(
    graph: OpGraph, group_of: list[int], members: list[list[int]], copied: frozenset[int]
) -> frozenset[int]:
    """Put each copied constant into every group that reads it, also through another one. Returns those in several."""
    replicated: set[int] = set()
    places: dict[int, set[int]] = {}
    for index in sorted(copied, reverse=True):
        groups: set[int] = set()
        for target in graph.successors[index]:
            if target in copied:
                groups |= places[target]
            else:
                groups.add(group_of[target])
        if not groups:
            # Read by nobody: kept, so that every node has a group, where it does not matter.
            groups.add(0)
            if not members:
                members.append([])  # the model is nothing but unread constants
        places[index] = groups
        group_of[index] = min(groups)
        for group in groups:
            members[group].append(index)
        if len(groups) > 1:
            replicated.add(index)
    return frozenset(replicated)


def _crossing_tensors(
    graph: OpGraph, group_of: Sequence[int], members: Sequence[Sequence[int]], copied: frozenset[int]
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    reads: list[dict[str, None]] = [{} for _ in members]
    written: set[str] = set()
    for node in graph.nodes:
        if node.index in copied:
            continue
        group = group_of[node.index]
        for name in (*node.inputs, *node.captures):
            producer = graph.producers.get(name)
            if producer is not None and producer not in copied and group_of[producer] != group:
                reads[group][name] = None
                written.add(name)
    writes: list[list[str]] = [[] for _ in members]
    for node in graph.nodes:
        if node.index not in copied:
            writes[group_of[node.index]].extend(name for name in node.outputs if name in written)
    return tuple(tuple(names) for names in reads), tuple(tuple(names) for names in writes)


def verify_groups(graph: OpGraph, groups: FusionGroups, *, fusion_safe: frozenset[str] | None = None) -> None:
    """Judge of a contraction, from the graph alone. O(V + E).

    Raises: InternalError if a node has no group or several without being a constant, a group is empty or
        out of order, an edge is missing or goes backwards, or a tensor that is not fusion-safe is cut.
    """
    homes: list[list[int]] = [[] for _ in graph.nodes]
    for group, nodes in enumerate(groups.members):
        if not nodes or list(nodes) != sorted(set(nodes)):
            raise InternalError(f"group {group} is empty, unsorted or repeats a node: {nodes}")
        for index in nodes:
            homes[index].append(group)
    constants = find_constants(graph)
    for index, places in enumerate(homes):
        name = graph.nodes[index].name
        if not places:
            raise InternalError("a node is in no group", where=name)
        if groups.group_of[index] != places[0]:
            raise InternalError(f"group_of says {groups.group_of[index]}, the groups say {places}", where=name)
        if (len(places) > 1) != (index in groups.replicated):
            raise InternalError(f"replicated nodes and groups disagree: groups {places}", where=name)
        if len(places) > 1 and index not in constants:
            raise InternalError(f"a node that depends on the inputs is in several groups: {places}", where=name)
    edges: set[tuple[int, int]] = set()
    crossing: set[str] = set()
    for node in graph.nodes:
        for name in (*node.inputs, *node.captures):
            producer = graph.producers.get(name)
            if producer is None:
                continue
            for group in homes[node.index]:
                if group in homes[producer]:
                    continue
                if len(homes[producer]) > 1:
                    raise InternalError(f"group {group} reads '{name}' but has no copy of it", where=node.name)
                if fusion_safe is not None and name not in fusion_safe and producer not in constants:
                    raise InternalError(f"a split runs through '{name}', which is not fusion-safe", where=node.name)
                if homes[producer][0] > group:
                    raise InternalError(f"group {group} reads '{name}' from the later group {homes[producer][0]}")
                edges.add((homes[producer][0], group))
                crossing.add(name)
    stated = {(pred, group) for group, preds in enumerate(groups.dag.predecessors) for pred in preds}
    if edges != stated:
        raise InternalError(f"group edges differ from the graph's: {sorted(edges ^ stated)[:3]}")
    if crossing != set(groups.crossing):
        raise InternalError(f"crossing tensors differ from the graph's: {sorted(crossing ^ set(groups.crossing))[:3]}")
