"""Ways to tell, of a model on a machine in some state, from how much work on a device runs a fusion group.

All of them name a threshold of one grid, and what is placed by it follows the same rule (`Quadrants`), so that they
differ in nothing but the threshold. What is fitted is fitted on rows that leave out the model, or the device, that it
is then asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from parallax.schedule.placement import Placement, PlacementProblem, middle_thresholds
from parallax.schedule.placement._thresholds import ClosedForm, Quadrants

GRID: Final = tuple(step / 4 for step in range(8, 49))
"""Thresholds that are tried: logarithms to the base 10 of FLOPs, from 100 to 10^12, beyond any fusion group's work."""

NEARLY_BEST: Final = 1.001
"""Thresholds within so much of the best one count as best: their middle is what a predictor is to find."""

TRAITS: Final = (
    "log launch ns",
    "log transfer ns",
    "log cpu ns per FLOP",
    "log device ns per FLOP",
    "log cpu ns",
    "log device ns",
    "log groups",
    "log FLOPs of the middle group",
)
"""What a linear predictor sees of a problem; all to the base 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One problem, as far as thresholds go."""

    model: str
    device: str
    grid_ns: tuple[int, ...]
    """What a run takes by each threshold of `GRID`."""
    traits: tuple[float, ...]
    """See `TRAITS`."""
    closed_form: float
    """log10 of the threshold in closed form; that beyond which nothing is left where the device is no quicker."""

    @property
    def best(self) -> int:
        """Index of the middle of the best thresholds."""
        least = min(self.grid_ns)
        good = [place for place, ns in enumerate(self.grid_ns) if ns <= NEARLY_BEST * least]
        # The first run of neighbours: thresholds that are apart have nothing in their middle.
        run = [place for place in good if place - good[0] == good.index(place)]
        return run[len(run) // 2]

    def ns(self, log_flops: float) -> int:
        """What a run takes by the threshold of the grid that is nearest."""
        return self.grid_ns[min(range(len(GRID)), key=lambda place: abs(GRID[place] - log_flops))]


def placed_by(problem: PlacementProblem, log_flops: float) -> Placement:
    """What SparOA's quadrants, as we have them, give the device by a threshold of work. No zeros keep it from that."""
    (placement, *_) = Quadrants(min_flops=10**log_flops, max_zeros=1.0).propose(problem)
    return placement


def case_of(problem: PlacementProblem, simulated_ns: Callable[[Placement], int], *, model: str, device: str) -> Case:
    device_costs, features = problem.devices[0], problem.features
    taken = [group for group in features if group.device_ns[0] is not None]
    flops = max(1, sum(group.flops for group in taken))
    here, there = sum(group.cpu_ns for group in taken), sum(group.device_ns[0] or 0 for group in taken)
    middle, _ = middle_thresholds([group.flops for group in taken], [0.0])
    bound = ClosedForm().bound(problem, 0)
    traits = (
        *(device_costs.launch_ns, device_costs.transfer.fixed_ns + 1e6 * device_costs.transfer.ns_per_byte),
        *(here / flops, there / flops, here, there, len(features), middle),
    )
    return Case(
        model=model,
        device=device,
        grid_ns=tuple(simulated_ns(placed_by(problem, log_flops)) for log_flops in GRID),
        traits=tuple(math.log10(max(value, 1e-9)) for value in traits),
        closed_form=GRID[-1] if bound is None else math.log10(max(bound, 1e-9)),
    )


Predict = Callable[[Case], float]


def constant(known: Sequence[Case]) -> Predict:
    """The one threshold that is best for all cases that are known."""
    regrets = np.log([[ns / min(case.grid_ns) for ns in case.grid_ns] for case in known])
    chosen = GRID[int(np.argmin(regrets.mean(axis=0)))]
    return lambda case: chosen


def median(known: Sequence[Case]) -> Predict:
    """The median of the best thresholds of all cases that are known."""
    chosen = float(np.median([GRID[case.best] for case in known]))
    return lambda case: chosen


def linear(known: Sequence[Case]) -> Predict:
    """Least squares on `TRAITS`, from the best thresholds of all cases that are known."""
    rows = np.array([(1.0, *case.traits) for case in known])
    weights, *_ = np.linalg.lstsq(rows, np.array([GRID[case.best] for case in known]), rcond=None)
    return lambda case: float(np.clip(np.array((1.0, *case.traits)) @ weights, GRID[0], GRID[-1]))


FITTED: Final[Mapping[str, Callable[[Sequence[Case]], Predict]]] = {
    "constant": constant,
    "median": median,
    "linear": linear,
}


def predicted_ns(cases: Sequence[Case]) -> dict[str, list[int]]:
    """Per way to tell, what a run takes in each case. What is fitted knows no case of the same model, or device."""
    found: dict[str, list[int]] = {
        "best of the grid": [min(case.grid_ns) for case in cases],
        "closed form": [case.ns(case.closed_form) for case in cases],
        "middle of the model's own work": [case.ns(case.traits[-1]) for case in cases],
    }
    for name, fit in FITTED.items():
        for what, of in (("models", _model), ("devices", _device)):
            predictors: dict[str, Predict] = {}
            for left_out in dict.fromkeys(map(of, cases)):
                known = [case for case in cases if of(case) != left_out]
                if known:
                    predictors[left_out] = fit(known)
            if len(predictors) == len(set(map(of, cases))):
                found[f"{name}, {what} held out"] = [case.ns(predictors[of(case)](case)) for case in cases]
    return found


def _model(case: Case) -> str:
    return case.model


def _device(case: Case) -> str:
    return case.device
