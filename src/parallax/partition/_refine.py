"""Refinement: which branches of a layer are worth running side by side.

Two rules behind one protocol: the paper's thresholds, and a comparison of predicted times. Each answer
carries its reason and the two figures it compared.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchLoad:
    """What a rule may know of a branch."""

    branch: int
    nodes: int
    """Operators in it; the inner ones where it is a delegate's region."""
    flops: int
    narrow_ns: int
    """Time on one lane."""
    wide_ns: int
    """Time on all cores."""
    is_region: bool = False


class Reason(enum.Enum):
    """Why a layer runs in parallel or not. In the comments: measured figure, bound."""

    SINGLE_BRANCH = "fewer than two branches"  # branches, 2
    TOO_FEW_NODES = "a branch has too few nodes"  # its nodes, least allowed
    NO_WORK = "no branch has counted work"  # FLOPs, 1
    UNBALANCED = "branches are too unequal"  # largest FLOPs / smallest, largest allowed
    BALANCED = "branches are long enough and balanced"  # largest FLOPs / smallest, largest allowed
    SLOWER = "side by side takes longer"  # ns side by side, ns one after the other
    FASTER = "side by side takes less time"  # ns side by side, ns one after the other


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDecision:
    """A rule's answer for one layer."""

    layer: int
    parallel: tuple[int, ...]
    """Branches to run side by side, ascending; empty if the layer runs serially."""
    reason: Reason
    measured: float
    bound: float
    """The two figures compared, in the order and unit `Reason` tells."""


class RefinementRule(Protocol):
    """Chooses the branches of a layer that run side by side.

    Pure and deterministic. ``loads`` are the branches of one layer, in any order; the answer is empty or
    names at least two of them.
    """

    def decide(self, layer: int, loads: Sequence[BranchLoad]) -> LayerDecision:
        """The decision for one layer, with its reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRule:
    """Parallax, arXiv 2512.11532, "refinement": N > 2 in each branch and F_max / F_min <= beta.

    Ours: a delegate's region is exempt from the balance and counts its inner nodes; where no branch has
    any work there is nothing to share; ``drop_outliers`` keeps the largest set of branches that
    satisfies both conditions (the most FLOPs among equals) instead of refusing the layer.
    """

    min_nodes: int = 3
    balance: float = 1.5
    drop_outliers: bool = False

    def decide(self, layer: int, loads: Sequence[BranchLoad]) -> LayerDecision:
        """The decision for one layer, with its reason."""
        if len(loads) < 2:
            return _serial(layer, Reason.SINGLE_BRANCH, len(loads), 2)
        fewest = min(load.nodes for load in loads)
        kept = list(loads)
        if fewest < self.min_nodes:
            kept = [load for load in loads if load.nodes >= self.min_nodes]
            if not self.drop_outliers or len(kept) < 2:
                return _serial(layer, Reason.TOO_FEW_NODES, fewest, self.min_nodes)
        if all(load.flops <= 0 for load in kept):
            return _serial(layer, Reason.NO_WORK, 0, 1)
        spread = _spread(load.flops for load in kept if not load.is_region)
        if spread > self.balance:
            if not self.drop_outliers:
                return _serial(layer, Reason.UNBALANCED, spread, self.balance)
            kept = self._most_balanced(kept)
            if len(kept) < 2:
                return _serial(layer, Reason.UNBALANCED, spread, self.balance)
            spread = _spread(load.flops for load in kept if not load.is_region)
        return LayerDecision(
            layer=layer,
            parallel=tuple(sorted(load.branch for load in kept)),
            reason=Reason.BALANCED,
            measured=spread,
            bound=self.balance,
        )

    def _most_balanced(self, loads: Sequence[BranchLoad]) -> list[BranchLoad]:
        """All regions, and the window of the others by FLOPs that has most branches, then most FLOPs."""
        regions = [load for load in loads if load.is_region]
        ranked = sorted((load for load in loads if not load.is_region), key=lambda load: (load.flops, load.branch))
        best: tuple[int, int, int] = (0, 0, 0)
        low = total = 0
        for high, load in enumerate(ranked):
            total += load.flops
            while _spread((ranked[low].flops, load.flops)) > self.balance:
                total -= ranked[low].flops
                low += 1
            if total > 0:
                best = max(best, (high - low + 1, total, low))
        count, _, low = best
        return regions + ranked[low : low + count]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRule:
    """Side by side iff the predicted time is less than that of one after the other on all cores.

    Serial: the sum of ``wide_ns``. Parallel: the makespan of ``narrow_ns`` on ``lanes`` lanes, longest first
    (LPT, Graham 1969), plus two hand-overs (out to the other lanes and back) and, on every lane, the
    overhead of the segments it runs.
    """

    lanes: int
    handover_ns: int
    segment_overhead_ns: int = 0
    min_gain: float = 0.0
    """Fraction of the serial time that must be saved."""

    def decide(self, layer: int, loads: Sequence[BranchLoad]) -> LayerDecision:
        """The decision for one layer, with its reason."""
        if len(loads) < 2:
            return _serial(layer, Reason.SINGLE_BRANCH, len(loads), 2)
        serial = sum(load.wide_ns for load in loads)
        parallel = lpt_makespan([load.narrow_ns + self.segment_overhead_ns for load in loads], self.lanes)
        parallel += 2 * self.handover_ns
        if parallel >= serial * (1 - self.min_gain):
            return _serial(layer, Reason.SLOWER, parallel, serial)
        return LayerDecision(
            layer=layer,
            parallel=tuple(sorted(load.branch for load in loads)),
            reason=Reason.FASTER,
            measured=parallel,
            bound=serial,
        )


def lpt_makespan(costs: Sequence[int], lanes: int) -> int:
    """The makespan of independent jobs on equal lanes, longest first to the least loaded (Graham 1969).

    At most 4/3 - 1/(3 lanes) of the optimum. O(n log n).
    """
    loads = [0] * max(1, min(lanes, len(costs)))
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def _serial(layer: int, reason: Reason, measured: float, bound: float) -> LayerDecision:
    return LayerDecision(layer=layer, parallel=(), reason=reason, measured=measured, bound=bound)


def _spread(flops: Iterable[int]) -> float:
    """Largest over smallest; 1 where there is nothing to compare, infinite over a smallest of zero."""
    figures = list(flops)
    if not figures or max(figures) <= 0:
        return 1.0
    smallest = min(figures)
    return max(figures) / smallest if smallest > 0 else math.inf
