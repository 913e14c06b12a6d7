"""How far are our placements from the best there is? Simulated, so that any machine gives the same figures.

A solver (CP-SAT, `make exact`) gives lower bounds that hold for every placement and every schedule of the simulator,
and placements that are simulated beside ours. Two tables: the Parallax paper's models on its phones, no rows of
operators shared, which are divided into parts so that the bound may be lower than anything there is; and small random
graphs on such a phone, most of which the solver closes: then nothing is better than what it found.
"Ours" is the default policy's placement. Gains are against the better of the CPU alone and greedy delegation, which
anybody can have.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _common import describe_machine, make_parser, ms, say
from _figures import Figure, counted
from _paper import GREEDY_NOTE, MODELS, PHONES, load_converted
from _paper_simulated import CORES, PHONE, phone_costs
from _phones import Study
from _sections import Section, publish_sections

from parallax.backends.emulated import load_profile
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.graph import CostModel, Node, OpGraph, Rejection, TensorInfo, Verdict, tensor_bytes
from parallax.partition import group_fusions
from parallax.partition.regions import DeviceCosts, RegionPlan, RegionRule, TransferCost, find_regions
from parallax.partition.regions._hosted import hosted_tensors
from parallax.planner._exact import Solver
from parallax.schedule.placement import PlacementProblem, default_placers, find_placement
from parallax.schedule.placement._exact_search import ExactSearch
from parallax.schedule.placement._judge import Judge

SHARE_GOAL = 0.80
"""Of what there is to be had, where the gain that is aimed at is not reached."""
MEAN_GOAL, WORST_GOAL = 1.01, 1.03
"""Ours against the optimum, where that is known: geometric mean and worst."""

MODEL_SECONDS, GRAPH_SECONDS = 24.0, 12.0
"""Of the solver for each row, as it counts its own work."""
GRAPHS = 200

Row = dict[str, Any]


def compare(problem: PlacementProblem, greedy_ns: int, solver: Solver, seconds: float) -> Row:
    """Ours, the solver's, and the bound. Deterministic."""
    found = find_placement(problem, default_placers(len(problem.groups)))
    judge = Judge(problem)
    search = ExactSearch(problem, judge, solver.ask, seconds=seconds)
    for placement in search.placements():
        judge.consider(placement)
    ours, best = found.best.makespan_ns, judge.best.makespan_ns
    # The search closes against its own best; ours may have regions that it does not count.
    return {
        "groups": len(problem.groups),
        "cpu_only_ns": found.cpu_only_ns,
        "greedy_ns": greedy_ns,
        "ours_ns": ours,
        "solver_ns": best,
        "best_ns": min(ours, best),
        "bound_ns": min(search.bound_ns, ours, best),
        "is_closed": search.is_closed,
        "questions": search.asked,
    }


def better_ns(row: Mapping[str, Any]) -> int:
    """The better of the CPU alone and greedy delegation."""
    return min(int(row["cpu_only_ns"]), int(row["greedy_ns"]))


def gain(row: Mapping[str, Any], key: str) -> float:
    """Share of that time which is saved; 0 where nothing is, as the CPU alone is always to be had."""
    return max(0.0, 1 - int(row[key]) / better_ns(row))


class Kept:
    """Rows that were made, in a file from which a later call goes on.

    Args:
        path: of that file; what it holds already is kept where ``resumes``.
    """

    def __init__(self, path: Path, *, resumes: bool) -> None:
        self._path = path
        self.rows: dict[str, Row] = json.loads(path.read_text("utf-8")) if resumes and path.exists() else {}

    def row(self, key: str, make: Callable[[], Row], end: float) -> Row | None:
        """The row of that key, made now unless it is there; None where it is not and the time is over."""
        if key not in self.rows and time.monotonic() < end:
            self.rows[key] = make()
            made = self._path.with_suffix(".new")
            made.write_text(json.dumps(self.rows), "utf-8")
            made.replace(self._path)
        return self.rows.get(key)


def model_row(name: str, phone: str, solver: Solver, seconds: float) -> Row:
    """One of the paper's models on one of its phones."""
    began = time.monotonic()
    model, profile = load_converted(name), load_profile(phone)
    backend = EmulatedBackend(profile, speed=1.0)
    study = Study.of(model, phone_costs(model.inferred(), profile), backend, PHONE)
    problem = PlacementProblem(
        graph=study.graph, groups=study.groups, devices=(study.device_costs,), costs=study.costs, machine=PHONE
    )
    greedy = study.hosted_ns(study.regions(RegionRule.GREEDY))
    row = compare(problem, greedy, solver, seconds)
    figures = f"ours {ms(row['ours_ns'])}, solver {ms(row['solver_ns'])}, bound {ms(row['bound_ns'])}"
    say(f"{name} on {phone}: {figures} ms, {time.monotonic() - began:.0f} s")
    return {"model": name, "phone": phone, **row}


def random_problem(seed: int) -> tuple[PlacementProblem, int]:
    """A graph of 4 to 10 operators on a phone, and what greedy delegation takes of it."""
    draw = random.Random(seed)
    size = draw.randint(4, 10)
    nodes, consumers, producers, info = [], dict[str, list[int]](), dict[str, int](), {}
    for index in range(size):
        reads = [f"t{other}" for other in range(index) if draw.random() < 2.2 / size] or ["x"]
        nodes.append(
            Node(
                index=index,
                name=f"n{index}",
                op_type="Sum",
                domain="",
                inputs=tuple(reads),
                outputs=(f"t{index}",),
            )
        )
        producers[f"t{index}"] = index
        for name in reads:
            consumers.setdefault(name, []).append(index)
    for name in ("x", *producers):
        info[name] = TensorInfo(name=name, dtype=1, shape=(draw.choice([1_000, 30_000, 300_000]),))
    graph = OpGraph(
        name=f"random {seed}",
        nodes=tuple(nodes),
        inputs=(info["x"],),
        overridable=(),
        outputs=tuple(info[name] for name in producers if name not in consumers),
        tensors=info,
        initializers={},
        producers=producers,
        consumers={name: tuple(readers) for name, readers in consumers.items()},
    )
    narrow = [draw.randint(100_000, 4_000_000) for _ in range(size)]
    scaling = [draw.uniform(0.4, 0.95) for _ in range(size)]
    # One more thread adds so much of the first one's speed.
    durations = tuple(
        tuple(round(ns / (1 + threads * gained)) for ns, gained in zip(narrow, scaling, strict=True))
        for threads in range(CORES)
    )
    refusal = Rejection(verdict=Verdict.UNSUPPORTED_OPERATOR, detail="drawn")
    device_costs = DeviceCosts(
        device="phone",
        declined=tuple(refusal if draw.random() < 0.2 else None for _ in range(size)),
        device_ns=tuple(round(ns * draw.uniform(0.3, 1.5)) for ns in durations[-1]),
        cpu_ns=durations[-1],
        flops=(0,) * size,
        launch_ns=100_000,
        transfer=TransferCost(fixed_ns=20_000, ns_per_byte=0.1333),
    )
    costs = CostModel(
        source="tables",
        widths=tuple(range(1, CORES + 1)),
        durations_ns=durations,
        latencies_ns=(None,) * CORES,
        scales=(1.0,) * CORES,
        known_fraction=1.0,
    )
    groups = group_fusions(graph, tiny_elements=0)
    problem = PlacementProblem(graph=graph, groups=groups, devices=(device_costs,), costs=costs, machine=PHONE)
    return problem, hosted_ns(graph, device_costs, find_regions(graph, groups, device_costs, rule=RegionRule.GREEDY))


def hosted_ns(graph: OpGraph, device_costs: DeviceCosts, plan: RegionPlan) -> int:
    """As `Study.hosted_ns`: in sequence, every tensor of a region through the host's memory."""
    moved = [
        device_costs.transfer.ns(tensor_bytes(graph, name)) for names in hosted_tensors(graph, plan) for name in names
    ]
    return plan.chosen_ns - sum(region.transfer_ns for region in plan.regions) + sum(moved)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def share(rows: Sequence[Row], key: str) -> float:
    """Ours of what there is to be had: the mean gain of ours, of the mean gain by ``key``."""
    whole = sum(gain(row, key) for row in rows)
    return sum(gain(row, "ours_ns") for row in rows) / whole if whole else 1.0


def simulated(name: str, what: str, value: float, unit: str = "ratio", **more: Any) -> Figure:
    """A figure that is the same on every machine, so that its interval is the value."""
    return Figure(name=f"optimum.{name}", what=what, value=value, unit=unit, interval=(value, value), **more)


def ratios(rows: Sequence[Row], key: str) -> list[float]:
    return [row["ours_ns"] / row[key] for row in rows]


def model_section(rows: Sequence[Row], asked: int) -> Section:
    of = f"simulated, {len(rows)} rows, no rows of operators shared"
    what_there_is = "share of what there is to be had over the better of CPU and greedy that ours takes"
    figures = [
        simulated(
            "models.share_of_bound",
            f"{of}: {what_there_is}, if the lower bound could be had",
            share(rows, "bound_ns"),
            "percent",
            bound=SHARE_GOAL,
            at_least=True,
        ),
        simulated(
            "models.over_bound",
            f"{of}: ours against the lower bound, geometric mean",
            geometric_mean(ratios(rows, "bound_ns")),
            headline=False,
        ),
        simulated(
            "models.over_bound_worst",
            f"{of}: ours against the lower bound, the worst row",
            max(ratios(rows, "bound_ns")),
            headline=False,
        ),
        simulated(
            "models.over_best_worst",
            f"{of}: ours against the best placement found, the worst row",
            max(ratios(rows, "best_ns")),
            headline=False,
        ),
        simulated(
            "models.to_be_had",
            f"{of}: latency less than that of the better of CPU and greedy, if the lower bound could be had, mean",
            statistics.mean(gain(row, "bound_ns") for row in rows),
            "percent",
            headline=False,
        ),
    ]
    cells = [
        [
            row["model"],
            row["phone"],
            str(row["groups"]),
            *(ms(row[name]) for name in ("cpu_only_ns", "greedy_ns", "ours_ns", "solver_ns", "bound_ns")),
            *(f"{gain(row, name):.1%}" for name in ("ours_ns", "best_ns", "bound_ns")),
            f"{row['ours_ns'] / row['bound_ns']:.3f}",
            "yes" if row["is_closed"] else "no",
        ]
        for row in rows
    ]
    remarks = [
        GREEDY_NOTE,
        "the bound is of a relaxation: what it leaves out can only take time, and what passes over the groups at which "
        "models are divided moves for nothing. Where a row is not closed, the best lies between bound and best found",
        "rows of operators are not shared here: that changes the graph, and can be quicker than these bounds",
    ]
    if len(rows) < asked:
        remarks.append(f"{asked - len(rows)} of {asked} rows are missing: no time was left")
    return Section(
        title="Simulated: the paper's models as they are",
        method=f"Milliseconds, simulated on {CORES} equal cores that are together as fast as the phone's.",
        columns=[
            "model",
            "device",
            "groups",
            "CPU only",
            "greedy",
            "ours",
            "solver",
            "bound",
            "ours gains",
            "best found gains",
            "bound gains",
            "ours / bound",
            "closed",
        ],
        rows=cells,
        data={"results": list(rows)},
        figures=figures,
        remarks=remarks,
    )


def random_section(rows: Sequence[Row], asked: int) -> Section:
    closed = [row for row in rows if row["is_closed"]]
    of = f"simulated, {len(closed)} small random graphs of which the optimum is known"
    over = ratios(closed, "best_ns")
    figures = [
        simulated("random.mean", f"{of}: ours against it, geometric mean", geometric_mean(over), bound=MEAN_GOAL),
        simulated("random.worst", f"{of}: ours against it, the worst", max(over), bound=WORST_GOAL),
        simulated(
            "random.share",
            f"{of}: share of what there is to be had over the better of CPU and greedy that ours takes",
            share(closed, "best_ns"),
            "percent",
            bound=SHARE_GOAL,
            at_least=True,
            headline=False,
        ),
        counted(
            "optimum.random.best",
            f"{of}: those in which ours is it",
            sum(ratio <= 1 for ratio in over),
            headline=False,
        ),
        counted(
            "optimum.random.open",
            f"simulated, of {len(rows)} small random graphs: those that were not closed in time",
            len(rows) - len(closed),
            headline=False,
        ),
    ]
    cells = []
    for low, high in ((4, 5), (6, 7), (8, 10)):
        some = [row for row in rows if low <= row["groups"] <= high]
        known = [row for row in some if row["is_closed"]]
        if not known:
            continue
        within = ratios(known, "best_ns")
        cells.append(
            [
                f"{low} to {high}",
                str(len(some)),
                str(len(known)),
                f"{geometric_mean(within):.3f}",
                f"{max(within):.3f}",
                str(sum(ratio <= 1 for ratio in within)),
                f"{share(known, 'best_ns'):.1%}",
                f"{geometric_mean([row['best_ns'] / row['bound_ns'] for row in known]):.3f}",
                f"{statistics.mean(row['questions'] for row in some):.1f}",
            ]
        )
    return Section(
        title="Simulated: small random graphs",
        method=(
            f"{len(rows)} of {asked} graphs of 4 to 10 operators, a fifth of which the device refuses, on {CORES} "
            "cores and a device with the launch, transfers, hand-overs and starts of a phone. The optimum is that of "
            "all placements, with regions as large as can be or ended early, as the judge schedules them."
        ),
        columns=[
            "operators",
            "graphs",
            "closed",
            "ours / optimum, mean",
            "worst",
            "ours is it",
            "of what there is to be had",
            "optimum / first bound",
            "questions",
        ],
        rows=cells,
        data={"results": list(rows)},
        figures=figures,
        remarks=["the first bound holds for every schedule, not only for the judge's"],
    )


def main() -> None:
    parser = make_parser(__doc__, "optimum")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--phones", nargs="+", default=list(PHONES), metavar="PROFILE")
    parser.add_argument("--graphs", type=int, default=GRAPHS, help="how many random graphs")
    parser.add_argument("--model-seconds", type=float, default=MODEL_SECONDS, help="of the solver, per model's row")
    parser.add_argument("--graph-seconds", type=float, default=GRAPH_SECONDS, help="of the solver, per random graph")
    parser.add_argument("--minutes", type=float, default=28, help="nothing begins later; a third is for random graphs")
    parser.add_argument("--resume", action="store_true", help="go on from the rows that an earlier call left")
    arguments = parser.parse_args()
    machine = describe_machine()
    begin = time.monotonic()
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = Kept(output.with_suffix(".rows"), resumes=arguments.resume)
    with Solver() as solver:
        machine["ortools"] = solver.version

        def drawn_row(seed: int) -> Row:
            return {"seed": seed, **compare(*random_problem(seed), solver, arguments.graph_seconds)}

        third = begin + 20 * arguments.minutes
        made = [kept.row(f"random {seed}", partial(drawn_row, seed), third) for seed in range(arguments.graphs)]
        drawn = [row for row in made if row is not None]
        say(f"{len(drawn)} random graphs, {sum(row['is_closed'] for row in drawn)} closed")
        end = begin + 60 * arguments.minutes
        rows = []
        for name, phone in itertools.product(arguments.models, arguments.phones):
            make = partial(model_row, name, phone, solver, arguments.model_seconds)
            row = kept.row(f"{name} {phone}", make, end)
            if row is not None:
                rows.append(row)
    asked = len(arguments.models) * len(arguments.phones)
    sections = {}
    if rows:
        sections["models"] = model_section(rows, asked)
    if any(row["is_closed"] for row in drawn):
        sections["random"] = random_section(drawn, arguments.graphs)
    title = "How far placements are from the best there is, simulated"
    publish_sections(title, sections, output, machine, json_copy=None)


if __name__ == "__main__":
    main()
