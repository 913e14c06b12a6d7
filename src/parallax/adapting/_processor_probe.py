"""A small region of its own, by whose time it is told how slow a processor is that a session's plan does not use."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from parallax.backends import Backend, CompiledModel, CompileOptions, DeviceKind
from parallax.backends.ort import empty_host_value, host_bytes
from parallax.graph import OperatorWork, Work
from parallax.model import Probe, probe_model

if TYPE_CHECKING:
    from collections.abc import Mapping

_CPU_SIDE: Final = 256
"""Of the square matrices whose product is a probe of the CPU: some tenths of a millisecond on one core."""

_DEVICE_SIDE: Final = 768
"""Of those for a device: large enough that computing takes most of the time, and not starting to."""

_FLOAT_BYTES: Final = 4

_PROBE_NS: Final = 10_000_000
"""A probe computes for so long. A thread that has slept is let run at once, for some milliseconds, however many others
there are: what it takes then says nothing of what a model would take."""

_LEAST_RUNS: Final = 2
_MOST_RUNS: Final = 100

_CONTENDED: Final = 1.3
"""Where runs take so many times as long as the quickest of them on average, others took the processor meanwhile."""

_STEEPEST: Final = 1.5
"""Power of what a probe takes that a model is taken to feel, at most; and at least one by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTimes:
    """What the runs of one probe took, in ns."""

    mean_ns: float
    least_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a probe took while it was known how slow the processor was.

    A model may feel others that take the cores more than a probe does, since its threads wait for each other more
    often. What it took when nobody did is known too, and so is the quickest run of the probe, which nobody disturbed:
    between these two points a power of what the probe takes is what the model feels; beyond, as much as the probe.
    """

    times: ProbeTimes
    slowdown: float
    least: float | None = None
    """The slow-down that the processor has in the nominal state; None where it is not known."""
    nominal: ProbeTimes | None = None
    """What the probe took in the nominal state, if it was made in it."""

    def is_nominal(self, times: ProbeTimes) -> bool:
        """Whether a probe that takes this takes no longer than in the nominal state, its quickest run neither."""
        if self.nominal is None:
            return False
        return (
            times.mean_ns <= _CONTENDED * self.nominal.mean_ns and times.least_ns <= _CONTENDED * self.nominal.least_ns
        )

    def slowdown_by(self, times: ProbeTimes) -> float:
        """How slow the processor is where a probe takes this."""
        if self.is_nominal(times):
            return self.slowdown if self.least is None else min(self.least, self.slowdown)
        power = 1.0
        contention = self.times.mean_ns / self.times.least_ns
        is_between = times.mean_ns < self.times.mean_ns
        if is_between and self.least is not None and contention > _CONTENDED and self.least < self.slowdown:
            power = math.log(self.slowdown / self.least) / math.log(contention)
            power = min(_STEEPEST, max(1 / _STEEPEST, power))
        least = self.slowdown if self.least is None else min(self.least, self.slowdown)
        return max(
            self.slowdown * math.pow(times.mean_ns / self.times.mean_ns, power),
            # No quicker than undisturbed: what disturbed it when it was calibrated may have been the session's own.
            least * times.least_ns / self.times.least_ns,
        )


class ProcessorProbe:
    """A matrix product on one processor, which is timed against what it took when it was known how slow that is.

    Args:
        backend: of the processor.
        width: threads.

    Raises: BackendError if it cannot be run there.
    """

    def __init__(self, backend: Backend, width: int) -> None:
        side = _CPU_SIDE if backend.info.kind is DeviceKind.CPU else _DEVICE_SIDE
        self._model: CompiledModel = backend.compile(
            probe_model(Probe.PRODUCT, side=side), width=width, options=CompileOptions(exclusive=True, work=_work(side))
        )
        self._feeds: Mapping[str, Any] = {name: _zeros(side) for name in "ab"}
        self._calibration: Calibration | None = None
        self._took_ns()  # programs and buffers are made
        quickest = min(self._took_ns() for _ in range(3))
        self._runs = min(_MOST_RUNS, max(_LEAST_RUNS, math.ceil(_PROBE_NS / quickest)))

    @property
    def is_calibrated(self) -> bool:
        """Whether it is known what it takes when the processor is how slow."""
        return self._calibration is not None

    def calibrate_nominal(self, slowdown: float) -> None:
        """Note what it takes now, in the nominal state. Raises: BackendError.

        Args:
            slowdown: of the processor in that state: what is predicted of it may be wrong.
        """
        times = self._times()
        self._calibration = Calibration(times=times, slowdown=slowdown, least=slowdown, nominal=times)

    def calibrate(self, slowdown: float, least: float | None = None) -> float:
        """Note what it takes now, where the processor is taken to be so slow. Raises: BackendError.

        Args:
            slowdown: of the processor now, by runs. Several of them must agree before a change is believed, so that
                this may be that of a state which has just ended.
            least: that it has in the nominal state; None where it is not known.

        Returns: ``slowdown``; what it is in the nominal state where the probe takes no longer than there.
        """
        times, known = self._times(), self._calibration
        if known is not None and known.is_nominal(times):
            return known.slowdown_by(times)
        nominal = None if known is None else known.nominal
        self._calibration = Calibration(times=times, slowdown=slowdown, least=least, nominal=nominal)
        return slowdown

    def ratio(self) -> float:
        """How slow the processor is now; to be called once it is calibrated. Raises: BackendError."""
        assert self._calibration is not None
        return self._calibration.slowdown_by(self._times())

    def _times(self) -> ProbeTimes:
        """Of runs in a row."""
        took = [self._took_ns() for _ in range(self._runs)]
        return ProbeTimes(mean_ns=sum(took) / len(took), least_ns=min(took))

    def _took_ns(self) -> int:
        begin = time.perf_counter_ns()
        self._model.run_with_ort_values(self._feeds, ["y"])
        return max(1, time.perf_counter_ns() - begin)


def _work(side: int) -> Work:
    product = OperatorWork(op_type="MatMul", flops=2 * side**3, touched_bytes=3 * _FLOAT_BYTES * side**2)
    return Work(operators=(product,))


def _zeros(side: int) -> Any:
    value = empty_host_value([side, side], 1)
    host_bytes(value)[:] = 0
    return value
