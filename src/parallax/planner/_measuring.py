"""Ways to run a model, timed in turn, and which of them is kept.

A kept plan is never slower than the whole model beyond noise: another is kept only where it wins in the median by a
margin, and in most rounds, of one interleaved run.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from parallax.machine import AWAIT_S, NOISY_SHARE, CoreMeter, LoadMeter
from parallax.planner._request import Progress
from parallax.schedule import Plan

ROUNDS = 25
TURN_NS = 4_000_000
"""Least time of one variant's turn within a round; quick models run several times per turn."""

LONGEST_NS = 30_000_000_000
"""Measuring stops after this, if at least MIN_ROUNDS are done."""

MIN_ROUNDS = 7

PATIENCE_S = 5.0
"""For how long one measurement waits for missing cores, all its turns together. Where they do not come, the machine is
busy; that is told from what others used, and more waiting would only make an open session later."""

KEEP_RATIO = 0.95
"""A plan other than the default must take at most this share of its time, in two measurements: less is noise, and
the best of several figures flatters itself."""

STEADY_RATIO = 0.85
"""... or, where it is no slower in the median, at most this share of the default's mean."""

KEEP_WINS = 2 / 3
"""... and be the quicker one in at least this share of the rounds."""

WHOLE_KEEP_RATIO = 0.98
"""The same for the whole model on another backend: nothing is handed over and it is one figure, not the best of
several, so a small gain that two measurements show is one."""

WHOLE_KEEP_WINS = 0.6
"""Likewise: where single rounds differ by as much as the two libraries, to ask for more misses gains of 7%."""

# How long ONNX Runtime's idle pool may go on spinning after a run (measured: some 40 ms of CPU at most); the
# next variant waits it out, or it would share its cores with a pool that does nothing.
SPIN_PAUSE_S = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run the model, to be timed against others."""

    label: str
    run: Callable[[], object]
    plan: Plan
    spins: bool


def measure_again_if_noisy(
    variants: Sequence[Variant], *, cores: int, progress: Progress, rounds: int = ROUNDS
) -> tuple[list[list[int]], float]:
    """Times per variant, and how many cores others kept busy meanwhile; a noisy measurement is done once more."""
    others = 0.0
    times: list[list[int]] = []
    for stage in ("measure", "measure again: the machine was busy"):
        meter = LoadMeter()
        times = measure_interleaved(variants, progress=functools.partial(progress, stage), rounds=rounds)
        others = meter.cores_taken(cores)
        if others <= NOISY_SHARE * cores:
            break
    return times, others


def measure_interleaved(
    variants: Sequence[Variant], *, progress: Callable[[int, int], None], rounds: int = ROUNDS
) -> list[list[int]]:
    """Time the variants in turn, round after round; returns per variant the ns of one run, per round.

    Within a round each variant has one turn: a run that is not counted, then enough runs to fill TURN_NS, of which the
    median counts. The order rotates, so that no variant always follows the same one. Turns on several cores begin when
    the machine gives them all, or when `PATIENCE_S` has been spent on waiting for that.
    """
    repeats = []
    for variant in variants:
        variant.run()
        begin = time.perf_counter_ns()
        variant.run()
        repeats.append(max(1, min(100, TURN_NS // max(1, time.perf_counter_ns() - begin))))
    series: list[list[int]] = [[] for _ in variants]
    used = [max(variant.plan.lanes, *(segment.width for segment in variant.plan.segments)) for variant in variants]
    meter = CoreMeter(max(used))
    patience_s = PATIENCE_S
    began = time.perf_counter_ns()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter_ns() - began > LONGEST_NS:
            break
        progress(number, rounds)
        for offset in range(len(variants)):
            index = (number + offset) % len(variants)
            run = variants[index].run
            if used[index] > 1 and patience_s > 0:
                asked = time.perf_counter()
                meter.await_cores(run, limit_s=min(AWAIT_S, patience_s))
                patience_s -= time.perf_counter() - asked
            run()
            turn = []
            for _ in range(repeats[index]):
                begin = time.perf_counter_ns()
                run()
                turn.append(time.perf_counter_ns() - begin)
            series[index].append(round(statistics.median(turn)))
            if variants[index].spins:
                time.sleep(SPIN_PAUSE_S)
    progress(rounds, rounds)
    return series


def pick_winner(times: Sequence[Sequence[int]], *, whole: Collection[int] = ()) -> int:
    """Index of the series to keep. Series 0 is the default and stays unless another clearly beats it.

    Compared round by round: the median of the ratios must be at most KEEP_RATIO (and so must the ratio of
    the medians), and a share KEEP_WINS of them below 1, so that neither a few lucky rounds nor a hair's
    breadth decide. Or it must be no slower in the median and clearly steadier. For the series ``whole``,
    WHOLE_KEEP_RATIO and WHOLE_KEEP_WINS take their places.
    """
    best, best_ratio = 0, 1.0
    for index in range(1, len(times)):
        ratios = [mine / base for mine, base in zip(times[index], times[0], strict=True)]
        median = statistics.median(ratios)
        wins = sum(ratio < 1 for ratio in ratios)
        # Where times fall into two clusters, the ratios by round and that of the medians can disagree.
        overall = max(median, statistics.median(times[index]) / statistics.median(times[0]))
        needed, share = (WHOLE_KEEP_RATIO, WHOLE_KEEP_WINS) if index in whole else (KEEP_RATIO, KEEP_WINS)
        quicker = overall <= needed and wins >= share * len(ratios)
        # A quick model on several threads can be quick or slow by turns; what is as quick and steady is better.
        mean = statistics.fmean(times[index]) / statistics.fmean(times[0])
        steadier = overall <= 1 and mean <= STEADY_RATIO
        if (quicker or steadier) and median < best_ratio:
            best, best_ratio = index, median
    return best


def promising(times: Sequence[Sequence[int]], whole: Collection[int]) -> int:
    """The quickest of the series ``whole``, if only the share of rounds won speaks against it; else 0."""
    medians = {index: statistics.median(times[index]) for index in whole}
    best = min(medians, key=lambda index: medians[index], default=0)
    return best if best and medians[best] <= WHOLE_KEEP_RATIO * statistics.median(times[0]) else 0


def difference(expected: object, actual: object, *, tolerance: float = 1e-4) -> str:
    """How two lists of outputs differ, or "" where they agree.

    Bit for bit, or within ``tolerance`` of the largest magnitude of the output: another cut may let
    the runtime choose another layout, and with it another order of additions.
    """
    if not isinstance(expected, Sequence) or not isinstance(actual, Sequence):
        return "not comparable"
    for position, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if want.shape != got.shape or want.dtype != got.dtype:
            return f"output {position} is {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
        if np.array_equal(want, got, equal_nan=want.dtype.kind == "f"):
            continue
        if want.dtype.kind != "f":
            return f"output {position} differs"
        scale = max(1e-30, float(np.nanmax(np.abs(want.astype(np.float64)), initial=0.0)))
        if not np.allclose(want, got, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return f"output {position} differs beyond {tolerance:g} of its scale"
    return ""
