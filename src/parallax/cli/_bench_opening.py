"""The sessions that `parallax bench` opens: ours and ONNX Runtime's, each with its first run, within a given time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime

from parallax.backends.ort import FOREIGN_EXCEPTIONS
from parallax.bundle import read_bundle
from parallax.cli._baselines import Baseline
from parallax.cli._bench_report import OURS
from parallax.cli._console import ProgressCallback, Screen
from parallax.cli._open import Subject
from parallax.cli._original import find_original
from parallax.cli._quiet import Deadline
from parallax.options import Options
from parallax.planner import is_yardstick
from parallax.session import InferenceSession

TUNE_SHARE = 0.5
"""The search for a plan may take this share of the time that is left after waiting for cores."""


class _OutOfTime(BaseException):
    """Ends the search for a plan from within its progress callback: not an Exception, which that one swallows."""


def open_ours(
    subject: Subject, options: Options, providers: Sequence[str], deadline: Deadline, screen: Screen
) -> InferenceSession:
    """Our session, tuned if that ends in time; else with the plan that a session opens with untuned."""
    if not options.tune:
        return subject.open(options, providers=providers)
    limit = deadline.within(TUNE_SHARE)
    told = options.progress

    def watched(stage: str, done: int, total: int) -> None:
        if not limit.remaining_s:
            raise _OutOfTime
        if told is not None:
            told(stage, done, total)

    try:
        session = subject.open(replace(options, progress=watched), providers=providers)
    except _OutOfTime:
        screen.notice(
            f"the search for the best plan did not end within {limit.seconds:.0f} s: the plan of an untuned session is "
            f"timed instead. `parallax tune {subject.source.label}` has no time limit, and bench then uses its plan"
        )
        return subject.open(replace(options, tune=False), providers=providers)
    if session.plan.provenance.is_noisy:
        screen.notice(f"tuning came to no conclusion: {session.plan.provenance.reason}")
    return session


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A session that opens and runs, with what its first run gave."""

    session: Any
    outputs: list[Any]
    run_s: float


@dataclass(slots=True, kw_only=True)
class Opened:
    """What has been opened so far besides our session. Another thread may read it while it is filled."""

    running: dict[str, Running] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """What the runtime said."""
    left_out: dict[str, str] = field(default_factory=dict)
    """For want of time, or of the model."""
    order: tuple[str, ...] = ()
    """Labels of all, those that matter most first."""


def open_policies(
    policies: Sequence[str], subject: Subject, options: Options, providers: Sequence[str], opened: Opened
) -> dict[str, Running]:
    """Sessions of ours with other policies, by label, each with its first run."""
    for policy in policies:
        tune = options.tune and not is_yardstick(policy)
        session = subject.open(replace(options, policy=policy, tune=tune), providers=providers)
        began = time.perf_counter()
        outputs = subject.run(session)
        run_s = time.perf_counter() - began
        opened.running[f"{OURS}, {policy}"] = Running(session=session, outputs=outputs, run_s=run_s)
    return dict(opened.running)


def open_baselines(
    baselines: Sequence[Baseline],
    subject: Subject,
    deadline: Deadline,
    progress: ProgressCallback,
    *,
    run_s: float,
    opened: Opened,
    screen: Screen,
) -> None:
    """Add sessions that open and run once, in the order of the baselines; those that matter most are opened first."""
    path: Path | None = subject.source.path
    if subject.source.is_bundle:
        path, why = find_original(read_bundle(subject.source.path, verify="never"))
        if path is None:
            screen.notice(f"nothing to compare with: {why}")
            opened.left_out.update((baseline.label, why) for baseline in baselines)
            return
    by_importance = _by_importance(baselines)
    opened.order = (*opened.running, *(baseline.label for baseline in by_importance))
    longest_s, are_any = run_s, False
    for number, baseline in enumerate(by_importance, start=1):
        if are_any and deadline.remaining_s < longest_s:
            opened.left_out[baseline.label] = "no time was left to open it"
            continue
        try:
            begun = time.perf_counter()
            session = baseline.open(path or subject.source.path)
            began = time.perf_counter()
            outputs = session.run(None, subject.feeds)
            ended = time.perf_counter()
            opened.running[baseline.label] = Running(session=session, outputs=outputs, run_s=ended - began)
            longest_s, are_any = max(longest_s, ended - begun), True
        except FOREIGN_EXCEPTIONS as error:
            opened.failed[baseline.label] = " ".join(str(error).split())
        progress("opening ONNX Runtime", number, len(baselines))
    order = [baseline.label for baseline in baselines]
    ours = [label for label in opened.running if label not in order]
    opened.running = {label: opened.running[label] for label in (*ours, *order) if label in opened.running}


def _by_importance(baselines: Sequence[Baseline]) -> list[Baseline]:
    """What a session of ONNX Runtime is by default first, then one thread, the parallel mode, and the rest."""
    most = max(baseline.threads for baseline in baselines)

    def rank(baseline: Baseline) -> int:
        if baseline.inter_op_threads is not None:
            return 2
        return {most: 0, 1: 1}.get(baseline.threads, 3)

    return sorted(baselines, key=rank)


def callers(
    session: InferenceSession, opened: Opened, subject: Subject, *, ours_s: float, deadline: Deadline
) -> dict[str, Callable[[], object]]:
    """What is timed, by label; of models that run for long, as many as one round of is to end in time, and two."""
    room_s = deadline.remaining_s - ours_s
    kept: set[str] = set()
    for label in sorted(opened.running, key=opened.order.index):
        room_s -= opened.running[label].run_s
        if room_s > 0 or not kept:
            kept.add(label)
        else:
            opened.left_out[label] = "no time was left to time it"
    calls = {OURS: _caller(session, subject)}
    calls.update(
        (label, _caller(running.session, subject)) for label, running in opened.running.items() if label in kept
    )
    return calls


def _caller(session: onnxruntime.InferenceSession, subject: Subject) -> Callable[[], object]:
    return lambda: session.run(None, subject.feeds)
