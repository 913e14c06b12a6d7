"""One model on one emulated phone, in this process: the tuned session, and what it is compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import dump_timing, open_inputs, say
from _paper import converted
from _phones import DEFAULT_PARTITIONS, Study
from _turns import time_in_turn
from onnxruntime.capi import onnxruntime_pybind11_state as C

import parallax
from parallax import zoo
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._profiles import load_profile
from parallax.backends.ort import CPU_DEVICE, RuntimeOptions
from parallax.cli import Baseline
from parallax.engine import Executor, compile_plan, lane_pool
from parallax.engine._compile import Delegation, compile_segment
from parallax.graph import Work, operator_work
from parallax.model import Model, load_model
from parallax.partition.regions import RegionPlan, RegionRule
from parallax.partition.regions._hosted import hosted_tensors
from parallax.planner import PlanningContext, planned_model
from parallax.planner._candidates import host_machine
from parallax.planner._devices import DeviceStudy
from parallax.planner._measuring import KEEP_RATIO
from parallax.profile import Cache, estimate_costs, measure_costs
from parallax.schedule import Candidate, Plan

CPU, GREEDY, DEFAULT = "CPU alone", "greedy", "TFLite's default"
OURS, WITHOUT = "ours", "ours, no rows shared"
LABELS = (CPU, GREEDY, DEFAULT, OURS, WITHOUT)

TRIAL_ROUNDS = 7
"""Of their own, in which the better of CPU and greedy, and ONNX Runtime's best set-up, are found."""

TOLERANCE = 1e-4
"""Of an output's largest magnitude, against ONNX Runtime's own."""

Call = Callable[[], Sequence[Any]]


def measure_row(name: str, phone: str, *, rounds: int, cores: int, cache: Path) -> dict[str, Any]:
    """Timings by label, what the trial found better, and what tuning kept."""
    path, feeds = Path(zoo.load(name)), zoo.example_inputs(name)
    with tempfile.TemporaryDirectory() as folder:
        file, shapes = Path(folder) / "converted.onnx", open_inputs(path, feeds)
        onnx.save(converted(path, shapes), file)
        model = load_model(file)
        session = parallax.InferenceSession(
            path,
            shapes=shapes,
            threads=cores,
            tune=True,
            calibration=feeds,
            providers=[f"emulated:{phone}", "CPUExecutionProvider"],
            cache_dir=cache,
        )
        outputs = [info.name for info in model.graph.outputs]
        cpu = quickest_cpu(path, feeds, outputs, cores=cores)
        reference = cpu()
        backend = EmulatedBackend(load_profile(phone))
        calls: dict[str, Call] = {CPU: cpu, OURS: partial(session.run, outputs, feeds)}
        calls |= delegations(model, backend, feeds, outputs, cores=cores)
        kept = candidate_without_rows(session.plan)
        own = load_model(path, shapes=shapes)
        calls[WITHOUT] = call_without_rows(session.plan, kept, own, backend, feeds, calls, cores=cores, cache=cache)
        for label, call in calls.items():
            check(label, outputs, call(), reference)
        distinct = {label: call for label, call in calls.items() if not is_repeated(label, calls)}
        say(f"  trial and {rounds} rounds")
        trial = time_in_turn({label: distinct[label] for label in (CPU, GREEDY)}, rounds=TRIAL_ROUNDS, cores=cores)
        timings = time_in_turn(distinct, rounds=rounds, cores=cores)
    repeated = {label: timings[first_of(call, distinct)] for label, call in calls.items()}
    return {
        "speed": backend.speed,
        "better": min(trial.values(), key=lambda timing: timing.median_ns).label,
        "kept": session.plan.provenance.reason,
        "kept_without": kept.label if session.plan.rows_permille is not None else "the same",
        "rows_permille": session.plan.rows_permille,
        "disturbed": session.plan.provenance.is_noisy,
        "segments": len(session.plan.segments),
        "trial": {label: dump_timing(timing) for label, timing in trial.items()},
        "timings": {label: dump_timing(repeated[label]) for label in LABELS},
    }


def quickest_cpu(path: Path, feeds: Mapping[str, Any], outputs: Sequence[str], *, cores: int) -> Call:
    """ONNX Runtime on the model as it is: on all cores or on one, whichever a few rounds find quicker."""
    baselines = [Baseline(label=f"{threads} threads", threads=threads) for threads in sorted({1, cores})]
    calls: dict[str, Call] = {
        baseline.label: partial(baseline.open(path).run, outputs, feeds) for baseline in baselines
    }
    found = time_in_turn(calls, rounds=3, cores=cores)
    return calls[min(found.values(), key=lambda timing: timing.median_ns).label]


def delegations(
    model: Model, backend: EmulatedBackend, feeds: Mapping[str, Any], outputs: Sequence[str], *, cores: int
) -> dict[str, Call]:
    """Greedy delegation, and TFLite's default of it: the same where that is all of it."""
    study = Study.of(model, estimate_costs(model.inferred(), cores=cores), backend, host_machine(cores))
    greedy = study.regions(RegionRule.GREEDY)
    calls = {GREEDY: as_call(hosted_executor(study, greedy), feeds, outputs)}
    partitions = DEFAULT_PARTITIONS[backend.profile.coverage.name]
    calls[DEFAULT] = calls[GREEDY]
    if len(greedy.regions) > partitions:
        calls[DEFAULT] = as_call(hosted_executor(study, study.largest(greedy, partitions)), feeds, outputs)
    return calls


def hosted_executor(study: Study, plan: RegionPlan) -> Executor:
    """Delegation as runtimes do it: in sequence, every tensor of a region through the host's memory."""
    tasks, schedule = study.sequential(plan)
    made = study.plan(tasks, schedule)
    crossing = hosted_tensors(study.graph, plan)
    folded = study.folded(plan)
    segments = []
    for segment, region in zip(made.segments, tasks.region_of, strict=True):
        delegation = None
        if region is not None:
            nodes = [study.graph.nodes[index] for index in plan.regions[region].nodes]
            work = Work(
                operators=tuple(operator_work(study.graph, node) for node in nodes if node.index not in folded),
                moved_bytes=tuple(map(study.size, crossing[region])),
            )
            delegation = Delegation(backend=study.backend, work=work)
        segments.append(compile_segment(study.model, segment, RuntimeOptions(), delegation))
    return Executor(
        made,
        segments,
        inputs=[info.name for info in study.graph.inputs],
        outputs=[info.name for info in study.graph.outputs],
        pool=lane_pool(),
    )


def candidate_without_rows(plan: Plan) -> Candidate:
    """What tuning would have kept if no rows were shared: the quickest other one that clearly beats the CPU alone."""
    found = [entry for entry in plan.provenance.candidates if entry.measured_ns is not None]
    whole, *others = [entry for entry in found if not entry.label.startswith("rows shared")]
    best = min(others, key=lambda entry: entry.measured_ns or 0, default=whole)
    return best if (best.measured_ns or 0) <= KEEP_RATIO * (whole.measured_ns or 0) else whole


def call_without_rows(
    plan: Plan,
    kept: Candidate,
    model: Model,
    backend: EmulatedBackend,
    feeds: Mapping[str, Any],
    calls: Mapping[str, Call],
    *,
    cores: int,
    cache: Path,
) -> Call:
    """That candidate, made again from the costs that tuning measured; the session itself where it shares no rows.

    ``model``: in the shapes that the plan is for.

    Splits of the CPU's part alone are taken as the CPU alone: tuning has never kept one for these models.
    """
    if plan.rows_permille is None:
        return calls[OURS]
    model = planned_model(model, replace(plan, rows_permille=None, rows_shapes=(), rows_rounds=1))
    widths = sorted({1, *(2**k for k in range(1, cores.bit_length()) if 2**k < cores), cores})
    costs = measure_costs(model, widths=widths, feeds=dict(feeds), cache=Cache(cache))
    study = DeviceStudy(PlanningContext(model, cores=cores, costs=costs), backend)
    made = [found for found in (study.greedy, study.best, study.in_sequence) if found is not None]
    for found in made:
        if found.label == kept.label:
            backends = {backend.info.name: backend}
            executor = compile_plan(model, found.plan, RuntimeOptions(), backends=backends)
            return as_call(executor, feeds, [info.name for info in model.graph.outputs])
    return calls[CPU]


def as_call(executor: Executor, feeds: Mapping[str, Any], outputs: Sequence[str]) -> Call:
    """A call that returns arrays, as a session's does."""
    values = {key: C.OrtValue.ortvalue_from_numpy(value, CPU_DEVICE) for key, value in feeds.items()}
    names = list(outputs)
    return lambda: [value.numpy() for value in executor.run(values, names)]


def check(label: str, names: Sequence[str], found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Raises: SystemExit where an output is not ONNX Runtime's."""
    for name, got, want in zip(names, found, expected, strict=True):
        limit = TOLERANCE * max(1e-9, float(np.abs(want).max()))
        error = float(np.abs(got.astype(np.float64) - want).max())
        if not error <= limit:
            raise SystemExit(f"{label}: {name} differs from ONNX Runtime's by {error}, where {limit} is allowed")


def is_repeated(label: str, calls: Mapping[str, Call]) -> bool:
    """Whether an earlier label stands for the same call."""
    return first_of(calls[label], calls) != label


def first_of(call: Call, calls: Mapping[str, Call]) -> str:
    """The first label of a call."""
    return next(label for label, other in calls.items() if other is call)
