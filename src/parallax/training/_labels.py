"""What a network is to learn of a placement problem: the best sides that descent finds, and the best thresholds.

Both are judged by the quick judge, in the branches that a network is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from parallax.schedule.placement import (
    PLACERS,
    BranchFeatures,
    Placement,
    PlacementProblem,
    QuickJudge,
    descend,
    scaled_work,
)

_STARTS: Final = ("etf", "by-cost", "device", "closed-form")
_SEEDS: Final = 2
_THRESHOLDS: Final = (10, 4)
"""Bounds of work and of zeros that are tried, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The best that is known of one problem."""

    chosen: tuple[bool, ...]
    """Per row of the features, whether the device runs the branch."""
    cost_ns: int
    """What that takes by the quick judge."""
    thresholds: tuple[float, float]
    """(tau_rho, tau_I), the second as `scaled_work` has it: the centre of the best cell of a grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A problem with its rows; what belongs to its label is kept apart, since that is what checkpoints keep."""

    name: str
    features: BranchFeatures

    @classmethod
    def of(cls, name: str, problem: PlacementProblem) -> Example:
        """Describe a problem and its first device."""
        return cls(name=name, features=BranchFeatures.of(problem))

    @property
    def can_decide(self) -> bool:
        """Whether there is any branch that the device takes."""
        return any(self.features.movable)

    def judge(self) -> QuickJudge:
        """A new judge of its placements."""
        return QuickJudge(self.features.problem, pieces=self.features.pieces)

    def cost_ns(self, judge: QuickJudge, chosen: Sequence[bool]) -> int:
        """What the better of both ways to end regions takes, by the quick judge."""
        sides = self.features.sides(chosen)
        return min(judge.cost_ns(sides), judge.cost_ns(sides, ends_early=True))


def find_label(example: Example, *, evaluations: int) -> Label:
    """Descend from what simple placers propose. Deterministic; about a millisecond per evaluation.

    Args:
        evaluations: most placements that are predicted for the sides; those for thresholds come on top.
    """
    problem, judge = example.features.problem, example.judge()
    starts: list[Placement] = [problem.cpu_only]
    for name in _STARTS:
        starts.extend(PLACERS[name]().propose(problem))
    all_sides = dict.fromkeys(tuple(judge.pieces.sides(start)) for start in starts)
    best = min(all_sides, key=lambda sides: (judge.cost_ns(sides), sides))
    chosen, cost_ns = _descended(example, judge, [best, *list(all_sides)[:2]], evaluations)
    return Label(chosen=chosen, cost_ns=cost_ns, thresholds=_best_thresholds(example, judge))


def improve_label(example: Example, label: Label, proposed: Sequence[bool], *, evaluations: int) -> Label:
    """The label, or what descent from a network's own proposal finds, where that is better (as DAgger corrects what
    the learner does, not what a teacher would have done)."""
    judge = example.judge()
    chosen, cost_ns = _descended(example, judge, [tuple(example.features.sides(proposed))], evaluations)
    return replace(label, chosen=chosen, cost_ns=cost_ns) if cost_ns < label.cost_ns else label


def _descended(
    example: Example, judge: QuickJudge, starts: Iterable[Sequence[int]], evaluations: int
) -> tuple[tuple[bool, ...], int]:
    """The best end of descents from these starts, as rows have it, and what it takes."""
    device = example.features.device
    runs = [(list(start), seed) for start in starts for seed in range(_SEEDS)]
    first = judge.evaluations
    best: tuple[int, tuple[bool, ...]] | None = None
    for number, (sides, seed) in enumerate(runs, start=1):
        descend(judge, sides, ends_early=False, seed=seed, allowed=first + evaluations * number // len(runs))
        chosen = tuple(sides[piece] == device for piece in example.features.shown)
        found = (example.cost_ns(judge, chosen), chosen)
        best = found if best is None else min(best, found)
    assert best is not None  # there is a start
    return best[1], best[0]


def _best_thresholds(example: Example, judge: QuickJudge) -> tuple[float, float]:
    """The centre of the cell, of a grid of both thresholds, in which placements by thresholds are best."""
    features = example.features
    rows = [row for row, movable in enumerate(features.movable) if movable]
    work = _cells(sorted({scaled_work(features.flops[row]) for row in rows}), _THRESHOLDS[0])
    # A device that is to run nothing has no work above its threshold: shares below all say nothing more.
    zeros = _cells(sorted({features.zeros[row] for row in rows}), _THRESHOLDS[1])[1:]
    costs: dict[tuple[float, float], int] = {}
    for max_zeros in zeros:
        for min_work in work:
            chosen = [
                scaled_work(flops) >= min_work and share <= max_zeros
                for flops, share in zip(features.flops, features.zeros, strict=True)
            ]
            costs[max_zeros, min_work] = example.cost_ns(judge, chosen)
    least = min(costs.values())
    best = [cell for cell, cost in costs.items() if cost == least]
    return best[len(best) // 2]


def _cells(ascending: Sequence[float], most: int) -> list[float]:
    """Values that part these in every way, or in ``most`` ways: below all, between two of them, above all."""
    step = 0.05
    parted = [
        max(0.0, ascending[0] - step),
        *((low + high) / 2 for low, high in itertools.pairwise(ascending)),
        ascending[-1] + step,
    ]
    if len(parted) <= most:
        return parted
    return [parted[round(number * (len(parted) - 1) / (most - 1))] for number in range(most)]
