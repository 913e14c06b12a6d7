"""Long runs timed in turn: like `parallax.cli.time_interleaved`, with one untimed run before each timed one.

For models that take tens of milliseconds one run wakes what is idle, and more of them would take the time of rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from parallax.cli import Timing, wait_until_quiet
from parallax.machine import NOISY_SHARE, CoreMeter, LoadMeter


def time_in_turn(calls: Mapping[str, Callable[[], object]], *, rounds: int, cores: int) -> dict[str, Timing]:
    """One sample per round of each, in rotating order, each when no pool of the process spins any more.

    A round in which other processes, or the host, took cores is measured again, up to ``rounds`` times in all.
    """
    labels = list(calls)
    samples: dict[str, list[float]] = {label: [] for label in labels}
    discarded = number = 0
    load, present = LoadMeter(), CoreMeter(cores)
    while number < rounds:
        shift = number % len(labels)
        turns = {label: _turn(calls[label], present) for label in (*labels[shift:], *labels[:shift])}
        # Both are asked, so that each begins the next round anew.
        taken, missing = load.cores_taken(cores), present.missing_share()
        if discarded < rounds and (taken > NOISY_SHARE * cores or missing > NOISY_SHARE):
            discarded += 1
            continue
        for label, sample in turns.items():
            samples[label].append(sample)
        number += 1
    return {
        label: Timing(label=label, samples_ns=tuple(values), discarded_rounds=discarded)
        for label, values in samples.items()
    }


def _turn(call: Callable[[], object], present: CoreMeter) -> int:
    wait_until_quiet()
    present.await_cores(call)
    call()
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin
