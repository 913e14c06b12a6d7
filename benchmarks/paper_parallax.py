"""The Parallax paper's models (arXiv 2512.11532) on emulated phones, simulated and in real time.

For each of five models and three phones: CPU only; greedy delegation with sequential fallback, as today's runtimes do
it; the paper's thresholds; HEFT over whole regions, as onert and Band schedule them; regions beside the CPU; and those
on a model whose rows are shared between both sides.

Simulated: operators are priced on four equal cores that together are as fast as the phone's processor, accelerators by
the phone's profile, and what runs at the same time is decided by the dispatcher that the engine runs. In real time
(``--runs`` above 0): the CPU's segments run on this machine's cores, the accelerator's take the time that the profile
gives them, scaled by how much faster this machine's processor is than the phone's.
Models are taken as a delegate's converter leaves them: shapes fixed, constants computed.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from _common import Report, describe_machine, dump_timing, make_parser, ms, open_inputs, publish, say
from _phones import DEFAULT_PARTITIONS, Split, Study, best_split
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax import zoo
from parallax.cli import Timing, ratio, time_interleaved
from parallax.device import DeviceProfile, EmulatedBackend, OperatorWork, Work, available_cores, load_profile
from parallax.engine import (
    CPU_DEVICE,
    Delegation,
    Executor,
    RuntimeOptions,
    compile_plan,
    compile_segment,
    lane_pool,
)
from parallax.model import Model, OpGraph, RowSplit, load_model
from parallax.partition import RegionPlan, RegionRule, UnitGraph, find_branches, find_regions, hosted_tensors
from parallax.profile import CostModel, estimate_costs, measure_costs, node_work
from parallax.schedule import Machine, Schedule
from parallax.session import host_machine

MODELS = ("yolov8n", "whisper-tiny-encoder", "swinv2-t", "clip-text", "distilbert")
PHONES = ("pixel-6-gpu", "p30-pro-gpu", "redmi-k50-gpu")

CORES = 4
"""Equal cores that stand for the phone's eight unequal ones; together they are as fast."""

HANDOVER_NS = 30_000
SEGMENT_OVERHEAD_NS = 10_000
PHONE = Machine(cores=CORES, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
"""A hand-over between lanes on a phone, and the start of a segment: of the order of 20 to 60 us for fork and join."""

HOST_HANDOVER_NS, HOST_OVERHEAD_NS = 30_000, 40_000
"""The same of this machine, as traced: a short segment costs some tens of microseconds more than its kernels."""

TOLERANCE = 1e-4
"""Of an output's largest magnitude, against ONNX Runtime's own."""

RIVALS = ("CPU only", "greedy", "HEFT", "greedy-kept", "in sequence", "regions", "rows")
OURS = ("CPU only", "greedy-kept", "in sequence", "regions", "rows")
"""What tuning chooses among: the CPU alone, all that the device takes, regions that pay one after the other, and those
beside the CPU's part."""

KEEP_RATIO = 0.98
"""What does not take less than this of the CPU's time is not kept: a trial cannot tell it from the CPU alone."""

FLIPS = 128
"""Branches that the search may move to the other side, one by one."""

PAPER_MS: Mapping[tuple[str, str], tuple[int | None, ...]] = {
    ("yolov8n", "pixel-6-gpu"): (77, None, 63, 54),
    ("whisper-tiny-encoder", "pixel-6-gpu"): (397, 486, 350, 323),
    ("swinv2-t", "pixel-6-gpu"): (82, 1107, 64, 69),
    ("clip-text", "pixel-6-gpu"): (13, 15, 11, None),
    ("distilbert", "pixel-6-gpu"): (14, 19, 17, None),
    ("yolov8n", "p30-pro-gpu"): (127, None, 101, 91),
    ("whisper-tiny-encoder", "p30-pro-gpu"): (412, None, 340, None),
    ("swinv2-t", "p30-pro-gpu"): (128, 987, 109, 107),
    ("clip-text", "p30-pro-gpu"): (17, None, 15, None),
    ("distilbert", "p30-pro-gpu"): (17, None, 14, None),
    ("yolov8n", "redmi-k50-gpu"): (98, None, 91, 84),
    ("whisper-tiny-encoder", "redmi-k50-gpu"): (496, 634, 317, None),
    ("swinv2-t", "redmi-k50-gpu"): (83, 1046, 54, 53),
    ("clip-text", "redmi-k50-gpu"): (16, 14, 16, None),
    ("distilbert", "redmi-k50-gpu"): (15, 38, 17, None),
}
"""The paper's latencies in ms, the lower of the two it gives: the best of ONNX Runtime, ExecuTorch and TFLite on the
CPU, the better of ONNX Runtime and TFLite with an accelerator, Parallax on the CPU, and with an accelerator."""

PAPER_SHAPES: Mapping[str, str] = {
    "yolov8n": "480/120/69/6 > 5/6/2/2 > 4/4/1/2",
    "whisper-tiny-encoder": "627/75/19/8 > 202/184/10/5 > 367/57/24/8",
    "swinv2-t": "1108/151/92/8 > 356/270/28/8 > 674/143/52/8",
    "clip-text": "635/90/53/4 > 216/173/19/3 > 446/74/49/4",
    "distilbert": "353/53/28/4 > 123/115/23/2 > 211/49/17/4",
}
"""The paper's graphs: as they are, after greedy delegation, after Parallax; for Pixel 6."""

MEAN_GOAL, BEST_GOAL = 0.30, 0.50
"""Reduction against greedy delegation that the project promises: mean over the table, and the best row."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A graph as the paper's table counts it."""

    nodes: int
    layers: int
    parallel_layers: int
    branches: int

    def __str__(self) -> str:
        return f"{self.nodes}/{self.layers}/{self.parallel_layers}/{self.branches}"


def phone_costs(graph: OpGraph, profile: DeviceProfile) -> CostModel:
    """The tables' durations, at the speed of the phone's processor."""
    table = estimate_costs(graph, cores=CORES)
    factor = TABLE_GEMM_FLOPS / profile.cpu_gemm_flops
    rows = tuple(tuple(round(ns * factor) for ns in row) for row in table.durations_ns)
    return dataclasses.replace(table, durations_ns=rows)


def _table_gemm_flops() -> float:
    """What the tables take a large matrix product to run at on that many cores, by asking them."""
    from onnx import helper

    size = 2048
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info(name, 1, [size, size]) for name in ("a", "b")],
        [helper.make_tensor_value_info("c", 1, [size, size])],
    )
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    (duration,) = estimate_costs(model.inferred(), cores=CORES).node_ns(CORES)
    return 2 * size**3 / duration * 1e9


TABLE_GEMM_FLOPS = _table_gemm_flops()


def converted(path: Path, shapes: Mapping[str, Sequence[int]] | None) -> Model:
    """The model as a delegate's converter leaves it: shapes fixed, everything constant computed, nothing fused.

    ONNX Runtime's basic optimisations do that, and they are the same whatever runs the model.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        fixed, folded = Path(folder) / "fixed.onnx", Path(folder) / "folded.onnx"
        model = onnx.load(path)
        for value in model.graph.input:
            for axis, size in enumerate((shapes or {}).get(value.name, ())):
                value.type.tensor_type.shape.dim[axis].dim_value = size
        onnx.save(model, fixed)
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(fixed), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    # The runtime names what it computes; when it optimises parts of this model, it would choose the same names again.
    names = {tensor.name: f"constant_{number}" for number, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return load_model(model)


def shape_of(units: UnitGraph, plan: RegionPlan | None) -> Shape:
    """Nodes, layers, layers of more than one branch, widest layer; with regions contracted."""
    dag = units.dag if plan is None else plan.dag
    regions = frozenset() if plan is None else frozenset(plan.region_groups)
    flow = units.control_flow if plan is None else {plan.group_of[unit] for unit in units.control_flow}
    found = find_branches(dag, control_flow=flow, regions=regions)
    return Shape(
        nodes=len(dag), layers=len(found.layers), parallel_layers=found.parallel_layers, branches=found.max_branches
    )


def simulated(study: Study, name: str, phone: str, split: Split | None) -> dict[str, Any]:
    """The simulated half of a row."""
    greedy = study.regions(RegionRule.GREEDY)
    partitions = DEFAULT_PARTITIONS[study.backend.profile.coverage.name]
    found = study.coexecution(flips=FLIPS)
    best = found.best
    _, _, heft_ns = study.heft(greedy)
    sequential = find_regions(study.graph, study.units, study.offer, join_siblings=True)
    by_rows = None if split is None else split.found.best
    ours = best if by_rows is None or best.makespan_ns <= by_rows.makespan_ns else by_rows
    refused: dict[str, int] = {}
    for verdict in greedy.verdicts:
        if verdict.verdict.is_refusal:
            refused[verdict.verdict.name] = refused.get(verdict.verdict.name, 0) + 1
    return {
        "model": name,
        "phone": phone,
        "nodes": len(study.graph.nodes),
        "refused": refused,
        "cpu_only_ns": found.cpu_only_ns,
        "cpu_branches_ns": found.tried[0][1],
        "greedy_ns": study.hosted_ns(greedy),
        "greedy_kept_ns": greedy.chosen_ns,
        "greedy_default_ns": study.hosted_ns(study.largest(greedy, partitions)),
        "paper_rule_ns": study.regions(RegionRule.PAPER).chosen_ns,
        "regions_in_sequence_ns": sequential.chosen_ns,
        "heft_ns": heft_ns,
        "regions_ns": best.makespan_ns,
        "regions_label": best.label,
        "rows_ns": None if by_rows is None else by_rows.makespan_ns,
        "rows_share": None if split is None else split.share,
        "ours_ns": ours.makespan_ns,
        "ours_label": ours.label,
        "ours_regions": len(ours.plan.regions),
        "ours_segments": len(ours.tasks.tasks),
        "ours_device_ns": sum(region.device_ns for region in ours.plan.regions),
        "fragments": len(greedy.regions),
        "transfers_before": dataclasses.asdict(greedy.before),
        "transfers_after": dataclasses.asdict(ours.plan.after),
        "shape_original": str(shape_of(study.units, None)),
        "shape_greedy": str(shape_of(study.units, greedy)),
        "shape_regions": str(shape_of(study.units, best.plan)),
        "reason": best.plan.reason,
        "paper_ms": PAPER_MS.get((name, phone)),
        "paper_shapes": PAPER_SHAPES.get(name) if phone == "pixel-6-gpu" else None,
    }


def hosted_executor(study: Study, plan: RegionPlan) -> Executor:
    """Greedy delegation as runtimes do it: in sequence, every tensor of a region through the host's memory."""
    tasks, schedule = study.sequential(plan)
    made = study.plan(tasks, schedule)
    crossing = hosted_tensors(study.graph, plan)
    segments = []
    for segment, region in zip(made.segments, tasks.region_of, strict=True):
        delegation = None
        if region is not None:
            works = [(node.op_type, node_work(study.graph, node))
                     for node in (study.graph.nodes[index] for index in plan.regions[region].nodes)
                     if node.index not in study.folded(plan)]  # fmt: skip
            work = Work(
                operators=tuple(
                    OperatorWork(op_type=op_type, flops=entry.flops or 0, touched_bytes=entry.bytes or 0)
                    for op_type, entry in works
                ),
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


def planned_executor(study: Study, tasks: Any, schedule: Schedule) -> Executor:
    """A placement, compiled."""
    backends = {study.backend.info.name: study.backend}
    return compile_plan(study.model, study.plan(tasks, schedule), RuntimeOptions(), backends=backends)


class Rivals:
    """Calls to time, all of which gave ONNX Runtime's results."""

    def __init__(self, feeds: Mapping[str, np.ndarray], names: Sequence[str], expected: Sequence[np.ndarray]) -> None:
        self.values = {key: C.OrtValue.ortvalue_from_numpy(value, CPU_DEVICE) for key, value in feeds.items()}
        self.names = list(names)
        self.expected = expected
        self.calls: dict[str, Callable[[], object]] = {}

    def add(self, label: str, executor: Executor) -> None:
        """Run it once, compare, and have it timed."""

        def call() -> list[Any]:
            return executor.run(self.values, self.names)

        for name, found, expected in zip(self.names, call(), self.expected, strict=True):
            limit = TOLERANCE * max(1e-9, float(np.abs(expected).max()))
            error = float(np.abs(found.numpy().astype(np.float64) - expected).max())
            if not error <= limit:
                raise SystemExit(f"{label}: {name} differs from ONNX Runtime's by {error}, where {limit} is allowed")
        self.calls[label] = call


def measured(path: Path, model: Model, costs: CostModel, phone: str, *, runs: int, cores: int, feeds: Any) -> Any:
    """The measured half of a row: (timings by label, what ours is)."""
    machine = replace(host_machine(cores), handover_ns=HOST_HANDOVER_NS, segment_overhead_ns=HOST_OVERHEAD_NS)
    backend = EmulatedBackend(load_profile(phone))
    study = Study.of(model, costs, backend, machine)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    uncut = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rivals = Rivals(feeds, [info.name for info in model.graph.outputs], uncut.run(None, feeds))
    rivals.calls["CPU only"] = lambda: uncut.run(None, feeds)
    greedy = study.regions(RegionRule.GREEDY)
    rivals.add("greedy", hosted_executor(study, greedy))
    tasks, schedule, _ = study.heft(greedy)
    rivals.add("HEFT", planned_executor(study, tasks, schedule))
    predicted = {"CPU only": sum(costs.node_ns(cores)), "greedy": study.hosted_ns(greedy)}
    if greedy.regions:
        predicted["greedy-kept"] = greedy.chosen_ns
        rivals.add("greedy-kept", planned_executor(study, *study.sequential(greedy)))
    in_sequence = find_regions(study.graph, study.units, study.offer, join_siblings=True)
    if in_sequence.regions:
        predicted["in sequence"] = in_sequence.chosen_ns
        rivals.add("in sequence", planned_executor(study, *study.sequential(in_sequence)))
    regions = study.coexecution(flips=FLIPS).best
    predicted["regions"] = regions.makespan_ns
    if regions.plan.regions:
        rivals.add("regions", planned_executor(study, regions.tasks, regions.schedule))
    # What half an operator takes is not half of what it takes, so that each split is measured.
    widths = sorted({1, cores})
    split = best_split(
        study,
        lambda made: measure_costs(made.model, widths=widths, feeds=feeds),
        flips=FLIPS,
        shares=(0.75, 1.0, 1.25),
    )
    if split is not None and split.found.best.plan.regions:
        predicted["rows"] = split.found.best.makespan_ns
        rivals.add("rows", planned_executor(split.study, split.found.best.tasks, split.found.best.schedule))
    # As tuning does: what was measured quickest is kept, here by rounds of their own, and then timed anew.
    ours = {label: rivals.calls[label] for label in OURS if label in rivals.calls}
    trial = time_interleaved(ours, rounds=runs, cores=cores)
    kept = min(trial.values(), key=lambda timing: timing.median_ns).label
    if ratio(trial[kept], trial["CPU only"]).median > KEEP_RATIO:
        kept = "CPU only"
    timings = time_interleaved(rivals.calls, rounds=runs, cores=cores)
    return timings, kept, predicted


def measured_columns(timings: Mapping[str, Timing], kept: str, predicted: Mapping[str, int]) -> dict[str, Any]:
    ours, greedy, alone = timings[kept], timings["greedy"], timings["CPU only"]
    return {
        "timings": {label: dump_timing(timing) for label, timing in timings.items()},
        "measured_ours": kept,
        "measured_vs_greedy": 1 - ratio(ours, greedy).median,
        "measured_vs_cpu": 1 - ratio(ours, alone).median,
        "host_predicted_ns": dict(predicted),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            row["model"],
            row["phone"],
            ms(row["cpu_only_ns"]),
            ms(row["greedy_ns"]),
            ms(row["greedy_kept_ns"]),
            ms(row["greedy_default_ns"]),
            ms(row["paper_rule_ns"]),
            ms(row["heft_ns"]),
            ms(row["regions_ns"]),
            "-" if row["rows_ns"] is None else f"{ms(row['rows_ns'])} ({row['rows_share']:.0%})",
            f"{1 - row['ours_ns'] / row['greedy_ns']:.0%}",
            f"{1 - row['ours_ns'] / row['cpu_only_ns']:.0%}",
            *measured_cells(row),
            f"{row['fragments']} > {row['ours_regions']}",
            f"{row['shape_original']} > {row['shape_greedy']} > {row['shape_regions']}",
            " / ".join("-" if value is None else str(value) for value in row["paper_ms"] or ()),
            row["paper_shapes"] or "",
        ]
        for row in rows
    ]


def measured_cells(row: Mapping[str, Any]) -> list[str]:
    if "timings" not in row:
        return ["-"] * 3
    shown = []
    for label in RIVALS:
        timing = row["timings"].get(label)
        if timing is None:
            shown.append("-")
            continue
        samples = sorted(timing["samples_ns"])
        spread = f"{ms(samples[len(samples) // 4])} to {ms(samples[-1 - len(samples) // 4])}"
        shown.append(f"{ms(timing['median_ns'])} ({spread}){'*' if label == row['measured_ours'] else ''}")
    return [" / ".join(shown), f"{row['measured_vs_greedy']:.0%}", f"{row['measured_vs_cpu']:.0%}"]


def goals(gains: Sequence[float], what: str) -> str:
    mean, best = statistics.mean(gains), max(gains)
    return (
        f"{what}, reduction against greedy: mean {mean:.0%} (goal {MEAN_GOAL:.0%}: "
        f"{'met' if mean >= MEAN_GOAL else '**missed**'}), best {best:.0%} (goal {BEST_GOAL:.0%}: "
        f"{'met' if best >= BEST_GOAL else '**missed**'})"
    )


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [goals([1 - row["ours_ns"] / row["greedy_ns"] for row in rows], "simulated")]
    regions = [1 - row["regions_ns"] / row["greedy_ns"] for row in rows]
    found.append(goals(regions, "simulated, without sharing rows"))
    default = statistics.mean(1 - row["ours_ns"] / row["greedy_default_ns"] for row in rows)
    kept = statistics.mean(1 - row["ours_ns"] / row["greedy_kept_ns"] for row in rows)
    found.append(f"simulated, mean reduction against TFLite's default {default:.0%}, against greedy-kept {kept:.0%}")
    worse = [f"{row['model']} on {row['phone']}" for row in rows if row["ours_ns"] > row["cpu_only_ns"]]
    found.append(f"simulated, slower than CPU only: {', '.join(worse) or 'none'}")
    timed = [row for row in rows if "timings" in row]
    if timed:
        found.append(goals([row["measured_vs_greedy"] for row in timed], "measured"))
        worse = [f"{row['model']} on {row['phone']} ({-row['measured_vs_cpu']:.0%})" for row in timed
                 if row["measured_vs_cpu"] < -0.02]  # fmt: skip
        found.append(f"measured, slower than CPU only by more than 2%: {', '.join(worse) or 'none'}")
    return [
        *found,
        "greedy: every supported fragment, one thing after the other, every tensor of a fragment through the host's "
        "memory, as TFLite's GPU delegate (delegates/gpu/delegate.cc: inputs and outputs are CPU_MEMORY) and ONNX "
        "Runtime's NNAPI provider (KernelContext_GetInput and _GetOutput in host memory) do; greedy-kept: as if "
        "tensors between fragments stayed on the device; TFLite's default: only the largest fragments (1 of the GPU "
        "delegate's, 3 of NNAPI's)",
        "regions: Parallax, no operator cut; rows: after splitting operators by rows between device and CPU "
        "(`parallax.model.split_rows`; the share is the device's), which is beyond the paper, as CoDL does it. Ours is "
        "the better of the two, or the CPU alone",
        "measured: median (quartiles) in ms; * is ours: what rounds of their own, before, found quickest. The ratio of "
        "CPU and accelerator is the device's, but branches on the CPU run beside each other on as many cores as this "
        "machine has, not on eight",
        "the paper's columns: the lower of its two latencies (arXiv 2512.11532), measured on phones. It took "
        "other exports of the models (all of Whisper, SwinV2 in float16, texts of 16 to 77 tokens), other "
        "accelerators (a TPU and NPUs through NNAPI), and counts nodes of TFLite graphs",
        "greedy delegation is dearer there: the profiles count a launch and copies for each fragment, "
        "not what a driver adds; with SwinV2 the paper measures it at more than 7 times the CPU alone",
    ]


def main() -> None:
    parser = make_parser(__doc__, "paper_parallax")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--devices", nargs="+", default=list(PHONES), metavar="PROFILE")
    parser.add_argument("--runs", type=int, default=5, help="interleaved rounds in real time; 0: simulate only")
    arguments = parser.parse_args()
    machine = describe_machine()
    cores = available_cores()
    rows = []
    for name in arguments.models:
        path, feeds = Path(zoo.load(name)), zoo.example_inputs(name)
        model = converted(path, open_inputs(path, feeds))
        host = measure_costs(model, widths=sorted({1, cores}), feeds=feeds) if arguments.runs else None
        for phone in arguments.devices:
            say(f"{name} on {phone}")
            profile = load_profile(phone)
            study = Study.of(model, phone_costs(model.inferred(), profile), EmulatedBackend(profile, speed=1.0), PHONE)

            def costs_of(made: RowSplit, profile: DeviceProfile = profile) -> CostModel:
                return phone_costs(made.model.inferred(), profile)

            row = simulated(study, name, phone, best_split(study, costs_of, flips=FLIPS))
            if host is not None:
                timings, kept, predicted = measured(
                    path, model, host, phone, runs=arguments.runs, cores=cores, feeds=feeds
                )
                row |= measured_columns(timings, kept, predicted)
                gc.collect()
            rows.append(row)
    publish(
        Report(
            title="The Parallax paper's models on emulated phones",
            method=(
                f"Milliseconds. Simulated: emulated device, {CORES} equal cores that are together as fast as the "
                f"phone's. Measured: emulated device, {cores} cores of this machine, and everything as much faster. "
                "Shapes: nodes/layers/parallel layers/most branches of a layer."
            ),
            columns=[
                "model",
                "device (emulated)",
                "CPU only",
                "greedy",
                "greedy-kept",
                "TFLite's default",
                "paper's thresholds",
                "HEFT",
                "regions",
                "rows (share)",
                "ours vs greedy",
                "ours vs CPU",
                f"measured: {' / '.join(RIVALS)}",
                "measured: ours vs greedy",
                "measured: ours vs CPU",
                "fragments > regions",
                "graph > greedy > regions",
                "paper: CPU / greedy / Parallax CPU / with accelerator",
                "paper: graph > greedy > Parallax",
            ],
            rows=table(rows),
            remarks=remarks(rows),
            figures=(),
            data={"cores": CORES, "handover_ns": HANDOVER_NS, "runs": arguments.runs, "results": rows},
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
