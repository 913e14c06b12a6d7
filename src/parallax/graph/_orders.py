"""Orders and levels of directed graphs that are given by the predecessors of each node.

Each is linear in nodes and edges, `topological_order` but for its heap; nothing here recurses.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence

Rows = Sequence[Collection[int]]
"""Per node its predecessors (or successors), by index."""


def topological_order(predecessors: Rows, *, precedence: Sequence[int] | None = None) -> list[int]:
    """The nodes so that each comes after its predecessors: Kahn's algorithm (1962), O(V log V + E).

    Args:
        predecessors: per node; repetitions do no harm.
        precedence: of the nodes that are free, the one with the lowest comes next, and of equals the one with the
            lowest index; by default the index decides alone.

    Returns: every node, unless there is a cycle: nodes on cycles, and those behind them, are left out.
    """
    size = len(predecessors)
    if precedence is None:
        if all(max(row, default=-1) < head for head, row in enumerate(predecessors)):
            return list(range(size))
        by_rank: Sequence[int] = range(size)
        rank: Sequence[int] = by_rank
    else:
        by_rank = sorted(range(size), key=precedence.__getitem__)
        rank = [0] * size
        for position, index in enumerate(by_rank):
            rank[index] = position
    successors: list[list[int]] = [[] for _ in range(size)]
    for head, row in enumerate(predecessors):
        for tail in row:
            successors[tail].append(head)
    waiting = [len(row) for row in predecessors]
    free = [rank[index] for index, count in enumerate(waiting) if not count]
    heapq.heapify(free)
    order: list[int] = []
    while free:
        index = by_rank[heapq.heappop(free)]
        order.append(index)
        for head in successors[index]:
            waiting[head] -= 1
            if not waiting[head]:
                heapq.heappush(free, rank[head])
    return order


def contracted_order(predecessors: Rows, regions: Iterable[Sequence[int]]) -> list[int] | None:
    """A topological order of the graph in which each region is one node; None where there is none.

    Nodes of that graph are named by the first node of their region. O(V + E), plus a heap.

    Args:
        regions: disjoint, each ascending.
    """
    leader = list(range(len(predecessors)))
    for region in regions:
        for index in region:
            leader[index] = region[0]
    nodes = [index for index in range(len(predecessors)) if leader[index] == index]
    number = {index: position for position, index in enumerate(nodes)}
    rows: list[list[int]] = [[] for _ in nodes]
    for index, preds in enumerate(predecessors):
        here = leader[index]
        rows[number[here]].extend([number[leader[pred]] for pred in preds if leader[pred] != here])
    order = topological_order(rows)
    return [nodes[index] for index in order] if len(order) == len(nodes) else None


def top_levels(predecessors: Rows, costs: Sequence[int]) -> list[int]:
    """Return for each node the cost of the longest path to it, itself included.

    Nodes are in topological order. O(V + E).
    """
    levels: list[int] = []
    for preds, cost in zip(predecessors, costs, strict=True):
        longest = 0
        for pred in preds:
            level = levels[pred]
            if level > longest:
                longest = level
        levels.append(longest + cost)
    return levels


def bottom_levels(predecessors: Rows, costs: Sequence[int]) -> list[int]:
    """Return for each node the cost of the longest path from it, itself included. Nodes are in topological order. O(V
    + E).

    The "upward rank" of HEFT (Topcuoglu, Hariri, Wu, IEEE TPDS 13(3), 2002, eq. 4) without transfer costs.
    """
    levels = [0] * len(predecessors)
    for index in range(len(predecessors) - 1, -1, -1):
        level = levels[index] = levels[index] + costs[index]
        for pred in predecessors[index]:
            if levels[pred] < level:
                levels[pred] = level
    return levels


def critical_path(predecessors: Rows, costs: Sequence[int]) -> int:
    """The cost of the longest path: no schedule on any number of lanes is shorter. O(V + E)."""
    return max(top_levels(predecessors, costs), default=0)


def strong_components(neighbours: Sequence[Sequence[int]]) -> list[int]:
    """A component number for each node, equal iff they lie on a common cycle. Tarjan 1972, without recursion."""
    size = len(neighbours)
    number = [-1] * size
    lowest = [0] * size
    component = [-1] * size
    path: list[int] = []
    counter = components = 0
    for root in range(size):
        if number[root] >= 0:
            continue
        number[root] = lowest[root] = counter
        counter += 1
        path.append(root)
        work = [(root, iter(neighbours[root]))]
        while work:
            node, rest = work[-1]
            for target in rest:
                if number[target] < 0:
                    number[target] = lowest[target] = counter
                    counter += 1
                    path.append(target)
                    work.append((target, iter(neighbours[target])))
                    break
                if component[target] < 0:
                    lowest[node] = min(lowest[node], number[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[node])
                if lowest[node] == number[node]:
                    while True:
                        member = path.pop()
                        component[member] = components
                        if member == node:
                            break
                    components += 1
    return component
