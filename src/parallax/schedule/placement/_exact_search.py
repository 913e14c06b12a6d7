"""The search for the best placement there is, by a solver's lower bounds and the judge's answers.

The solver's model leaves out what can only take time, so it is asked again and again: for the placement that takes
least by its model, among those that the judge has not seen and that could beat the best so far. When none is left,
the best so far is the best of all, as the judge schedules them. Where that would take too long, the model is divided
into parts, which gives one placement and a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from parallax.schedule.placement._exact_parts import Ask, answer_divided
from parallax.schedule.placement._exact_question import as_sides, make_question, narrowed
from parallax.schedule.placement._judge import Judge
from parallax.schedule.placement._problem import Placement, PlacementProblem

MOST_WHOLE: Final = 24
"""Models in which devices take more fusion groups are asked about in parts."""

_KEPT: Final = 4
"""Placements that one answer holds, at most."""
_LEAST_SECONDS: Final = 0.02
"""What a question gets when the time is over: enough for a bound that is worth something."""


class ExactSearch:
    """One search.

    Args:
        problem: what is to be placed.
        judge: it is told each placement by whoever iterates over `placements`.
        ask: a solver, see `parallax.planner._exact_worker`.
        seconds: of the solver for all questions together, as it counts its own work.
        share: which part of that one question may take.

    Attributes:
        bound_ns: no schedule of any placement takes less in the simulator.
        is_closed: whether no placement takes less than the best so far, as the judge schedules them: with regions as
            large as can be, or ended early.
        asked: number of questions.
    """

    def __init__(
        self, problem: PlacementProblem, judge: Judge, ask: Ask, *, seconds: float, share: float = 0.1
    ) -> None:
        self.bound_ns = 0
        self.is_closed = False
        self.asked = 0
        self._problem = problem
        self._judge = judge
        self._solver = ask
        self._left = seconds
        self._most = share * seconds

    def placements(self) -> Iterator[Placement]:
        """Placements that may be better than the judge's best; each must be judged before the next is asked for."""
        question = make_question(self._problem, seconds=self._most, kept=_KEPT)
        taken = [any(ns is not None for ns in row["device_ns"]) for row in question["groups"]]
        if sum(taken) > MOST_WHOLE:
            answer = answer_divided(question, self._ask)
            self.bound_ns = answer.bound_ns
            if answer.sides is not None:
                yield from _forms(answer.sides, answer.regions)
        else:
            yield from self._one_by_one(question)
        self.is_closed = self.is_closed or self.bound_ns >= self._judge.best.makespan_ns

    def _one_by_one(self, question: dict[str, Any]) -> Iterator[Placement]:
        best = as_sides(self._judge.best.regions.placed(len(self._problem.groups)))
        # The judge knows what the CPU alone takes.
        known = {tuple(as_sides(self._problem.cpu_only.devices))}
        answer = self._ask({**question, "hint": best})
        self.bound_ns = answer["bound_ns"]
        while True:
            for found in answer["found"]:
                known.add(tuple(found["sides"]))
                yield from _forms(found["sides"], found["regions"])
            best_ns = self._judge.best.makespan_ns
            if self.bound_ns >= best_ns or answer["status"] == "none" or self._left <= 0:
                break
            answer = self._ask(narrowed(question, below_ns=best_ns, excluded=known))
            if answer["status"] == "unknown":
                return
        self.is_closed = answer["status"] == "none"

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        answer = self._solver({**question, "seconds": max(_LEAST_SECONDS, min(self._left, self._most))})
        self._left -= answer["used_s"]
        return answer


def _forms(sides: Sequence[int], regions: Sequence[Sequence[int]] | None) -> Iterator[Placement]:
    devices = tuple(None if side < 0 else side for side in sides)
    if regions:
        yield Placement(label="exact, its regions", devices=devices, regions=tuple(map(tuple, regions)))
    yield Placement(label="exact", devices=devices)
    yield Placement(label="exact, cut early", devices=devices, ends_early=True)
