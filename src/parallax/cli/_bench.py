"""``parallax bench``: our session against plain ONNX Runtime on the same model and inputs, within a given time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from parallax.cli._baselines import runtime_baselines
from parallax.cli._bench_course import Course
from parallax.cli._bench_opening import callers, open_baselines, open_ours, open_policies
from parallax.cli._bench_report import OURS
from parallax.cli._bench_rounds import BenchPlan, End, measure_rounds
from parallax.cli._callers import CallerRounds
from parallax.cli._console import ProgressCallback, Screen
from parallax.cli._energy import ENERGY_SHARE, EnergySource, measure_rows, source_for
from parallax.cli._limit import Limit
from parallax.cli._open import Subject, check_writable, prepare
from parallax.cli._providers import parse_providers
from parallax.cli._quiet import Deadline, await_idle_cores
from parallax.cli._timing import InterleavedRounds, Rounds
from parallax.errors import ConfigError
from parallax.machine import available_cores
from parallax.options import Options
from parallax.planner import open_placer

DEFAULT_ROUNDS = 30
DEFAULT_DURATION_S = 5.0
"""For each, where several call at once and nothing else is said."""

TURNS = 10
"""Into which a duration is divided, so that all take turns."""

WAIT_SHARE, WAIT_LIMIT_S = 1 / 6, 10.0
"""So much of the time others' programs are waited for, before anything is measured."""

OPEN_SHARE = 0.5
"""ONNX Runtime's sessions may take this share of the time that is left after the search for a plan, to open; where it
is not enough, those that matter least are left out."""

BRIEF_RUN_S = 0.5
"""From a run of this length on, turns are their timed runs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What sessions of ours are opened with, beside their options."""

    providers: Sequence[str]
    policies: Sequence[str]
    """Of further sessions of ours that are timed."""


def bench_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    options: Options,
    how: BenchPlan,
    limit: Limit,
    seed: int,
    save: Path | None,
    providers: Sequence[str],
    policies: Sequence[str],
    screen: Screen,
) -> None:
    """Time ``model`` here and in plain ONNX Runtime, interleaved, and compare outputs.

    Exits with 1 where our outputs agree with no baseline's, or those of a policy not with ours, with 3 (and the runs
    that there were) where no round ended in time, and with 130 (and what is known by then) on Ctrl-C.

    Args:
        limit: the time limit of this command, which has begun.
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
    baselines = runtime_baselines(cores)
    limit.note_loaded(how.limit_s(len(baselines) + 1 + len(policies)))
    deadline = Deadline(limit.work_s, began_s=limit.began_s)
    course = Course(model=model, limit=limit, screen=screen, how=how, save=save, cores=cores, slims=options.slim)
    limit.conclude = lambda: course.conclude(End.TIME)
    limit.stage = f"{model} was read"
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
    course.subject = subject
    course.source = source_for(subject, providers, cores=cores) if how.energy else None
    with screen.progress() as progress:
        setting = Setting(providers=providers, policies=policies)
        ended_by = _measure(course, subject, options, setting, deadline, progress)
    if not course.rounds and ended_by is End.INTERRUPT:
        raise KeyboardInterrupt
    limit.take()
    raise typer.Exit(course.conclude(ended_by))


# Measuring --------------------------------------------------------------------------------------------


def _measure(
    course: Course, subject: Subject, options: Options, setting: Setting, deadline: Deadline, progress: ProgressCallback
) -> End:
    """Open all sessions and measure, keeping ``course`` up to date; returns what ended the measurement."""
    limit, screen = course.limit, course.screen
    limit.stage = "cores were waited for"
    wait_s = min(WAIT_LIMIT_S, WAIT_SHARE * deadline.remaining_s)
    course.others_cores = await_idle_cores(screen, progress, cores=course.cores, limit_s=wait_s)
    course.tunes = _tunes(course, subject)
    options = replace(options, tune=course.tunes, progress=progress)
    limit.stage = "the best plan was searched for" if options.tune else "the model was opened"
    session = course.session = open_ours(subject, options, setting.providers, deadline, screen)
    limit.stage = "all ran for the first time"
    began = time.perf_counter()
    course.ours = subject.run(session)
    ours_s = time.perf_counter() - began
    course.log(OURS, (1e9 * ours_s,))
    course.policies = open_policies(setting.policies, subject, options, setting.providers, course.opened)
    open_baselines(
        runtime_baselines(course.cores),
        subject,
        deadline.within(OPEN_SHARE),
        progress,
        run_s=ours_s,
        opened=course.opened,
        screen=screen,
    )
    course.calls = callers(session, course.opened, subject, ours_s=ours_s, deadline=deadline)
    course.opening_s = limit.elapsed_s
    limit.stage = "the first round was measured"
    slowest_s = max([ours_s, *(running.run_s for running in course.opened.running.values())])
    timer, course.wanted = _make_rounds(course, slowest_s=slowest_s, deadline=deadline)
    source = course.source
    if source is None or not source.is_measured:
        return measure_rounds(timer, course.rounds, wanted=course.wanted, deadline=deadline, progress=progress)
    timed = deadline.within(1 - ENERGY_SHARE)
    ended_by = measure_rounds(timer, course.rounds, wanted=course.wanted, deadline=timed, progress=progress)
    return ended_by if ended_by is End.INTERRUPT else _read_meters(course, source, deadline) or ended_by


def _tunes(course: Course, subject: Subject) -> bool:
    """Whether to search for the best plan: by default, unless other programs use the cores or the plan is fixed."""
    if course.how.tunes is not None:
        return course.how.tunes
    if subject.source.is_bundle:
        return False
    if not course.others_cores:
        return True
    course.screen.notice(
        f"other programs still use {course.others_cores:.1f} of {course.cores} cores, and would spoil the search for "
        f"the best plan: the plan of an untuned session is timed instead"
    )
    return False


def _make_rounds(course: Course, *, slowest_s: float, deadline: Deadline) -> tuple[Rounds, int]:
    """What measures, and how many rounds of it are wanted."""
    how, calls, cores = course.how, course.calls, course.cores
    if how.is_load:
        duration_s = how.duration_s or min(DEFAULT_DURATION_S, 0.8 * deadline.remaining_s / len(calls))
        turn_s = max(duration_s / TURNS, 0.01)
        return CallerRounds(calls, callers=how.callers, turn_s=turn_s, cores=cores, log=course.log), TURNS
    is_brief = slowest_s >= BRIEF_RUN_S
    return InterleavedRounds(calls, cores=cores, is_brief=is_brief, log=course.log), how.rounds or DEFAULT_ROUNDS


def _read_meters(course: Course, source: EnergySource, deadline: Deadline) -> End | None:
    """Read energy meters while all run; returns INTERRUPT if the user ended it, else None."""
    try:
        measure_rows(course.calls, source.meters, remaining_s=lambda: deadline.remaining_s, rows=course.metered)
    except KeyboardInterrupt:
        return End.INTERRUPT
    return None
