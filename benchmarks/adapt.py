"""Sessions that follow the machine, in real time: a device becomes slow, others take the cores, both, and back.

Each model runs in a session with ``adapt=True`` beside an emulated device, whose condition makes it four times slower
at stated times (its prices do not say so), and beside a competitor of real processes, four busy ones for each core, so
that fair scheduling leaves a fifth of the cores to the session. After each change the session runs on for some
seconds. Then, in the same state, static plans take turns in a process of their own: the whole model on all cores, half
of them and one, branches side by side, and the best placements for a grid of states, each compiled by a session that
follows nothing. The best of them is what ours is compared with. Devices are emulated, the processor's part and all
times are real.

A device that the plan in force does not use is seen by probes alone, every second where it was found slow: so "back"
cannot be noticed at once, and how long it took is told beside the verdict.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
from _common import (
    Report,
    add_model_arguments,
    describe_machine,
    in_child,
    make_parser,
    measure_as_child,
    ms,
    pick_models,
    publish,
    say,
)
from _figures import Figure, Verdict, counted
from _intervals import median_interval, rows_that_keep
from _orders import OrderedProcess
from _static_plans import PROFILE, SLOW, TOLERANCE, Call, block_s, device_in, session_options

import parallax
from parallax import zoo
from parallax.backends import open_backend
from parallax.cli import compare_outputs
from parallax.machine import free_memory_bytes, private_bytes

MODELS = ("mobilenetv3-s", "swin-t", "distilbert")
BUSY_PER_CORE = 4
"""Processes of the competitor."""

PREPARE_S = {"mobilenetv3-s": 40.0, "distilbert": 110.0}
MOST_PREPARE_S = 180.0
"""From the opening of the device until the first phase, by model, and for others: plans are made and compiled
meanwhile, and what following costs is measured."""

COST_S = 20.0
"""Of that, at most, to measure what following costs."""

PHASE_S = 40.0
FOLLOW_S, MOST_FOLLOW_S = 12.0, 24.0
"""Of a phase, in which the session runs; longer where runs are so long that too few have ended. Static plans have the
rest of it."""

BEFORE_S = 2.0
"""The session runs for so long before a phase begins, so that it is in use when the machine changes."""

SETTLE_RUNS, SETTLE_S = 20, 1.0
"""Within the longer of both, a session is to have followed a change."""

NEXT_RUNS = 20
COST_RUNS = 4
"""At least so many runs are timed in turn."""
COMPARE_S = 8.0
"""A session that has all its plans compares them once, with nothing slowed, for some seconds at most."""
FREE_SHARE = 4
"""Without a memory budget, plans that are kept ready take at most this part of what is free (`docs/adaptation.md`)."""
LEAST_RUNS = 10_000

WITHIN, NOMINAL_COST, STEADY_S = 1.10, 1.01, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A state of the machine, for some seconds."""

    name: str
    device: float = 1.0
    is_crowded: bool = False


PHASES = (
    Phase(name="calm"),
    Phase(name="device slow", device=SLOW),
    Phase(name="device back"),
    Phase(name="cores taken", is_crowded=True),
    Phase(name="cores back"),
    Phase(name="both", device=SLOW, is_crowded=True),
    Phase(name="both back"),
)


@dataclass(slots=True)
class Runs:
    """Runs of one session, each checked."""

    call: Call
    names: Sequence[str]
    wanted: Mapping[str, Any]
    done: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> tuple[float, float]:
        """One run: when it began, on the clock of `time.perf_counter`, and the seconds it took."""
        begin = time.perf_counter()
        try:
            made = self.call()
        except Exception as error:
            self.failed.append(repr(error))
            return begin, time.perf_counter() - begin
        took = time.perf_counter() - begin
        self.done += 1
        difference = compare_outputs(dict(zip(self.names, made, strict=True)), self.wanted)
        if not difference.within(TOLERANCE):
            self.wrong.append(f"run {self.done}: {difference.relative:.1e} {difference.detail}")
        return begin, took

    def run_until(self, end: float, *, least: int = 0, latest: float | None = None) -> list[tuple[float, float]]:
        """Runs one after the other until ``end``; until ``latest`` where they are fewer than ``least`` by then."""
        samples: list[tuple[float, float]] = []
        while (now := time.perf_counter()) < end or (len(samples) < least and latest is not None and now < latest):
            samples.append(self.run())
        return samples


class Competitor:
    """Busy processes, made beforehand, so that all take the cores at once; killed with the block."""

    def __init__(self) -> None:
        parent = os.getpid()
        spin = f"import os\ninput()\nwhile os.getppid() == {parent}:\n    sum(range(100_000))\n"
        self._cores = psutil.cpu_count() or 1
        self._started = [
            subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE)
            for _ in range(BUSY_PER_CORE * self._cores)
        ]
        self._watched = [psutil.Process(process.pid) for process in self._started]
        self._used_s = self._begin = 0.0

    def _cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._watched)

    def begin(self) -> None:
        """Have all take the cores from now on."""
        self._used_s, self._begin = self._cpu_s(), time.perf_counter()
        for process in self._started:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()

    def share(self) -> float:
        """The share of the cores that they took since."""
        return (self._cpu_s() - self._used_s) / max(1e-9, self._cores * (time.perf_counter() - self._begin))

    def end(self) -> None:
        """Kill them."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.communicate()


@contextmanager
def competitor(is_there: bool) -> Iterator[Competitor | None]:
    """One that ends with the block; it has not begun yet."""
    if not is_there:
        yield None
        return
    made = Competitor()
    try:
        yield made
    finally:
        made.end()


class StaticPlans:
    """A process with static plans (`_static_plans.py`), which ends with the block."""

    def __init__(self, name: str, *, threads: int, steps: Sequence[tuple[float, float]]) -> None:
        self._process = OrderedProcess("static plans", "_static_plans.py", name, str(threads), json.dumps(list(steps)))

    def __enter__(self) -> StaticPlans:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def labels(self) -> list[str]:
        """Of its plans, when all are ready. To be asked once, and first. Raises: RuntimeError if it has ended."""
        return list(self._process.read())

    def time_in_turn(self, until: float) -> dict[str, list[float]]:
        """See `_static_plans.time_in_turn`."""
        return dict(self._process.ask({"until": until}))

    def block_s(self) -> float:
        """See `_static_plans.block_s`: of the plan that a session opens with."""
        return float(self._process.ask({"block": COST_RUNS}))


def settled(samples: Sequence[tuple[float, float]], begin: float, best_s: float) -> dict[str, Any]:
    """What a session did after a change.

    Args:
        samples: its runs: when each began, and seconds that it took.
        begin: when the machine changed.
        best_s: median of the best static plan.
    """
    took = [seconds for at, seconds in samples if at >= begin]
    at = [moment - begin for moment, _ in samples if moment >= begin]
    late = next((number for number, moment in enumerate(at) if number >= SETTLE_RUNS and moment >= SETTLE_S), None)
    within = next(
        (
            at[number]
            for number in range(max(0, len(took) - NEXT_RUNS + 1))
            if statistics.median(took[number : number + NEXT_RUNS]) <= WITHIN * best_s
        ),
        None,
    )
    return {
        "next_s": [] if late is None else took[late : late + NEXT_RUNS],
        "within_after_s": within,
        "runs": len(took),
    }


def nominal_cost(ours: Runs, static: StaticPlans, *, rounds: int, end: float) -> list[float]:
    """Ratios of the session that follows to one that does not, round by round, in turn, each in its own process."""
    ratios: list[float] = []
    while len(ratios) < rounds and time.perf_counter() < end:
        if len(ratios) % 2:
            mine, theirs = block_s(ours.call, COST_RUNS), static.block_s()
        else:
            theirs, mine = static.block_s(), block_s(ours.call, COST_RUNS)
        ratios.append(mine / theirs)
    return ratios


def measure_model(name: str, *, runs: int, threads: int, folder: Path) -> dict[str, Any]:
    """All phases of one model. ``runs``: rounds in which the session in the nominal state is compared."""
    path, feeds = Path(zoo.load(name)), zoo.example_inputs(name)
    prepare_s = PREPARE_S.get(name, MOST_PREPARE_S)
    reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in reference.get_outputs()]
    wanted = dict(zip(names, reference.run(None, feeds), strict=True))
    del reference
    began = time.perf_counter()
    steps = [(began, 1.0)]
    steps += [(began + prepare_s + number * PHASE_S, phase.device) for number, phase in enumerate(PHASES)]
    device = device_in(folder, steps)
    # Held, so that the device is opened once, and its condition's time begins now.
    held = open_backend(device)
    options = session_options(path, feeds, device, threads)
    free = free_memory_bytes()
    session: Any = parallax.InferenceSession(path, adapt=True, **options)
    ours = Runs(call=lambda: session.run(None, feeds), names=names, wanted=wanted)
    ours.run()
    memory = [_private_mib()]
    while not (known := session.adaptation).is_complete:
        if known.ended is not None:
            raise SystemExit(f"{name}: {known.ended}")
        ours.run()
    ready_s = time.perf_counter() - began
    # Later: what a device costs is measured when a session is opened, when nothing else is to have the cores.
    with StaticPlans(name, threads=threads, steps=steps) as static:
        labels = static.labels()
        all_ready_s = time.perf_counter() - began
        say(f"{name}: {len(known.plans)} plans ready after {ready_s:.0f} s; {len(labels)} static plans")
        if all_ready_s > prepare_s - BEFORE_S - COST_S / 2 - COMPARE_S:
            raise SystemExit(f"{name}: all plans were ready after {all_ready_s:.0f} of {prepare_s:.0f} s, too late")
        ours.run_until(time.perf_counter() + COMPARE_S)  # in which a session compares its plans once
        last = min(time.perf_counter() + COST_S, began + prepare_s - BEFORE_S - 1)
        ratios = nominal_cost(ours, static, rounds=runs, end=last)
        memory.append(_private_mib())
        phases = []
        for number, phase in enumerate(PHASES):
            begin = began + prepare_s + number * PHASE_S
            phases.append(measure_phase(phase, begin, ours=ours, session=session, static=static))
            memory.append(_private_mib())
    del held
    return {
        "model": name,
        "ready_after_s": ready_s,
        "calm_ratios": ratios,
        "phases": phases,
        "runs": ours.done,
        "failed": ours.failed[:20],
        "wrong": ours.wrong[:20],
        "failures": len(ours.failed),
        "wrongs": len(ours.wrong),
        "private_mib": memory,
        "allowed_mib": free / 2**20 / FREE_SHARE,
        "log": str(session.adaptation),
    }


def measure_phase(phase: Phase, begin: float, *, ours: Runs, session: Any, static: StaticPlans) -> dict[str, Any]:
    """One state of the machine, from ``begin`` on the clock of `time.perf_counter`."""
    with competitor(phase.is_crowded) as others:
        time.sleep(max(0.0, begin - BEFORE_S - time.perf_counter()))
        before = ours.run_until(begin)
        if others is not None:
            others.begin()
        samples = ours.run_until(begin + FOLLOW_S, least=SETTLE_RUNS + NEXT_RUNS + 2, latest=begin + MOST_FOLLOW_S)
        followed = time.perf_counter()
        taken = static.time_in_turn(begin + PHASE_S - BEFORE_S - 2)
        took_share = 0.0 if others is None else others.share()
    medians = {label: statistics.median(seconds) for label, seconds in taken.items() if seconds}
    best = min(medians, key=lambda label: medians[label])
    found = settled([*before, *samples], begin, medians[best])
    steady = (begin + STEADY_S, followed)
    switches = [switch for switch in session.adaptation.switches if steady[0] <= switch.at_s < steady[1]]
    say(f"  {phase.name}: best is {best}, {medians[best] * 1e3:.1f} ms; runs {found['runs']}")
    return {
        **asdict(phase),
        **found,
        "best": best,
        "best_s": medians[best],
        "best_interval_s": median_interval(taken[best]),
        "static_medians_s": medians,
        "competitor_share": took_share,
        "steady_switches": len(switches),
        "steady_s": steady[1] - steady[0],
        "adaptation": session.adaptation.to_json(),
    }


def _private_mib() -> float:
    return (private_bytes() or 0) / 2**20


# -- the report -------------------------------------------------------------------------------------------------------


def ratio_figure(model: str, phase: Mapping[str, Any]) -> Figure:
    """Ours after a change, against the best static plan of that state."""
    next_s, best = phase["next_s"], phase["best_interval_s"]
    ours = median_interval(next_s)
    value = statistics.median(next_s) / phase["best_s"] if next_s else float("nan")
    after = phase["within_after_s"]
    return Figure(
        name=f"adapt.{model}.{phase['name'].replace(' ', '_')}",
        what=f"{model}, {phase['name']} (emulated device): the {NEXT_RUNS} runs after {SETTLE_RUNS} runs and "
        f"{SETTLE_S:.0f} s, against the best static plan",
        value=value,
        unit="ratio",
        interval=None if ours is None or best is None else (ours[0] / best[1], ours[1] / best[0]),
        bound=WITHIN,
        note=f"best: {phase['best']}; within the bound after {'-' if after is None else f'{after:.1f} s'}",
        headline=False,
    )


def make_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """All of them; "back" is told apart, since a device that is not used is seen by probes alone."""
    changes = {
        f"{result['model']}, {phase['name']}": ratio_figure(result["model"], phase)
        for result in results
        for phase in result["phases"]
    }
    away = {name: figure for name, figure in changes.items() if not name.endswith("back")}
    back = {name: figure for name, figure in changes.items() if name.endswith("back")}
    steady = [
        phase["steady_switches"] * STEADY_S / phase["steady_s"] for result in results for phase in result["phases"]
    ]
    ratios = [ratio for result in results for ratio in result["calm_ratios"]]
    held = max((max(result["private_mib"]) - result["private_mib"][0]) / result["allowed_mib"] for result in results)
    figures = [
        rows_that_keep("adapt.away", f"states followed within {WITHIN:.2f} of the best static plan", away),
        rows_that_keep("adapt.back", "the same, back to a calm machine", back),
        Figure(
            name="adapt.calm_cost",
            what="a session that follows the machine against one that does not, all calm",
            value=statistics.median(ratios) if ratios else float("nan"),
            unit="ratio",
            interval=median_interval(ratios),
            bound=NOMINAL_COST,
        ),
        Figure(
            name="adapt.steady",
            what=f"switches per {STEADY_S:.0f} s in a steady state, the most of all states",
            value=max(steady),
            unit="ratio",
            interval=(max(steady), max(steady)),
            bound=1.0,
            headline=False,
        ),
        counted(
            "adapt.runs",
            "runs while plans changed",
            sum(result["runs"] for result in results),
            bound=LEAST_RUNS,
            at_least=True,
            headline=False,
        ),
        counted("adapt.failed", "of these: failed", sum(result["failures"] for result in results), bound=0),
        counted("adapt.wrong", "of these: wrong", sum(result["wrongs"] for result in results), bound=0),
        Figure(
            name="adapt.memory",
            what="private memory that following adds, relative to the quarter of what was free that it may take, the "
            "most of all models",
            value=held,
            unit="ratio",
            interval=(held, held),
            bound=1.0,
            headline=False,
        ),
    ]
    return [*figures, *changes.values()]


def make_report(results: Sequence[dict[str, Any]]) -> Report:
    failed = [result for result in results if "failed" in result and "phases" not in result]
    measured = [result for result in results if "phases" in result]
    if not measured:
        raise SystemExit("nothing was measured: " + "; ".join(f"{row['model']}: {row['failed']}" for row in failed))
    rows = []
    for result in measured:
        for phase in result["phases"]:
            figure = ratio_figure(result["model"], phase)
            after = phase["within_after_s"]
            rows.append(
                [
                    result["model"],
                    phase["name"],
                    phase["best"],
                    ms(phase["best_s"] * 1e9),
                    "-" if not phase["next_s"] else ms(statistics.median(phase["next_s"]) * 1e9),
                    "-" if figure.verdict is Verdict.NO_BOUND else f"{figure.value:.3f} ({figure.verdict})",
                    "-" if after is None else f"{after:.1f} s",
                    f"{phase['competitor_share']:.0%}" if phase["is_crowded"] else "-",
                    str(phase["steady_switches"]),
                ]
            )
    return Report(
        title="Sessions that follow the machine, on an emulated device, in real time",
        method=(
            f"Milliseconds. The device is {PROFILE}, emulated, {SLOW:g} times slower where the state says so; others "
            f"take the cores by {BUSY_PER_CORE} busy processes for each. Each state lasts {PHASE_S:.0f} s, of which "
            f"the session runs for {FOLLOW_S:.0f}, or up to {MOST_FOLLOW_S:.0f} where runs are long."
        ),
        columns=[
            "model", "state", "best static plan", "its time", "ours", "ratio", "within the bound after",
            "share that others took", "switches while steady",
        ],
        rows=rows,
        data={"results": list(results)},
        figures=make_figures(measured),
        remarks=[
            "a device that is not used is looked at by probes alone, every second where it was found slow: that sets "
            "how soon it is gone back to",
            "without stored plans the criterion is five seconds: here they are always stored, made in the background "
            "within " + ", ".join(f"{result['ready_after_s']:.0f} s ({result['model']})" for result in measured),
            *(f"{row['model']} was not measured: {row['failed']}" for row in failed),
        ],
    )  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, "adapt")
    add_model_arguments(parser, groups="paper, all")
    parser.set_defaults(models=list(MODELS))
    arguments = parser.parse_args()
    if arguments.one:
        measure_as_child(measure_model, arguments)
        return
    machine = describe_machine()
    results = [
        in_child(__file__, name, runs=arguments.runs, threads=arguments.threads)
        for name in pick_models(arguments.models)
    ]
    publish(make_report(results), arguments.output, machine)


if __name__ == "__main__":
    main()
