"""Is what the simulator predicts what the machine does? Simulated against measured makespan on the zoo.

Per model two plans: the whole model, and the best cut that the search found (compiled even where the search would
not). Both are timed in turn. The whole model is predicted from measured operator costs. A cut is predicted twice, as
tuning does it: from operator costs, to choose what to compile; then from the cost of each compiled segment, traced one
at a time (that plan on a single lane), with hand-overs, waiting and overlap left to the simulator. The second counts.
How much cores slow each other down (shared caches and memory) is told by two such single lanes side by side: their
segments, against those of one, are the simulator's ``contention``. All of this takes turns with what is timed: the
machine's speed is not what is to be predicted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
from _common import ORIGIN, Report, describe_machine, make_parser, ms, open_inputs, pick_models, publish, say
from _figures import Figure, Verdict
from _intervals import median_interval, rows_that_keep
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax import zoo
from parallax.backends.ort import CPU_DEVICE, RuntimeOptions
from parallax.cli import Timing, time_interleaved
from parallax.engine import Executor, SpanObserver, TraceRecorder, compile_plan, lane_pool
from parallax.engine._trace import median_durations
from parallax.machine import available_cores
from parallax.model import load_model
from parallax.planner import PlanningContext
from parallax.profile import measure_costs
from parallax.schedule import Plan

ERROR_LIMIT = 0.10
"""What the project promises: simulated within this share of measured."""
ALONE = "segments one at a time"
BESIDE = "segments one at a time, on every core"


def on_every_lane(call: Callable[[], object], lanes: int) -> None:
    """The same call in as many threads at once."""
    with ThreadPoolExecutor(lanes) as threads:
        for ended in [threads.submit(call) for _ in range(lanes)]:
            ended.result()


def slow_down(plan: Plan, alone_ns: Sequence[int], beside_ns: Sequence[int]) -> float:
    """What the simulator calls contention, from segments of one thread: others take all cores as it is."""
    narrow = [segment.index for segment in plan.segments if segment.width == 1]
    if not narrow:
        return 1.0
    ratio = sum(beside_ns[index] for index in narrow) / sum(alone_ns[index] for index in narrow)
    return 1 + max(0.0, ratio - 1) / (plan.lanes - 1)


def measure_model(name: str, *, threads: int, runs: int) -> list[dict[str, Any]]:
    """Rows of (plan, simulated ns, measured timing)."""
    path = Path(zoo.load(name))
    feeds = zoo.example_inputs(name)
    model = load_model(path, shapes=open_inputs(path, feeds))
    widths = sorted({1, threads})
    say(f"{name}: profiling")
    costs = measure_costs(model, widths=widths, feeds=feeds)
    context = PlanningContext(model, cores=threads, costs=costs)
    proposals = context.candidates()
    whole_width = min(widths, key=lambda width: sum(costs.node_ns(width)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = whole_width
    whole = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    simulated = {"uncut": sum(costs.node_ns(whole_width))}
    searched = dict(simulated)
    shapes = {"uncut": (1, f"{whole_width} threads")}
    calls = {"uncut": lambda: whole.run(None, feeds)}
    spans, beside = TraceRecorder(), TraceRecorder()
    if proposals:
        best = proposals[0]
        plan = context.plan(best, ORIGIN)
        executor = compile_plan(model, plan, RuntimeOptions())
        values = {key: C.OrtValue.ortvalue_from_numpy(value, CPU_DEVICE) for key, value in feeds.items()}
        outputs = [info.name for info in model.graph.outputs]
        label = f"best cut: {best.partition.label}"
        alone, copy = (
            Executor(
                replace(plan, lanes=1, backfill=False, segments=tuple(replace(s, lane=0) for s in plan.segments)),
                executor.segments,
                inputs=[info.name for info in (*model.graph.inputs, *model.graph.overridable)],
                outputs=outputs,
                pool=lane_pool(),
            )
            for _ in range(2)
        )
        searched[label] = best.simulated_ns
        shapes[label] = (len(executor.segments), f"{best.schedule.lanes} lanes")
        calls[label] = lambda: executor.run(values, outputs)
        calls[ALONE] = lambda: alone.run(values, outputs)
        calls[BESIDE] = lambda: on_every_lane(lambda: copy.run(values, outputs), best.schedule.lanes)
        alone.events.add(SpanObserver(spans))
        copy.events.add(SpanObserver(beside))
    say(f"{name}: timing")
    timings = time_interleaved(calls, rounds=runs, cores=threads)
    contention: float | None = None
    if proposals:
        del timings[ALONE], timings[BESIDE]
        durations = median_durations(spans.take())
        # These were bound where the calls were made.
        contention = slow_down(plan, durations, median_durations(beside.take()))  # type: ignore[possibly-undefined]
        simulated[label] = context.resimulate(best, durations, contention=contention).simulated_ns  # type: ignore[possibly-undefined]
    rows = []
    # The search keeps what is faster when measured.
    kept = min(timings.values(), key=lambda timing: timing.median_ns).label
    for label, timing in timings.items():
        rows.append(
            {
                "model": name,
                "plan": label,
                "kept": label == kept,
                "segments": shapes[label][0],
                "form": shapes[label][1],
                "searched_ns": searched[label],
                "contention": None if label == "uncut" else contention,
                "simulated_ns": simulated[label],
                "measured_ns": timing.median_ns,
                "error": simulated[label] / timing.median_ns - 1,
                "samples_ns": [round(sample) for sample in timing.samples_ns],
            }
        )
    return rows


def error_figure(row: Mapping[str, Any]) -> Figure:
    """How far the simulation is off, either way: the larger of simulated to measured and measured to simulated, - 1.

    The interval is that of the measured median.
    """

    def off(measured_ns: float) -> float:
        simulated_ns = float(row["simulated_ns"])
        return max(simulated_ns / measured_ns, measured_ns / simulated_ns) - 1

    interval = median_interval(row["samples_ns"])
    if interval is not None:
        low, high = interval
        ends = sorted((off(low), off(high)))
        # Where it holds the simulated time itself, nothing need be off.
        interval = (0.0 if low <= row["simulated_ns"] <= high else ends[0], ends[1])
    return Figure(
        name=f"simulation.{row['model']}.{'uncut' if row['plan'] == 'uncut' else 'cut'}",
        what=f"simulated against measured makespan, {row['model']}, {row['plan']}: off by",
        value=off(row["measured_ns"]),
        unit="percent",
        interval=interval,
        bound=ERROR_LIMIT,
        headline=False,
    )


def make_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The error of each plan, how many keep the bound, and the error that half of them stay below."""
    rows = {f"{row['model']}, {row['plan']}": error_figure(row) for row in results}
    typical = statistics.median(figure.value for figure in rows.values())
    count = rows_that_keep(
        "simulation.plans",
        f"of {len(rows)} plans, those whose simulated makespan is within {ERROR_LIMIT:.0%} of the measured one",
        rows,
        note=f"half of them within {typical:.1%}",
    )
    return [*rows.values(), count]


def main() -> None:
    parser = make_parser(__doc__, "simulation")
    parser.add_argument("--models", nargs="+", default=["all"], metavar="NAME")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=available_cores())
    arguments = parser.parse_args()
    machine = describe_machine()
    results = [
        row
        for name in pick_models(arguments.models)
        for row in measure_model(name, threads=arguments.threads, runs=arguments.runs)
    ]
    rows = []
    for row in results:
        low, high = Timing(label="", samples_ns=tuple(row["samples_ns"])).quartiles_ns
        verdict = error_figure(row).verdict
        rows.append(
            [
                row["model"],
                row["plan"] + (" (kept)" if row["kept"] else ""),
                str(row["segments"]),
                row["form"],
                ms(row["searched_ns"]),
                "-" if row["contention"] is None else f"{row['contention']:.2f}",
                ms(row["simulated_ns"]),
                f"{ms(row['measured_ns'])} ({ms(low)} - {ms(high)})",
                f"{row['error']:+.1%}",
                f"{verdict}" if verdict is Verdict.MET else f"**{verdict}**",
            ]
        )
    publish(
        Report(
            title="Simulated against measured makespan",
            method=(
                f"Milliseconds; measured: median (quartiles) of {arguments.runs} interleaved runs on "
                f"{arguments.threads} threads. The bound is {ERROR_LIMIT:.0%}."
            ),
            columns=[
                "model",
                "plan",
                "segments",
                "form",
                "from operators",
                "contention",
                "simulated",
                "measured",
                "error",
                "",
            ],
            rows=rows,
            figures=make_figures(results),
            data={"runs": arguments.runs, "threads": arguments.threads, "results": results},
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
