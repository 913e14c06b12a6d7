"""``parallax bench``: our session against plain ONNX Runtime on the same model and inputs, within a given time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime
import typer

from parallax.backends.ort import FOREIGN_EXCEPTIONS
from parallax.bundle import read_bundle
from parallax.cli._bench_report import OURS, TOLERANCE, Bench, End, describe_bench, is_ours, render_bench
from parallax.cli._callers import CallerRounds
from parallax.cli._console import ProgressCallback, Screen
from parallax.cli._energy import (
    ENERGY_SHARE,
    EnergySource,
    RowEnergy,
    energy_of,
    measure_rows,
    source_for,
)
from parallax.cli._exits import BEGAN_S, INTERRUPTED_EXIT, say
from parallax.cli._open import Subject, check_writable, prepare
from parallax.cli._original import find_original
from parallax.cli._providers import parse_providers
from parallax.cli._quiet import Deadline, await_idle_cores
from parallax.cli._rivals import Difference, Rival, compare_outputs, runtime_rivals
from parallax.cli._timing import InterleavedRounds, Round, Rounds
from parallax.cli._verdict import LEAST_SAMPLES
from parallax.errors import ConfigError
from parallax.machine import AWAIT_S, available_cores
from parallax.options import Options
from parallax.planner import is_yardstick, open_placer
from parallax.session import InferenceSession

DEFAULT_MAX_S = 30.0
DEFAULT_ROUNDS = 30
DEFAULT_DURATION_S = 5.0
"""For each, where several call at once and nothing else is said."""

TURNS = 10
"""Into which a duration is divided, so that all take turns."""

WAIT_SHARE, WAIT_LIMIT_S = 1 / 6, 10.0
"""So much of the time others' programs are waited for, before anything is measured."""

TUNE_SHARE = 0.5
"""So much of what is then left the search for a plan may take ..."""
OPEN_SHARE = 0.5
"""... and so much of the rest the opening of ONNX Runtime's sessions, those that matter least left out."""

BRIEF_RUN_S = 0.5
"""From a run of this length on, turns are their timed runs alone."""
_PATIENT_S, _IMPATIENT_S = AWAIT_S, 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is measured, and for how long."""

    rounds: int | None = None
    """At most; None: `DEFAULT_ROUNDS`."""
    max_time_s: float | None = None
    """None: `DEFAULT_MAX_S`, or what ``duration_s`` needs."""
    callers: int = 1
    duration_s: float | None = None
    """Seconds that each is called for; None: rounds of single runs, unless several call."""
    batch: int | None = None
    tunes: bool | None = None
    """None: models are tuned, bundles are not."""
    energy: bool = False
    """Whether joules are wanted."""

    @property
    def is_load(self) -> bool:
        """Whether throughput is measured, by callers that do not pause."""
        return self.callers > 1 or self.duration_s is not None

    def limit_s(self, rivals: int) -> float:
        """Seconds after which all is to be over, with so many to be compared."""
        if self.max_time_s is not None:
            return self.max_time_s
        return DEFAULT_MAX_S + (0.0 if self.duration_s is None else self.duration_s * rivals)


def bench_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    options: Options,
    how: BenchPlan,
    seed: int,
    save: Path | None,
    providers: Sequence[str],
    policies: Sequence[str],
    screen: Screen,
) -> None:
    """Time ``model`` here and in plain ONNX Runtime, interleaved, and compare outputs.

    Exits with 1 where our outputs agree with no rival's, or those of a policy not with ours, and with 130 (and what is
    known by then) on Ctrl-C.

    Args:
        policies: names of others to time as well. Yardsticks among them are never tuned.
    """
    if save is not None:
        check_writable(save)
    if how.is_load and how.rounds is not None:
        raise ConfigError(
            "--runs counts rounds of single runs; with --callers and --duration the time counts",
            fix="leave --runs out, or those",
        )
    if how.is_load and how.energy:
        raise ConfigError("--energy is told of single runs", fix="leave --callers and --duration out, or --energy")
    parse_providers(providers)
    for policy in policies:
        open_placer(policy)  # what is wrong with one is said now, not after a minute of measuring
    cores = options.threads or available_cores()
    rivals = runtime_rivals(cores)
    deadline = Deadline(how.limit_s(len(rivals) + 1 + len(policies)), began_s=BEGAN_S.get())
    subject = prepare(
        model,
        inputs=inputs,
        shapes=shapes,
        seed=seed,
        cache_dir=options.cache_dir,
        batch=how.batch,
        screen=screen,
        bundles=True,
        providers=providers,
    )
    if subject.source.is_bundle and how.tunes:
        raise ConfigError(f"{model!r} is compiled: its plan is fixed", fix="tune when it is made: `parallax compile`")
    source = source_for(subject, providers, cores=cores) if how.energy else None
    with screen.progress() as progress:
        wait_s = min(WAIT_LIMIT_S, WAIT_SHARE * deadline.remaining_s)
        await_idle_cores(screen, progress, cores=cores, limit_s=wait_s)
        tunes = not subject.source.is_bundle if how.tunes is None else how.tunes
        session = _open_ours(subject, replace(options, tune=tunes, progress=progress), providers, deadline, screen)
        names = [entry.name for entry in session.get_outputs()]
        began = time.perf_counter()
        ours = dict(zip(names, subject.run(session), strict=True))
        ours_s = time.perf_counter() - began
        others = _open_policies(policies, subject, replace(options, tune=tunes, progress=progress), providers)
        opened = _open_rivals(rivals, subject, deadline.within(OPEN_SHARE), progress, run_s=ours_s, screen=screen)
        opened = replace(opened, running={**others, **opened.running}, order=(*others, *opened.order))
        calls = _callers(session, opened, subject, ours_s=ours_s, deadline=deadline)
        slowest_s = max([ours_s, *(rival.run_s for rival in opened.running.values())])
        timer, wanted = _make_rounds(calls, how, cores=cores, slowest_s=slowest_s, deadline=deadline)
        timed = deadline if source is None or not source.is_measured else deadline.within(1 - ENERGY_SHARE)
        measured = measure_rounds(timer, wanted=wanted, deadline=timed, progress=progress)
        metered: dict[str, RowEnergy] = {}
        if source is not None and source.is_measured:
            measured = _read_meters(source, calls, measured, deadline=deadline, rows=metered)
    if not measured.rounds:
        if measured.ended_by is End.INTERRUPT:
            raise KeyboardInterrupt
        raise ConfigError(
            f"--max-time {deadline.seconds:g} is too short: no round, in which each runs once, could be measured in it",
            fix=f"give --max-time {max(60, round(4 * deadline.elapsed_s))}, or --no-tune",
        )
    bench = Bench(
        subject=subject,
        session=session,
        rounds=measured.rounds,
        others_cores=measured.others_cores,
        disturbed=measured.disturbed,
        is_spoiled=measured.is_spoiled,
        ended_by=measured.ended_by,
        wanted=wanted,
        elapsed_s=deadline.elapsed_s,
        max_time_s=deadline.seconds,
        differences={
            label: compare_outputs(ours, dict(zip(names, rival.outputs, strict=True)))
            for label, rival in opened.running.items()
            if label in calls
        },
        failed=opened.failed,
        left_out=opened.left_out,
        policies={label: other.session.plan for label, other in others.items() if label in calls},
        cores=cores,
        callers=how.callers,
        is_load=how.is_load,
        batch=how.batch or 1,
        is_tuned=session.plan.provenance.source == "measured" and not session.plan.provenance.disturbed,
        energy=None
        if source is None
        else energy_of(
            source,
            metered,
            subject,
            measured.rounds,
            plans={OURS: session.plan, **{label: other.session.plan for label, other in others.items()}},
            threads={rival.label: rival.threads for rival in rivals},
            slim=options.slim,
        ),
    )
    report = describe_bench(bench)
    if save is not None:
        save.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    screen.show(report, lambda console: render_bench(report, console))
    _end(bench.differences, is_interrupted=measured.ended_by is End.INTERRUPT)


def _end(differences: Mapping[str, Difference], *, is_interrupted: bool) -> None:
    rivals = [difference for label, difference in differences.items() if not is_ours(label)]
    if rivals and not any(difference.within(TOLERANCE) for difference in rivals):
        say("error: outputs differ from ONNX Runtime's beyond tolerance; please report this model")
        raise typer.Exit(1)
    for label, difference in differences.items():
        if is_ours(label) and not difference.within(TOLERANCE):
            say(f"error: outputs of {label} differ from ours beyond tolerance; please report this model")
            raise typer.Exit(1)
    if is_interrupted:
        say("interrupted")
        raise typer.Exit(INTERRUPTED_EXIT)


# Opening ----------------------------------------------------------------------------------------------


class _OutOfTime(BaseException):
    """Ends the search for a plan from within its progress callback: not an Exception, which that one swallows."""


def _open_ours(
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
            f"the search for the best plan did not end within {limit.seconds:.0f} s: timed is the plan of a session "
            f"that is not tuned. `parallax tune {subject.source.label}` takes its time, and bench then uses its plan"
        )
        return subject.open(replace(options, tune=False), providers=providers)
    if session.plan.provenance.disturbed:
        screen.notice(f"tuning came to no conclusion: {session.plan.provenance.reason}")
    return session


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A rival that opens and runs, with what its first run gave."""

    session: onnxruntime.InferenceSession
    outputs: list[Any]
    run_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    running: dict[str, _Running] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """What the runtime said."""
    left_out: dict[str, str] = field(default_factory=dict)
    """For want of time, or of the model."""
    order: tuple[str, ...] = ()
    """Labels of all, those that matter most first."""


def _open_policies(
    policies: Sequence[str], subject: Subject, options: Options, providers: Sequence[str]
) -> dict[str, _Running]:
    """Sessions of ours with other policies, by label, each with its first run."""
    opened = {}
    for policy in policies:
        tune = options.tune and not is_yardstick(policy)
        session = subject.open(replace(options, policy=policy, tune=tune), providers=providers)
        began = time.perf_counter()
        outputs = subject.run(session)
        opened[f"{OURS}, {policy}"] = _Running(session=session, outputs=outputs, run_s=time.perf_counter() - began)
    return opened


def _open_rivals(
    rivals: Sequence[Rival],
    subject: Subject,
    deadline: Deadline,
    progress: ProgressCallback,
    *,
    run_s: float,
    screen: Screen,
) -> _Opened:
    """Sessions that open and run once, in the order of the rivals; those that matter most are opened first."""
    path: Path | None = subject.source.path
    if subject.source.is_bundle:
        path, why = find_original(read_bundle(subject.source.path, verify="never"))
        if path is None:
            screen.notice(f"nothing to compare with: {why}")
            return _Opened(left_out={rival.label: why for rival in rivals})
    by_importance = _by_importance(rivals)
    opened = _Opened(order=tuple(rival.label for rival in by_importance))
    longest_s = run_s
    for number, rival in enumerate(by_importance, start=1):
        if opened.running and deadline.remaining_s < longest_s:
            opened.left_out[rival.label] = "no time was left to open it"
            continue
        try:
            begun = time.perf_counter()
            session = rival.open(path or subject.source.path)
            began = time.perf_counter()
            outputs = session.run(None, subject.feeds)
            ended = time.perf_counter()
            opened.running[rival.label] = _Running(session=session, outputs=outputs, run_s=ended - began)
            longest_s = max(longest_s, ended - begun)
        except FOREIGN_EXCEPTIONS as error:
            opened.failed[rival.label] = " ".join(str(error).split())
        progress("opening ONNX Runtime", number, len(rivals))
    order = {rival.label: opened.running[rival.label] for rival in rivals if rival.label in opened.running}
    return replace(opened, running=order)


def _by_importance(rivals: Sequence[Rival]) -> list[Rival]:
    """What a session of ONNX Runtime is by default first, then one thread, the parallel mode, and the rest."""
    most = max(rival.threads for rival in rivals)

    def rank(rival: Rival) -> int:
        if rival.inter_op_threads is not None:
            return 2
        return {most: 0, 1: 1}.get(rival.threads, 3)

    return sorted(rivals, key=rank)


def _callers(
    session: InferenceSession, opened: _Opened, subject: Subject, *, ours_s: float, deadline: Deadline
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
    calls.update((label, _caller(rival.session, subject)) for label, rival in opened.running.items() if label in kept)
    return calls


def _caller(session: onnxruntime.InferenceSession, subject: Subject) -> Callable[[], object]:
    return lambda: session.run(None, subject.feeds)


# Measuring --------------------------------------------------------------------------------------------


def _make_rounds(
    calls: Mapping[str, Callable[[], object]], how: BenchPlan, *, cores: int, slowest_s: float, deadline: Deadline
) -> tuple[Rounds, int]:
    """What measures, and how many rounds of it are wanted."""
    if how.is_load:
        duration_s = how.duration_s or min(DEFAULT_DURATION_S, 0.8 * deadline.remaining_s / len(calls))
        turn_s = max(duration_s / TURNS, 0.01)
        return CallerRounds(calls, callers=how.callers, turn_s=turn_s, cores=cores), TURNS
    return InterleavedRounds(calls, cores=cores, is_brief=slowest_s >= BRIEF_RUN_S), how.rounds or DEFAULT_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured until the rounds, the time or the user's patience ended."""

    rounds: Sequence[Round]
    """That count: the undisturbed ones where these are enough for an interval, else all."""
    disturbed: int
    """Rounds during which other programs used the cores."""
    is_spoiled: bool
    """Whether disturbed rounds had to be counted."""
    others_cores: float
    """Of the cores, the most that other programs used in the rounds that count."""
    ended_by: End


def _read_meters(
    source: EnergySource,
    calls: Mapping[str, Callable[[], object]],
    measured: Measured,
    *,
    deadline: Deadline,
    rows: dict[str, RowEnergy],
) -> Measured:
    """Fill ``rows`` with what meters tell, unless the user stopped it, then or now; what was timed is handed on."""
    if measured.ended_by is End.INTERRUPT:
        return measured
    try:
        measure_rows(calls, source.meters, remaining_s=lambda: deadline.remaining_s, rows=rows)
    except KeyboardInterrupt:
        return replace(measured, ended_by=End.INTERRUPT)
    return measured


def measure_rounds(rounds: Rounds, *, wanted: int, deadline: Deadline, progress: ProgressCallback) -> Measured:
    """Measure until there are ``wanted`` undisturbed rounds, twice as many in all, or no time for another."""
    everything: list[Round] = []
    last_s = 0.0
    ended_by = End.ROUNDS
    try:
        while sum(not done.is_disturbed for done in everything) < wanted and len(everything) < 2 * wanted:
            if deadline.remaining_s <= last_s:
                ended_by = End.TIME
                break
            # Cores that a host has taken come back when they are waited for; those that others use do not.
            is_busy = bool(everything) and everything[-1].is_disturbed
            began = deadline.elapsed_s
            measured = rounds.measure(
                wait_s=_IMPATIENT_S if is_busy else _PATIENT_S, is_over=lambda: not deadline.remaining_s
            )
            if measured is None:
                ended_by = End.TIME
                break
            everything.append(measured)
            last_s = deadline.elapsed_s - began
            kept = sum(not done.is_disturbed for done in everything)
            if len(everything) - kept < wanted:
                progress("rounds", kept, wanted)
            else:
                progress("rounds (the machine is busy)", kept, wanted)
    except KeyboardInterrupt:
        ended_by = End.INTERRUPT
    if ended_by is End.ROUNDS and sum(not done.is_disturbed for done in everything) < wanted:
        ended_by = End.BUSY
    return counted(everything, ended_by)


def counted(everything: Sequence[Round], ended_by: End) -> Measured:
    """Of all rounds, those that count."""
    clean = [measured for measured in everything if not measured.is_disturbed]
    disturbed = len(everything) - len(clean)
    kept = clean if len(clean) >= LEAST_SAMPLES or not disturbed else list(everything)
    return Measured(
        rounds=kept,
        disturbed=disturbed,
        is_spoiled=len(kept) > len(clean),
        others_cores=max((measured.others_cores for measured in kept), default=0.0),
        ended_by=ended_by,
    )
