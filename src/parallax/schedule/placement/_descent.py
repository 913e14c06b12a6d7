"""Searches that move pieces of a placement to another side, one after the other, as long as that helps.

What helps is told by the `QuickJudge`, so that hundreds of placements are looked at in tenths of a second, from
several starting points; the judge of placements simulates the few that came out best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from parallax.errors import ConfigError
from parallax.schedule.placement._chain_dp import ChainDp
from parallax.schedule.placement._etf import EarliestFinish
from parallax.schedule.placement._judge import Judge
from parallax.schedule.placement._pieces import CPU_SIDE
from parallax.schedule.placement._placers import ByCost, Device, Greedy, ShardRows
from parallax.schedule.placement._problem import Placement, PlacementProblem
from parallax.schedule.placement._quick import QuickJudge


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Coordinate descent: each piece in turn goes to the side where the whole would end soonest, until none moves.

    It starts from the CPU alone, from all that each device takes, and from random sides.

    Args:
        seeds: orders of the pieces, and random starts, that are tried.
        evaluations: most placements that are predicted, for all starts together.
        kept: how many of the placements it ends at it proposes, the best first.
    """

    seeds: int = 3
    evaluations: int = 3000
    kept: int = 4

    def __post_init__(self) -> None:
        _require_settings(self.seeds, self.evaluations, self.kept)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """The best placements that it ended at."""
        starts = [problem.cpu_only, *Device().propose(problem)]
        judge = QuickJudge(problem, starts)
        drawn = [_random_start(judge, seed) for seed in range(1, self.seeds)]
        plain = [(judge.pieces.sides(start), False) for start in starts]
        yield from _search(judge, [*plain, *((sides, False) for sides in drawn)], self, "descent")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickSearch:
    """Local search from the best of what other placers propose, by the quick judge, with several seeds.

    Where other placers were asked before, it starts from the best of theirs too.

    Args:
        seeds: orders in which the pieces are moved, for each of the starts.
        starts: how many different placements it begins with, the best by the quick judge.
        evaluations: most placements that are predicted, for all starts together.
        kept: how many of the placements it ends at it proposes, the best first.
    """

    seeds: int = 3
    starts: int = 3
    evaluations: int = 3000
    kept: int = 4

    def __post_init__(self) -> None:
        _require_settings(self.seeds, self.evaluations, self.kept)
        _require_settings(self.starts)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """The best placements that it ended at."""
        starts = [*ByCost().propose(problem), *ShardRows().propose(problem)]
        yield from self._from(problem, starts)

    def improve(self, problem: PlacementProblem, judge: Judge) -> Iterator[Placement]:
        """Likewise, from the best so far as well."""
        best = judge.best
        placed = tuple(best.regions.placed(len(problem.groups)))
        yield from self._from(problem, [Placement(label=best.label, devices=placed, ends_early=best.ends_early)])

    def _from(self, problem: PlacementProblem, given: Sequence[Placement]) -> Iterator[Placement]:
        starts = list(given)
        for placer in (Greedy(), ChainDp(), EarliestFinish()):
            starts.extend(placer.propose(problem))
        judge = QuickJudge(problem, _distinct(starts))
        found: dict[tuple[tuple[int, ...], bool], int] = {}
        for start in starts:
            sides = judge.pieces.sides(start)
            found[tuple(sides), start.ends_early] = judge.cost_ns(sides, ends_early=start.ends_early)
        best = sorted(found, key=lambda key: (found[key], key))
        chosen = [(list(sides), early) for sides, early in islice(best, self.starts)]
        yield from _search(judge, chosen, self, "local search")


def _search(
    judge: QuickJudge, starts: Sequence[tuple[list[int], bool]], settings: Descent | QuickSearch, label: str
) -> Iterator[Placement]:
    """Descend from each start with each seed, and propose the best ends."""
    ends: dict[tuple[tuple[int, ...], bool], int] = {}
    runs = [(sides, early, seed) for seed in range(settings.seeds) for sides, early in starts]
    for number, (sides, early, seed) in enumerate(runs):
        # What earlier runs did not use is for the later ones.
        allowed = judge.evaluations + (settings.evaluations - judge.evaluations) // (len(runs) - number)
        for cuts in dict.fromkeys((early, True)):
            moved = list(sides)
            cost = descend(judge, moved, ends_early=cuts, seed=seed, allowed=allowed)
            ends[tuple(moved), cuts] = cost
    best = sorted(ends, key=lambda key: (ends[key], key))
    for rank, (found, early) in enumerate(best[: settings.kept], start=1):
        yield judge.pieces.placement(found, f"{label}, {rank}", ends_early=early)


def descend(judge: QuickJudge, sides: list[int], *, ends_early: bool, seed: int, allowed: int) -> int:
    """Move pieces to other sides, and whole regions back to the CPU, as long as that helps.

    Args:
        sides: per piece; they are changed.
        ends_early: as `Placement.ends_early`.
        seed: of the order in which pieces are tried; 0: those of most work first.
        allowed: number of evaluations of the judge at which it stops.

    Returns: what the placement it ends at takes.
    """
    best = judge.cost_ns(sides, ends_early=ends_early)
    order = _order(judge, seed)
    improved = True
    while improved:
        improved = False
        for piece in order:
            for side in judge.pieces.options[piece]:
                if judge.evaluations >= allowed:
                    return best
                here = sides[piece]
                if side == here:
                    continue
                sides[piece] = side
                cost = judge.cost_ns(sides, ends_early=ends_early, bound_ns=best)
                if cost < best:
                    best, improved = cost, True
                else:
                    sides[piece] = here
        for region in judge.regions(sides):
            if judge.evaluations >= allowed:
                return best
            kept = [sides[piece] for piece in region]
            for piece in region:
                sides[piece] = CPU_SIDE
            cost = judge.cost_ns(sides, ends_early=ends_early, bound_ns=best)
            if cost < best:
                best, improved = cost, True
            else:
                for piece, side in zip(region, kept, strict=True):
                    sides[piece] = side
    return best


def _order(judge: QuickJudge, seed: int) -> list[int]:
    """Pieces that can move, the longest first, or shuffled by a seed."""
    movable = [piece for piece, options in enumerate(judge.pieces.options) if len(options) > 1]
    movable.sort(key=lambda piece: (-judge.pieces.wide_ns[piece], piece))
    if seed:
        numbers = _numbers(seed)
        for last in range(len(movable) - 1, 0, -1):
            other = next(numbers) % (last + 1)
            movable[last], movable[other] = movable[other], movable[last]
    return movable


def _random_start(judge: QuickJudge, seed: int) -> list[int]:
    numbers = _numbers(seed)
    return [options[next(numbers) % len(options)] for options in judge.pieces.options]


def _numbers(seed: int) -> Iterator[int]:
    """Pseudo-random integers, always the same: the linear congruential generator of Knuth's MMIX, upper bits."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield state >> 33


def _distinct(placements: Iterable[Placement]) -> list[Placement]:
    return list({placement.devices: placement for placement in placements}.values())


def _require_settings(*values: int) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"a search with a setting of {value!r:.40}", fix="give whole numbers of at least 1")
