"""Sessions with less memory than a run wants: which models run in 60% and in 30% of it, and what stands in the way.

For each model a session is opened without a bound to speak of, which says what a run of the whole model holds
(planned, as admission counts it). Then sessions are opened with a budget of weights, of what the runtime takes, and of
that share of the run. Each that opens is asked for answers, which are compared with ONNX Runtime's, and takes turns
with the first in being timed. Beside it stand the least share that would do, and the operator whose own inputs and
outputs are most: no order and no cut by operators goes below that, only cuts of its rows do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from _common import Report, describe_machine, make_parser, open_inputs, pick_models, publish, say
from _figures import Figure

import parallax
from parallax import zoo
from parallax.cli import time_interleaved
from parallax.errors import BudgetError
from parallax.graph import OpGraph, tensor_bytes
from parallax.model import Model, load_model
from parallax.planner._stretches import stretched_plans
from parallax.schedule import Plan

MIB = 2**20
GOALS = {0.6: 10, 0.3: 6}
"""Of ten models, how many are to run in that share of what a run wants."""
ROOMY = "64GiB"
TOLERANCE = 1e-4
"""Of the largest magnitude in an output: slices are a split of the graph."""


def floor_of(graph: OpGraph) -> tuple[int, str]:
    """The bytes of the operator whose inputs and outputs take most, weights left out, and which it is."""

    def own(names: Sequence[str]) -> int:
        return sum(tensor_bytes(graph, name) for name in set(names) if name and name not in graph.initializers)

    node = max(graph.nodes, key=lambda node: (own((*node.inputs, *node.outputs)), -node.index))
    return own((*node.inputs, *node.outputs)), f"{node.op_type} {node.name}"


def narrowest_floor(model: Model, threads: int) -> tuple[int, str]:
    """Likewise of the model in the slices that hold least."""
    plans = list(stretched_plans(model, budget_bytes=0, cores=threads, reason="least"))
    return floor_of((plans[0].model if plans else model).inferred())


def error_of(got: Sequence[Any], want: Sequence[Any]) -> float:
    """The largest difference of two runs' answers, of the largest magnitude in its output."""
    worst = 0.0
    for one, other in zip(got, want, strict=True):
        scale = max(float(np.abs(other).max(initial=0)), 1e-30)
        worst = max(worst, float(np.abs(np.subtract(one, other, dtype=np.float64)).max(initial=0)) / scale)
    return worst


def count_slices(plan: Plan) -> dict[str, int]:
    """In how many slices a plan computes a model, or at most so many of its parts."""
    most = max((stretch.slices for stretch in plan.stretches), default=1)
    slices = most if plan.rows_permille is None else 2**plan.rows_rounds
    return {"slices": slices, "parts": len(plan.stretches)}


def try_model(name: str, *, threads: int, rounds: int) -> dict[str, Any]:
    """What becomes of one model in each share of what its run wants. ``rounds``: timed runs, 0 for none."""
    path, fed = Path(zoo.load(name)), zoo.example_inputs(name)
    options: dict[str, Any] = {"threads": threads, "shapes": open_inputs(path, fed)}
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, fed)
    roomy = parallax.InferenceSession(path, memory_budget=ROOMY, **options)
    budget, run_bytes = roomy._opened.budget, roomy.memory().run_peak_bytes
    assert budget is not None
    assert run_bytes is not None

    def share_of(budget_bytes: int) -> float:
        return (budget_bytes * (1 - budget.margin) - budget.held_bytes) / run_bytes

    model = load_model(path, shapes=options["shapes"])
    floor, operator = floor_of(model.inferred())
    row: dict[str, Any] = {"model": name, "run_bytes": run_bytes, "floor_bytes": floor, "floor_operator": operator}
    for share in GOALS:
        given = int((budget.held_bytes + share * run_bytes) / (1 - budget.margin)) + 1
        try:
            session = parallax.InferenceSession(path, memory_budget=given, **options)
        except BudgetError as error:
            if "narrowest_bytes" not in row:
                row["narrowest_bytes"], row["narrowest_operator"] = narrowest_floor(model, threads)
            row[f"{share:.0%}"] = {"runs": False, "least": share_of(error.least_bytes or 0)}
            continue
        times_as_long = None
        if rounds:
            calls = {"whole": partial(roomy.run, None, fed), "narrow": partial(session.run, None, fed)}
            timings = time_interleaved(calls, rounds=rounds, cores=threads)
            times_as_long = timings["narrow"].median_ns / timings["whole"].median_ns
        row[f"{share:.0%}"] = {
            "runs": True,
            "error": error_of(session.run(None, fed), want),
            "plan": session.plan.summary,
            "segments": len(session.plan.segments),
            **count_slices(session.plan),
            "times_as_long": times_as_long,
        }
    return row


def cell(found: Mapping[str, Any]) -> str:
    """One model in one share, for people."""
    if not found["runs"]:
        return f"refused: {found['least']:.0%} would do"
    wrong = "" if found["error"] <= TOLERANCE else f"; **answers differ by {found['error']:.1e}**"
    time = "" if found["times_as_long"] is None else f", {found['times_as_long']:.2f} times as long"
    parts = {0: "", 1: " of one part"}.get(found["parts"], f" of {found['parts']} parts, at most")
    return f"{found['slices']} slices{parts}{time}{wrong}"


def make_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """How many models run in each share, with right answers; counted, so that the value is its own interval."""
    figures = []
    for share, goal in GOALS.items():
        right = [found["runs"] and found["error"] <= TOLERANCE for found in (row[f"{share:.0%}"] for row in rows)]
        figures.append(
            Figure(
                name=f"narrow.{share:.0%}",
                what=f"of {len(rows)} models, those that run in {share:.0%} of the memory that a run wants",
                value=sum(right),
                unit="count",
                interval=(sum(right), sum(right)),
                bound=goal,
                at_least=True,
            )
        )
    return figures


def main() -> None:
    parser = make_parser(__doc__, "narrow_budgets")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="timed runs of each, taking turns; 0: none")
    arguments = parser.parse_args()
    machine = describe_machine()
    rows = []
    for name in pick_models(arguments.models):
        say(name)
        rows.append(try_model(name, threads=arguments.threads, rounds=arguments.rounds))
    publish(
        Report(
            title="Budgets that a run does not fit into",
            method=(
                f"Sessions on {arguments.threads} threads with a budget of weights, the runtime's own and that share "
                "of what a run of the whole model holds (MiB)."
                + (
                    f" Times of the session without a bound, median of {arguments.rounds} runs each, taking turns."
                    if arguments.rounds
                    else " Not timed."
                )
            ),
            columns=[
                "model",
                "a run wants",
                *(f"in {share:.0%}" for share in GOALS),
                "largest operator, of that",
                "in the least slices",
            ],
            rows=[
                [
                    row["model"],
                    f"{row['run_bytes'] / MIB:.1f}",
                    *(cell(row[f"{share:.0%}"]) for share in GOALS),
                    f"{row['floor_bytes'] / row['run_bytes']:.0%}: {row['floor_operator']}",
                    f"{row['narrowest_bytes'] / row['run_bytes']:.0%}: {row['narrowest_operator']}"
                    if "narrowest_bytes" in row
                    else "",
                ]
                for row in rows
            ],
            data={"threads": arguments.threads, "results": rows},
            figures=make_figures(rows),
            remarks=[
                "Slices of one part or several: all else runs whole, in the same segment. Without parts: the whole "
                "model in slices, each in segments of its own.",
                "What is held between parts is whole, and twice while slices are joined. For models that were refused, "
                "the last column names the operator whose own inputs and outputs are most where least is held: with "
                "what else is alive then, that is the floor.",
            ],
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
