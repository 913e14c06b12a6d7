"""Planning time against model size: random DAGs of 1,000, 10,000 and 100,000 operators.

Planning is everything after costs are known: contraction to fusion groups, branches and layers, candidates, their
schedules and simulations, and the plan. Loading, shape inference and cost tables are shown beside it. No
operator of these graphs can be fused, so every one is a group of its own: the worst case.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from _common import ORIGIN, Report, describe_machine, make_parser, publish, say
from _figures import Figure
from _graphs import random_dag
from _intervals import median_interval

from parallax.model import load_model
from parallax.planner import PlanningContext

TEN_THOUSAND_LIMIT_S = 1.0
"""What the project promises for 10,000 nodes."""

# A slope of 1 is linear time; what lies above must be noise or a logarithm.
SLOPE_LIMIT = 1.15


def plan_once(model_bytes: bytes, *, cores: int) -> dict[str, float]:
    """Seconds per stage for one model, nothing kept from an earlier call."""
    gc.collect()
    clock = time.perf_counter
    marks = [clock()]
    model = load_model(model_bytes)
    marks.append(clock())
    model.inferred()
    marks.append(clock())
    context = PlanningContext(model, cores=cores)
    _ = context.costs, context.whole_ns
    marks.append(clock())
    groups = context.groups
    _ = context.group_costs
    marks.append(clock())
    proposals = context.candidates()
    marks.append(clock())
    if proposals:
        context.plan(proposals[0], ORIGIN)
    marks.append(clock())
    load, infer, costs, group_fusions, search, plan = (after - before for before, after in itertools.pairwise(marks))
    return {
        "load": load,
        "infer": infer,
        "costs": costs,
        "contract": group_fusions,
        "search": search,
        "plan": plan,
        "planning": group_fusions + search + plan,
        "units": float(len(groups)),
        "candidates": float(len(proposals)),
    }


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Exponent of the power law through the points (least squares on logarithms)."""
    xs, ys = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def make_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Seconds per size, and how they grow. Intervals: of the median where there are runs enough, else unknown."""
    figures = []
    for row in results:
        seconds = [run["planning"] for run in row["runs"]]
        figures.append(
            Figure(
                name=f"planning.{row['nodes']}",
                what=f"planning a graph of {row['nodes']:,} operators",
                value=row["planning"],
                unit="s",
                interval=median_interval(seconds),
                bound=TEN_THOUSAND_LIMIT_S if row["nodes"] == 10_000 else None,
                headline=row["nodes"] >= 10_000,
            )
        )
    if len(results) > 1:
        sizes = [row["nodes"] for row in results]
        by_run = zip(*([run["planning"] for run in row["runs"]] for row in results), strict=True)
        slopes = [slope(sizes, list(seconds)) for seconds in by_run]
        figures.append(
            Figure(
                name="planning.power",
                what="planning grows with the number of operators to the power",
                value=statistics.median(slopes),
                unit="ratio",
                interval=median_interval(slopes),
                bound=SLOPE_LIMIT,
                headline=False,
            )
        )
    return figures


def main() -> None:
    parser = make_parser(__doc__, "planning")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=6, help="times each size is planned; the median counts")
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    machine = describe_machine()
    results: list[dict[str, Any]] = []
    for size in arguments.sizes:
        say(f"{size} nodes")
        model_bytes = random_dag(size).SerializeToString()
        runs = [plan_once(model_bytes, cores=arguments.cores) for _ in range(arguments.repeats)]
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        results.append({"nodes": size, **medians, "runs": runs})
    stages = ("planning", "contract", "search", "plan", "load", "infer", "costs")
    publish(
        Report(
            title="Planning time",
            method=(
                f"Seconds, median of {arguments.repeats}; planning = group_fusions + search + plan. "
                f"{arguments.cores} cores planned for."
            ),
            columns=["nodes", "units", "candidates", *stages],
            rows=[
                [
                    str(row["nodes"]),
                    f"{row['units']:.0f}",
                    f"{row['candidates']:.0f}",
                    *(f"{row[key]:.3f}" for key in stages),
                ]
                for row in results
            ],
            data={"cores": arguments.cores, "results": results},
            figures=make_figures(results),
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
