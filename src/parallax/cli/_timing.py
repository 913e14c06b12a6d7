"""Timing variants fairly: interleaved, each in its steady state, none slowed down by another's spinning pool.

One *round* gives every variant one *turn*, and the order rotates from round to round, so that drift of the
machine (heat, neighbours) falls on all alike. A turn begins when the process is quiet: ONNX Runtime's
default thread pools spin for tens of milliseconds after a run, and a variant timed meanwhile would lose a
core to them. Untimed runs then wake the variant's own pool and its caches, as in back-to-back use, and go on while the
machine has not given all its cores (`CoreMeter.await_cores`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from parallax.machine import AWAIT_S, NOISY_SHARE, CoreMeter, LoadMeter

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
    """Durations of one variant in ns, one per round, in the order of rounds."""

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
    """Median and quartiles of per-round ratios; below 1 the first variant was faster."""

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
    ratios = ratios_by_round(ours, theirs)
    low, high = quartiles(ratios)
    return Ratio(median=statistics.median(ratios), low=low, high=high)


def ratios_by_round(ours: Timing, theirs: Timing) -> list[float]:
    """Ours to theirs, one per round."""
    return [ours_ns / theirs_ns for ours_ns, theirs_ns in zip(ours.samples_ns, theirs.samples_ns, strict=True)]


def wait_until_quiet() -> None:
    """Return when this process uses almost no CPU, or after a quarter of a second."""
    deadline = time.perf_counter_ns() + _QUIET_LIMIT_NS
    while True:
        wall, busy = time.perf_counter_ns(), time.process_time_ns()
        time.sleep(_QUIET_PROBE_S)
        now = time.perf_counter_ns()
        if time.process_time_ns() - busy < _QUIET_SHARE * (now - wall) or now > deadline:
            return


# Rounds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one variant did in one round."""

    sample_ns: float
    """It counts for the round: the median of its runs, or what a run took on average where several were made at
    once."""
    runs_ns: tuple[float, ...]
    """Of every timed run."""
    wall_ns: float
    """In which these runs were made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of each variant."""

    turns: Mapping[str, Turn]
    others_cores: float
    """Of the cores measured on, those that other processes used meanwhile; 0 where nobody looked."""
    is_noisy: bool
    """Others used cores, or the host had taken some at its end: what was measured says little."""


LogRuns = Callable[[str, Sequence[float]], None]
"""Called with the label of a variant and the durations, in ns, of runs of it that have just ended."""


class Rounds(Protocol):
    """What measures one round after the other."""

    def measure(self, *, wait_s: float = AWAIT_S, is_over: Callable[[], bool] = lambda: False) -> Round | None:
        """One round.

        Args:
            wait_s: how long each turn may wait for cores that the host has taken.
            is_over: asked before each turn; where it says so, the round is given up.

        Returns: the round; None if it was given up.
        """
        ...


class InterleavedRounds:
    """Rounds of single runs, one after the other; see the top of this module.

    Args:
        variants: label -> a call that does one run.
        warmups: untimed runs of each before the first round.
        cores: how many the variants use. None: nobody looks whether they are there.
        is_brief: whether a turn is one timed run and nothing else, for models that run for seconds: most of such a run
            is spent with pools and caches awake.
        log: called after each turn, and after each untimed run before the first round; see `LogRuns`.
    """

    def __init__(
        self,
        variants: Mapping[str, Callable[[], object]],
        *,
        warmups: int = 3,
        cores: int | None = None,
        is_brief: bool = False,
        log: LogRuns = lambda label, runs_ns: None,
    ) -> None:
        self._repeats = 1
        self._log = log
        if not is_brief:
            shortest_ns = min(self._warm_up(label, call, warmups) for label, call in variants.items())
            self._repeats = min(_MAX_RUNS_PER_TURN, max(1, round(_TURN_NS / max(1, shortest_ns))))
        self._variants = variants
        self._is_brief = is_brief
        self._witness = _Witness(cores)
        self._number = 0

    def measure(self, *, wait_s: float = AWAIT_S, is_over: Callable[[], bool] = lambda: False) -> Round | None:
        """One round, in which each variant's runs fill some 10 ms. See `Rounds`."""
        turns: dict[str, Turn] = {}
        for label in rotated(self._variants, self._number):
            if is_over():
                return None
            turns[label] = self._turn(self._variants[label], wait_s)
            self._log(label, turns[label].runs_ns)
        self._number += 1
        return self._witness.judge(turns)

    def _warm_up(self, label: str, call: Callable[[], object], runs: int) -> float:
        """Run at least once, untimed in effect; returns the ns of the last run."""
        wait_until_quiet()
        elapsed_ns = 0.0
        for _ in range(max(1, runs)):
            begin = time.perf_counter_ns()
            call()
            elapsed_ns = time.perf_counter_ns() - begin
            self._log(label, (elapsed_ns,))
        return elapsed_ns

    def _turn(self, call: Callable[[], object], wait_s: float) -> Turn:
        wait_until_quiet()
        if not self._is_brief:
            wake(call)
            if self._witness.cores is not None and wait_s > 0:
                self._witness.cores.await_cores(call, limit_s=wait_s)
                call()
        runs: list[float] = []
        began = time.perf_counter_ns()
        for _ in range(self._repeats):
            begin = time.perf_counter_ns()
            call()
            runs.append(time.perf_counter_ns() - begin)
        wall_ns = time.perf_counter_ns() - began
        return Turn(sample_ns=statistics.median(runs), runs_ns=tuple(runs), wall_ns=wall_ns)


class _Witness:
    """Sees what others did to a round."""

    def __init__(self, cores: int | None) -> None:
        self._used = cores
        self._load = LoadMeter()
        self.cores = None if cores is None else CoreMeter(cores)

    def judge(self, turns: Mapping[str, Turn]) -> Round:
        if self._used is None or self.cores is None:
            return Round(turns=turns, others_cores=0.0, is_noisy=False)
        # Both are asked, so that each begins the next round anew.
        load, missing = self._load.cores_taken(self._used), self.cores.missing_share()
        is_noisy = load > NOISY_SHARE * self._used or missing > NOISY_SHARE
        return Round(turns=turns, others_cores=min(load, self._used), is_noisy=is_noisy)


def witness_for(cores: int | None) -> Callable[[Mapping[str, Turn]], Round]:
    """What makes a round of its turns, and sees whether it was noisy: whether others used the cores."""
    return _Witness(cores).judge


def rotated(variants: Mapping[str, object], number: int) -> list[str]:
    """The variants' labels, beginning with another one in each round."""
    labels = list(variants)
    shift = number % len(labels)
    return [*labels[shift:], *labels[:shift]]


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmups: int = 3,
    cores: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time each variant ``rounds`` times, interleaved, after ``warmups`` untimed runs of each.

    Each turn begins with untimed runs until the cores, idle since the last turn, are awake again. A variant
    whose run is short does several per turn and contributes their median as one sample; all variants do
    equally many.

    Args:
        variants: label -> a call that does one run.
        cores: how many the variants use. Where given, a turn waits (a second at most, with untimed runs) until no more
            than `NOISY_SHARE` of them is missing (see `CoreMeter`), and a round during which other processes took
            more, or at whose end more is missing, is measured again, whatever came out of it, up to ``rounds`` times
            in all.
        progress: called with (rounds done, rounds in all).

    Returns: label -> timing, in the order given.
    """
    timer = InterleavedRounds(variants, warmups=warmups, cores=cores)
    kept: list[Round] = []
    discarded = 0
    while len(kept) < rounds:
        measured = timer.measure()
        if measured is None:
            continue
        if measured.is_noisy and discarded < rounds:
            discarded += 1
            continue
        kept.append(measured)
        if progress is not None:
            progress(len(kept), rounds)
    return timings_of(kept, variants, discarded_rounds=discarded)


def timings_of(
    rounds: Sequence[Round], variants: Mapping[str, object], *, discarded_rounds: int = 0
) -> dict[str, Timing]:
    """By label, in the order of the variants."""
    return {
        label: Timing(
            label=label,
            samples_ns=tuple(measured.turns[label].sample_ns for measured in rounds),
            discarded_rounds=discarded_rounds,
        )
        for label in variants
    }


def wake(call: Callable[[], object]) -> None:
    """Run, untimed, at least once and until idle cores (a virtual machine's above all) are back at work."""
    end = time.perf_counter_ns() + _WAKE_NS
    call()
    while time.perf_counter_ns() < end:
        call()
