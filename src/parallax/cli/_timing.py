"""Timing rivals fairly: interleaved, each in its steady state, none disturbed by another's spinning pool.

One *round* gives every rival one *turn*, and the order rotates from round to round, so that drift of the
machine (heat, neighbours) falls on all alike. A turn begins when the process is quiet: ONNX Runtime's
default thread pools spin for tens of milliseconds after a run, and a rival timed meanwhile would lose a
core to them. Untimed runs then wake the rival's own pool and its caches, as in back-to-back use, and go on while the
machine has not given all its cores (`CoreMeter.await_cores`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parallax.machine import DISTURBED_SHARE, CoreMeter, LoadMeter

# Runs shorter than this are timed several at once, for the sake of the clock's grain and of noise.
_TURN_NS = 10_000_000
_WAKE_NS = 20_000_000
_MAX_RUNS_PER_TURN = 64

# Share of one core below which nothing of ours is spinning any more.
_QUIET_SHARE = 0.2
_QUIET_LIMIT_NS = 250_000_000
_QUIET_PROBE_S = max(0.002, 2 * time.get_clock_info("process_time").resolution)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations of one rival in ns, one per round, in the order of rounds."""

    label: str
    samples_ns: tuple[float, ...]
    discarded_rounds: int = 0
    """Rounds measured again because the cores were not all there, used by others or taken by the host."""

    @property
    def median_ns(self) -> float:
        return statistics.median(self.samples_ns)

    @property
    def min_ns(self) -> float:
        return min(self.samples_ns)

    @property
    def max_ns(self) -> float:
        return max(self.samples_ns)

    @property
    def quartiles_ns(self) -> tuple[float, float]:
        """First and third quartile; of a single sample, that sample twice."""
        return quartiles(self.samples_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Median and quartiles of per-round ratios; below 1 the first rival was faster."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile (inclusive method); of a single value, that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratio(ours: Timing, theirs: Timing) -> Ratio:
    """How long ``ours`` took, in units of ``theirs``, compared round by round.

    Both ran within moments of each other in each round, so what slowed the machine down in a round
    cancels, which it does not in a ratio of two medians.
    """
    ratios = [ours_ns / theirs_ns for ours_ns, theirs_ns in zip(ours.samples_ns, theirs.samples_ns, strict=True)]
    low, high = quartiles(ratios)
    return Ratio(median=statistics.median(ratios), low=low, high=high)


def wait_until_quiet() -> None:
    """Return when this process uses almost no CPU, or after a quarter of a second."""
    deadline = time.perf_counter_ns() + _QUIET_LIMIT_NS
    while True:
        wall, busy = time.perf_counter_ns(), time.process_time_ns()
        time.sleep(_QUIET_PROBE_S)
        now = time.perf_counter_ns()
        if time.process_time_ns() - busy < _QUIET_SHARE * (now - wall) or now > deadline:
            return


def time_interleaved(
    rivals: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmups: int = 3,
    cores: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time each rival ``rounds`` times, interleaved, after ``warmups`` untimed runs of each.

    Each turn begins with untimed runs until the cores, idle since the last turn, are awake again. A rival
    whose run is short does several per turn and contributes their median as one sample; all rivals do
    equally many.

    Args:
        rivals: label -> a call that does one run.
        cores: how many the rivals use. Where given, a turn waits (a second at most, with untimed runs) until no more
            than `DISTURBED_SHARE` of them is missing (see `CoreMeter`), and a round during which other processes took
            more, or at whose end more is missing, is measured again, whatever came out of it, up to ``rounds`` times
            in all.
        progress: called with (rounds done, rounds in all).

    Returns: label -> timing, in the order given.
    """
    shortest_ns = min(_warm_up(call, warmups) for call in rivals.values())
    repeats = min(_MAX_RUNS_PER_TURN, max(1, round(_TURN_NS / max(1, shortest_ns))))
    labels = list(rivals)
    samples: dict[str, list[float]] = {label: [] for label in labels}
    discarded = number = 0
    meter = LoadMeter()
    core_meter = None if cores is None else CoreMeter(cores)
    while number < rounds:
        shift = number % len(labels)
        turns = {label: _turn(rivals[label], repeats, core_meter) for label in (*labels[shift:], *labels[:shift])}
        if cores is not None and core_meter is not None and discarded < rounds:
            # Both are asked, so that each begins the next round anew.
            load, missing = meter.disturbance(cores), core_meter.missing_share()
            if load > DISTURBED_SHARE * cores or missing > DISTURBED_SHARE:
                discarded += 1
                continue
        for label, sample in turns.items():
            samples[label].append(sample)
        number += 1
        if progress is not None:
            progress(number, rounds)
    return {
        label: Timing(label=label, samples_ns=tuple(values), discarded_rounds=discarded)
        for label, values in samples.items()
    }


def _turn(call: Callable[[], object], repeats: int, meter: CoreMeter | None) -> float:
    """One rival's turn: the median of ``repeats`` runs, in ns."""
    wait_until_quiet()
    _wake(call)
    if meter is not None:
        meter.await_cores(call)
        call()
    runs = []
    for _ in range(repeats):
        begin = time.perf_counter_ns()
        call()
        runs.append(time.perf_counter_ns() - begin)
    return statistics.median(runs)


def _wake(call: Callable[[], object]) -> None:
    """Run, untimed, at least once and until idle cores (a virtual machine's above all) are back at work."""
    end = time.perf_counter_ns() + _WAKE_NS
    call()
    while time.perf_counter_ns() < end:
        call()


def _warm_up(call: Callable[[], object], runs: int) -> int:
    """Run at least once, untimed in effect; returns the ns of the last run."""
    wait_until_quiet()
    elapsed_ns = 0
    for _ in range(max(1, runs)):
        begin = time.perf_counter_ns()
        call()
        elapsed_ns = time.perf_counter_ns() - begin
    return elapsed_ns
