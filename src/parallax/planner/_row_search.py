"""Which rows to share, and of which layers: a search over shares, and over chains of operators that stay whole.

Rows everywhere is seldom best. A layer whose parts must wait for each other gains less by two sides than it loses by
launches and transfers, and branches can run side by side as they are. So some shares are tried first, and then one
chain after the other is left whole, the longest first, wherever that is predicted to gain. What is left whole becomes
regions, as placers place it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from parallax.graph import Dag, OpGraph
from parallax.model import Model, RowSplit, begins_rows, split_rows

FACTORS: Final = (1.0, 0.9, 0.8, 0.7, 1.1)
"""Shares that are tried, times the one with which both sides alone would end together: launches and transfers are the
device's, so that less than that is best as a rule ..."""

NEAR: Final = (0.95, 1.05)
"""... then shares as near as that to the best of them ..."""

LEAST_SHARE: Final = 0.1
"""... within this of none and of all."""

_LEAST_GAIN: Final = 0.001
"""Of the time, that a chain left whole must gain."""

Judge = Callable[[RowSplit], int | None]
"""Predicts the time of a run of a model that is split by rows; None where it cannot be run so. ns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedRows:
    """One way to split a model by rows, and what a run of it is predicted to take."""

    permille: int
    """Of the rows that are in the first part."""
    whole: tuple[str, ...]
    """Tensors that stay whole, in the order of the graph."""
    split: RowSplit
    simulated_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRows:
    """The best ways to split a model by rows."""

    best: TriedRows
    everywhere: TriedRows
    """The best of those in which all is split that can be."""
    balanced: TriedRows
    """At the share with which both sides alone would end together, where all is split that can be."""
    evaluations: int

    @property
    def candidates(self) -> tuple[TriedRows, ...]:
        """Those that are worth measuring, the most promising first."""
        found = {(tried.permille, tried.whole): tried for tried in (self.best, self.everywhere, self.balanced)}
        return tuple(found.values())


def search_rows(
    model: Model, *, balanced: float, cpu_ns: Sequence[int], judge: Judge, evaluations: int
) -> FoundRows | None:
    """Search shares, then chains to leave whole; deterministic.

    Args:
        balanced: the share of the rows with which both sides alone would end together.
        cpu_ns: of each node on the processor: what takes long there is tried first.
        evaluations: bound on the splits that are judged, at least 1.

    Returns: None where nothing can be split, or not be run so.
    """
    tried: dict[int, TriedRows | None] = {}

    def at_factor(factor: float, share: float = balanced) -> int:
        permille = round(1000 * min(max(share * factor, LEAST_SHARE), 1 - LEAST_SHARE))
        if permille not in tried and len(tried) < evaluations:
            tried[permille] = _try(model, permille, (), judge)
        return permille

    first = tried[at_factor(1.0)]
    if first is None:
        return None
    for factor in FACTORS:
        at_factor(factor)
    best = _quickest(tried.values())
    for factor in NEAR:
        at_factor(factor, best.permille / 1000)
    everywhere = best = _quickest(tried.values())
    count = len(tried)
    graph = model.inferred()
    for chain in _trials(graph, best.split, cpu_ns):
        if count >= evaluations:
            break
        whole = {*best.whole, *(graph.nodes[node].outputs[0] for node in chain)}
        if len(whole) == len(best.whole):
            continue
        count += 1
        ordered = tuple(name for name in graph.producers if name in whole)
        found = _try(model, best.permille, ordered, judge)
        if found is not None and found.simulated_ns < (1 - _LEAST_GAIN) * best.simulated_ns:
            best = found
    return FoundRows(best=best, everywhere=everywhere, balanced=first, evaluations=count)


def _quickest(tried: Collection[TriedRows | None]) -> TriedRows:
    return min((found for found in tried if found is not None), key=lambda found: found.simulated_ns)


def _try(model: Model, permille: int, whole: tuple[str, ...], judge: Judge) -> TriedRows | None:
    split = split_rows(model, permille / 1000, whole=whole)
    simulated_ns = None if split is None else judge(split)
    if split is None or simulated_ns is None:
        return None
    return TriedRows(permille=permille, whole=whole, split=split, simulated_ns=simulated_ns)


def _trials(graph: OpGraph, split: RowSplit, cpu_ns: Sequence[int]) -> list[tuple[int, ...]]:
    """What is tried to be left whole: chains of operators that begin a cut, those of most work first, and then such
    operators alone. What is only carried along follows."""
    heavy = sorted({node for node in split.origins.values() if begins_rows(graph.nodes[node])})
    chains = _chains(graph, heavy)
    alone = [(node,) for chain in chains if len(chain) > 1 for node in chain]
    return [
        trial
        for trials in (chains, alone)
        for trial in sorted(trials, key=lambda nodes: (-sum(cpu_ns[node] for node in nodes), nodes))
    ]


def _chains(graph: OpGraph, nodes: Sequence[int]) -> list[tuple[int, ...]]:
    """Maximal chains of these nodes, as if there were no others, and no edge that a path of other edges stands for.

    Args:
        nodes: ascending.
    """
    number = {node: index for index, node in enumerate(nodes)}
    above: list[int] = [0] * len(graph.nodes)
    """Of each node, those that come before it or are it, as bits."""
    latest: list[int] = [0] * len(graph.nodes)
    """Of those, the ones from which a path leads here that meets no other."""
    before: list[list[int]] = []
    for node, preds in enumerate(graph.predecessors):
        for pred in preds:
            above[node] |= above[pred]
            latest[node] |= latest[pred]
        if node in number:
            known = _bits(latest[node])
            behind = 0
            for one in known:
                behind |= above[nodes[one]] & ~(1 << one)
            before.append([one for one in known if not behind >> one & 1])
            above[node] |= 1 << number[node]
            latest[node] = 1 << number[node]
    dag = Dag.from_predecessors(before)
    chains: list[list[int]] = []
    for index, preds in enumerate(dag.predecessors):
        if len(preds) == 1 and len(dag.successors[preds[0]]) == 1:
            next(chain for chain in chains if chain[-1] == nodes[preds[0]]).append(nodes[index])
        else:
            chains.append([nodes[index]])
    return [tuple(chain) for chain in chains]


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]
