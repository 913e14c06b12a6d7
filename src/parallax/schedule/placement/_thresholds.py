"""Yardsticks that ask of one or two traits of a fusion group whether a device runs it: work, and zeros in weights.

Work is an absolute count of FLOPs, as in SparOA (arXiv 2511.19457) by what independent readers tell of it; its own
text is not at hand, so that no fidelity is claimed. The rules per quadrant and the grids of thresholds are ours. Zeros
are those of weights (`PlacementProblem.zeros`): activations are not known before a model runs. Where no kernel is
quicker for zeros, a rule that believes in them may lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from parallax.errors import ConfigError
from parallax.schedule.placement._problem import Placement, PlacementProblem

T = TypeVar("T", int, float)

_WORK_BOUNDS: Final = 12
_ZERO_BOUNDS: Final = 4
"""Thresholds that are tried where none is given: that many quantiles of what there is in the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """A device runs what has at least so much work (tau_I).

    Args:
        min_flops: the threshold; None tries several between the least and the most work of a group that a device takes.
    """

    min_flops: float | None = None

    def __post_init__(self) -> None:
        _require_positive("min_flops", self.min_flops)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement per device and threshold."""
        flops = [features.flops for features in problem.features]
        for device, takes in enumerate(problem.takes):
            for bound in _work_bounds(self.min_flops, flops, takes):
                chosen = [group for group, taken in enumerate(takes) if taken and flops[group] >= bound]
                yield Placement.on_device(problem, f"at least {bound:.3g} FLOPs", chosen, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """A device runs what has at most that share of zeros (tau_rho), and the CPU what has more.

    Args:
        max_zeros: the threshold, 0 to 1; None tries several.
    """

    max_zeros: float | None = None

    def __post_init__(self) -> None:
        _require_share("max_zeros", self.max_zeros)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement per device and threshold."""
        zeros = problem.sparsity
        for device, takes in enumerate(problem.takes):
            for bound in _zero_bounds(self.max_zeros, zeros, takes):
                chosen = [group for group, taken in enumerate(takes) if taken and zeros[group] <= bound]
                yield Placement.on_device(problem, f"at most {bound:.0%} zeros", chosen, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadrants:
    """Both thresholds, and a rule for each of the four quadrants that they make; see SparOA's figure of operators.

    Few zeros and much work: the device. Many zeros and little work: the CPU. Many zeros and much work: the device,
    unless the CPU would be quicker if it skipped the zeros. Few zeros and little work: where its main input is made,
    and on the CPU where that is the CPU's, since it is not worth a launch.

    Args:
        min_flops: as in `Intensity`.
        max_zeros: as in `Sparsity`.
    """

    min_flops: float | None = None
    max_zeros: float | None = None

    def __post_init__(self) -> None:
        _require_positive("min_flops", self.min_flops)
        _require_share("max_zeros", self.max_zeros)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement per device and pair of thresholds."""
        flops = [features.flops for features in problem.features]
        for device, takes in enumerate(problem.takes):
            for work in _work_bounds(self.min_flops, flops, takes):
                for zeros in _zero_bounds(self.max_zeros, problem.sparsity, takes):
                    chosen = self._chosen(problem, device, work=work, zeros=zeros)
                    label = f"at least {work:.3g} FLOPs, at most {zeros:.0%} zeros"
                    yield Placement.on_device(problem, label, chosen, device=device)

    def _chosen(self, problem: PlacementProblem, device: int, *, work: float, zeros: float) -> set[int]:
        device_costs, takes = problem.devices[device], problem.takes[device]
        main = _main_producers(problem)
        chosen: set[int] = set()
        for group, features in enumerate(problem.features):
            there_ns = features.device_ns[device]
            if not takes[group] or there_ns is None:
                continue
            is_dense = problem.sparsity[group] <= zeros
            if features.flops >= work:
                moved = device_costs.transfer.ns(features.read_bytes) + device_costs.transfer.ns(features.written_bytes)
                dense_ns = (1 - problem.sparsity[group]) * features.cpu_ns
                if is_dense or dense_ns >= device_costs.launch_ns + there_ns + moved:
                    chosen.add(group)
            elif is_dense and main[group] in chosen:
                chosen.add(group)
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """The work from which on a device is quicker, in closed form: ``tau_I = L_op / (1 / R_cpu - 1 / R_dev)``.

    ``R`` are the rates at which either side does the work of all that the device takes, ``L_op`` is what a launch
    costs. A device that is no quicker gets nothing. Transfers are left out, as in the formula.

    Args:
        launch_ns: L_op; None: of a launch of the device.
    """

    launch_ns: float | None = None

    def __post_init__(self) -> None:
        _require_positive("launch_ns", self.launch_ns)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement per device."""
        for device, takes in enumerate(problem.takes):
            bound = self.bound(problem, device)
            if bound is None:
                continue
            features = problem.features
            chosen = [group for group, taken in enumerate(takes) if taken and features[group].flops >= bound]
            yield Placement.on_device(problem, f"at least {bound:.3g} FLOPs, in closed form", chosen, device=device)

    def bound(self, problem: PlacementProblem, device: int) -> float | None:
        """tau_I of one device, in FLOPs; None where it is no quicker, or takes nothing that has work."""
        pairs = [(features.flops, features.cpu_ns, features.device_ns[device]) for features in problem.features]
        taken = [(flops, here, there) for flops, here, there in pairs if there is not None]
        work = sum(flops for flops, _, _ in taken)
        if not work:
            return None
        cpu_ns_per_flop = sum(here for _, here, _ in taken) / work
        device_ns_per_flop = sum(there for _, _, there in taken) / work
        if device_ns_per_flop >= cpu_ns_per_flop:
            return None
        launch_ns = problem.devices[device].launch_ns if self.launch_ns is None else self.launch_ns
        return launch_ns / (cpu_ns_per_flop - device_ns_per_flop)


def middle_thresholds(flops: Sequence[int], zeros: Sequence[float]) -> tuple[float, float]:
    """The least work and the most zeros that divide these in the middle: of the thresholds that `Quadrants` tries where
    none is given, the middle one of either kind.

    Args:
        flops: work, of one operator or fusion group each.
        zeros: shares of zeros, likewise.

    Returns: (min_flops, max_zeros); 0 where there is nothing to divide.
    """
    work = _quantiles(sorted(set(flops)), _WORK_BOUNDS)
    shares = _quantiles(sorted(set(zeros)), _ZERO_BOUNDS)
    return (
        float(work[len(work) // 2]) if work else 0.0,
        shares[(len(shares) - 1) // 2] if shares else 0.0,
    )


def _main_producers(problem: PlacementProblem) -> list[int | None]:
    """Per fusion group the one that makes the largest tensor that it reads; None where that is the caller."""
    largest: list[tuple[int, int]] = [(0, -1)] * len(problem.groups)
    for flow in problem.flows:
        for reader in flow.readers:
            largest[reader] = max(largest[reader], (flow.size_bytes, flow.producer))
    return [producer if producer >= 0 else None for _, producer in largest]


def _work_bounds(given: float | None, flops: Sequence[int], takes: Sequence[bool]) -> list[float]:
    if given is not None:
        return [given]
    found = sorted({work for work, taken in zip(flops, takes, strict=True) if taken})
    return [float(work) for work in _quantiles(found, _WORK_BOUNDS)]


def _zero_bounds(given: float | None, zeros: Sequence[float], takes: Sequence[bool]) -> list[float]:
    if given is not None:
        return [given]
    return _quantiles(sorted({share for share, taken in zip(zeros, takes, strict=True) if taken}), _ZERO_BOUNDS)


def _quantiles(ascending: Sequence[T], most: int) -> list[T]:
    """Some of these, spread evenly, the least and the largest among them."""
    if len(ascending) <= most:
        return list(ascending)
    return [ascending[round(step * (len(ascending) - 1) / (most - 1))] for step in range(most)]


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and 0 <= value < float("inf")):
        raise ConfigError(f"{name}={value!r:.40}", fix="give a finite number of at least 0, or None to try several")


def _require_share(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ConfigError(f"{name}={value!r:.40}", fix="give a share from 0 to 1, or None to try several")
