"""What trained networks are worth: placements that they and others find for problems that they were not shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.planner import Learned
from parallax.schedule.placement import PLACERS, PlacementProblem, Placer, find_placement

_OTHERS: Final = ("closed-form", "etf", "descent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One way to place, over all problems."""

    name: str
    mean_regret: float
    """Geometric mean of its times by the best time that any of the ways found; at least 1."""
    worst_regret: float


def judge_networks(
    problems: Sequence[PlacementProblem],
    trained: Mapping[str, tuple[Path, Path | None]],
    *,
    noted: Callable[[int], None],
) -> tuple[Judged, ...]:
    """Simulate what each way to place proposes for each problem; everything on the CPU is among every one's.

    Args:
        trained: proposer and scheduler of ways that are learned, by name: each is judged alone, and beside earliest
            finish first.
    """
    ways: dict[str, Placer] = {name: PLACERS[name]() for name in _OTHERS}
    for name, (proposer, scheduler) in trained.items():
        for alone in (True, False):
            ways[name if alone else f"{name}, and etf"] = Learned(
                network=str(proposer), scheduler=None if scheduler is None else str(scheduler), alone=alone
            )
    times: dict[str, list[int]] = {name: [] for name in ways}
    for name, placer in ways.items():  # one after the other, since few networks are kept open
        for problem in problems:
            times[name].append(find_placement(problem, (placer,)).best.makespan_ns)
            noted(sum(map(len, times.values())) // len(ways))
    best = [min(of_problem) for of_problem in zip(*times.values(), strict=True)]
    found = []
    for name, taken in times.items():
        shares = [ns / least for ns, least in zip(taken, best, strict=True)]
        mean = math.exp(sum(map(math.log, shares)) / len(shares)) if shares else 1.0
        found.append(Judged(name=name, mean_regret=mean, worst_regret=max(shares, default=1.0)))
    return tuple(found)
