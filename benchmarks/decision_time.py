"""What a placement costs that was found in little time: regret against decision time, runs **simulated**.

SparOA's five models (arXiv 2511.19457) on two Jetson boards and three phones in twelve states of the machine, built as
in `paper_sparoa.py`. Each way to place is asked in each state, on one thread, and the time of that thread until it has
decided is measured (wall time on an idle core); what a run then takes is simulated, on no device. At a budget of 0.3 to
100 ms what was decided in time counts; where nothing was, the better of the CPU alone and the device alone, which two
sums tell. Regret is what a run takes against the least that any way found. Of several proposals, and of the CPU alone
then, a way keeps the best by the quick judge, whose time counts; a single one is taken as it is. What all ways look up
of a problem (costs per fusion group, what moves) is computed before, in a time that is stated.

What is fitted is fitted without the model, or the device, that it is asked about. Trained networks are compared where
their files are given: ``--network FILE``.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from _common import describe_machine, make_parser, ms, say
from _deciding import (
    BUDGETS_MS,
    REPEATS,
    Answer,
    Decision,
    Propose,
    Simulated,
    better_side,
    clock_s,
    decide,
    last_within,
    make_ready,
    no_collection,
    search,
    sides_of,
    within,
)
from _figures import Figure
from _intervals import mean_over_rows
from _networks import Trained, asked_of, read_networks
from _paper import load_converted
from _paper_simulated import phone_costs
from _phones import Study
from _sections import Section, publish_sections
from _threshold_predictors import FITTED, Case, case_of, predicted_ns
from paper_sparoa import BOARDS, MODELS, OURS, PHONES, QUICK, Subject, machine_of

from parallax.adapt import NOMINAL, HardwareState, ReadyPlan, choose_portfolio, in_state, state_grid
from parallax.backends.emulated import load_profile
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.model import split_rows
from parallax.planner._states import describe
from parallax.planner._zeros import WeightZeros
from parallax.schedule import PAPER_POLICY
from parallax.schedule.placement import PLACERS, Placement, PlacementProblem, find_placement, row_parts
from parallax.schedule.placement._descent import Descent
from parallax.schedule.placement._thresholds import Quadrants

SIDE = "better side"
ETF, ETF_OR_SIDE = "etf", "etf or a side"
ETF_DESCENT, SIDES_DESCENT = "etf + descent", "sides + descent"
STORED, STORED_OTHERS = "stored plans", "stored plans of other states"
JUDGED = "simulator"
FIXED_SHARE = "fixed-share"

ELSEWHERE: Final = frozenset({"shard-rows", FIXED_SHARE, PAPER_POLICY, "descent"})
"""Placers of a model that was split by rows before, one that proposes what ``paper`` does, and one that is asked with
`STEPS`, and with a time."""

STEPS: Final = 300
"""Placements that a descent without a time looks at."""

NOMINAL_OF: Final = (ETF, "closed-form", "thresholds", ETF_DESCENT, JUDGED)
"""Whose decisions for the nominal state are kept in the others, as an ablation."""

ABLATIONS: Final = (
    *((f"{name}, no state", name) for name in NOMINAL_OF),
    ("thresholds, no rho", "thresholds"),
    ("thresholds, no intensity", "thresholds"),
    ("thresholds", ETF_DESCENT),
    (ETF_OR_SIDE, ETF_DESCENT),
    (SIDES_DESCENT, ETF_DESCENT),
    (STORED_OTHERS, STORED),
)
"""Pairs: what something is left out of, and what it is left out of it."""

Row = dict[str, Any]


def one_decision() -> dict[str, Propose]:
    """Ways that decide once, by name."""
    found: dict[str, Propose] = {name: make().propose for name, make in PLACERS.items() if name not in ELSEWHERE}
    found[f"descent, {STEPS} steps"] = Descent(seeds=1, evaluations=STEPS).propose
    found[ETF_OR_SIDE] = lambda problem: [*sides_of(problem), *PLACERS[ETF]().propose(problem)]
    found["thresholds, no rho"] = Quadrants(max_zeros=1.0).propose
    found["thresholds, no intensity"] = Quadrants(min_flops=0.0).propose
    return found


def searches(networks: Mapping[str, Propose]) -> dict[str, Propose]:
    """Ways that go on searching, by name: where they begin."""
    found: dict[str, Propose] = {ETF_DESCENT: PLACERS[ETF]().propose, SIDES_DESCENT: lambda problem: ()}
    return found | {f"{name} + descent": propose for name, propose in networks.items() if ", " not in name}


def split_problem(subject: Subject) -> PlacementProblem | None:
    """The model split by rows, at the share that balances both sides in the nominal state; None without rows."""
    (device_costs,) = subject.problem.devices
    split = split_rows(subject.context.model, device_costs.balanced_share)
    if split is None:
        return None
    profile, machine = load_profile(subject.device), machine_of(load_profile(subject.device))
    costs = phone_costs(split.model.inferred(), profile, cores=machine.cores)
    study = Study.of(split.model, costs, EmulatedBackend(profile, speed=1.0), machine)
    parts = row_parts(study.graph, study.groups, split.parts)
    return PlacementProblem(
        graph=study.graph,
        groups=study.groups,
        devices=(study.device_costs,),
        costs=costs,
        machine=machine,
        row_parts=parts,
    )


def timed_choice(plans: Sequence[ReadyPlan], state: HardwareState, problem: PlacementProblem) -> Answer:
    """The best of stored plans in a state, and after how long that is known."""
    times = []
    predicted: list[int] = []
    for _ in range(REPEATS):
        began = clock_s()
        predicted = [plan.predict_ns(state, problem.machine) for plan in plans]
        times.append(clock_s() - began)
    return Answer(after_s=min(times), takes_ns=min(predicted))


def stored_answers(
    ready: Sequence[ReadyPlan], states: Sequence[HardwareState], problem: PlacementProblem
) -> list[dict[str, Answer]]:
    """Per state: the best of few plans kept ready, chosen for all states; and chosen without the state's own plan."""
    table = [[plan.predict_ns(state, problem.machine) for state in states] for plan in ready]
    chosen = choose_portfolio(table).chosen
    found = []
    for number, state in enumerate(states):
        others = [other for other in range(len(states)) if other != number or number == 0]
        kept = choose_portfolio([[table[plan][other] for other in others] for plan in others]).chosen
        found.append(
            {
                STORED: timed_choice([ready[plan] for plan in chosen], state, problem),
                STORED_OTHERS: timed_choice([ready[others[plan]] for plan in kept], state, problem),
            }
        )
    return found


def study(
    subject: Subject, states: Sequence[HardwareState], trained: Sequence[Trained]
) -> tuple[list[Row], list[Case]]:
    """One row and one case per state, the nominal one first."""
    began = time.perf_counter()
    subject = dataclasses.replace(
        subject, problem=dataclasses.replace(subject.problem, zeros=WeightZeros(subject.context.model))
    )
    networks = asked_of(trained, subject.name, subject.device)
    split = split_problem(subject)
    rows: list[Row] = []
    cases: list[Case] = []
    ready: list[ReadyPlan] = []
    nominal: dict[str, Sequence[Decision]] = {}
    for state in states:
        problem = in_state(subject.problem, state)
        decisions: dict[str, Sequence[Decision]] = {}
        with no_collection():
            ready_s = make_ready(problem)
            decisions[SIDE] = decide(problem, lambda asked: [better_side(asked)])
            for name, propose in (one_decision() | dict(networks)).items():
                decisions[name] = decide(problem, propose)
            for name, propose in searches(networks).items():
                decisions[name] = last_within(search(problem, propose), [budget / 1e3 for budget in BUDGETS_MS])
            judging = clock_s()
            best = find_placement(problem, [PLACERS[name]() for name in OURS]).best
            judged_s = clock_s() - judging
        simulated = Simulated(problem)
        answers = {name: simulated.answers(made) for name, made in decisions.items()}
        answers[JUDGED] = [Answer(after_s=judged_s, takes_ns=best.makespan_ns)]
        kept = Placement(label=JUDGED, devices=tuple(best.regions.placed(len(problem.groups))))
        decisions[JUDGED] = [
            Decision(after_s=judged_s, placement=dataclasses.replace(kept, ends_early=best.ends_early))
        ]
        nominal = nominal or decisions
        for name in (*NOMINAL_OF, *(name for name in networks if ", " not in name)):
            answers[f"{name}, no state"] = simulated.answers(nominal[name][-1:])
        if split is not None:
            of_state = in_state(split, state)
            make_ready(of_state)
            made = PLACERS[FIXED_SHARE]().propose
            answers[FIXED_SHARE] = Simulated(of_state).answers(decide(of_state, made))
        ready.append(subject.answer(best, state))
        cases.append(case_of(problem, simulated.ns, model=subject.name, device=subject.device))
        rows.append(
            {
                "model": subject.name,
                "device": subject.device,
                "state": describe(state),
                "groups": len(problem.groups),
                "ready_s": ready_s,
                "answers": answers,
            }
        )
    for row, more in zip(rows, stored_answers(ready, states, subject.problem), strict=True):
        row["answers"] |= {name: [answer] for name, answer in more.items()}
        # A model that was split before is another graph: what that gains is no regret of a placement.
        row["best_known_ns"] = min(
            answer.takes_ns for name, found in row["answers"].items() if name != FIXED_SHARE for answer in found
        )
    say(f"{subject.name} on {subject.device}: {time.perf_counter() - began:.0f} s")
    return rows, cases


# What rows come to ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """Of one way to place, over the rows that it answers in."""

    rows: int
    mean: float
    interval: tuple[float, float] | None
    worst: float

    @classmethod
    def of(cls, ratios: Sequence[float], families: Sequence[object]) -> Regret:
        mean, interval = mean_over_rows(ratios, [str(family) for family in families])
        return cls(rows=len(ratios), mean=mean, interval=interval, worst=max(ratios))

    def shown(self) -> str:
        interval = "" if self.interval is None else f" ({self.interval[0]:.3f} to {self.interval[1]:.3f})"
        return f"{self.mean:.3f}{interval}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def graph_of(row: Row) -> tuple[str, str]:
    return row["model"], row["device"]


def taken_ns(row: Row, name: str, budget_ms: float | None) -> int:
    """What a run takes by what a way has decided in time, or else by the better side."""
    found = within(row["answers"][name], None if budget_ms is None else budget_ms / 1e3)
    side: int = row["answers"][SIDE][0].takes_ns
    return side if found is None else found


def regret(rows: Sequence[Row], name: str, budget_ms: float | None) -> Regret:
    asked = [row for row in rows if name in row["answers"]]
    return Regret.of([taken_ns(row, name, budget_ms) / row["best_known_ns"] for row in asked], [*map(graph_of, asked)])


def against(rows: Sequence[Row], name: str, other: str, budget_ms: float | None) -> Regret:
    """What a run takes by one way as a share of that by another, in the rows that both answer in."""
    asked = [row for row in rows if name in row["answers"] and other in row["answers"]]
    shares = [taken_ns(row, name, budget_ms) / taken_ns(row, other, budget_ms) for row in asked]
    return Regret.of(shares, [*map(graph_of, asked)])


def names_of(rows: Sequence[Row]) -> list[str]:
    """Ways to place without those that are ablations, the best last decisions first."""
    names = dict.fromkeys(name for row in rows for name in row["answers"])
    left_out = (", no state", ", no rho", ", no intensity", ", no reinforcement learning")
    shown = [name for name in names if not name.endswith(left_out)]
    return sorted(shown, key=lambda name: regret(rows, name, None).mean)


def decided_ms(rows: Sequence[Row], name: str) -> str:
    """The median time of a way's first decision."""
    return ms(statistics.median(row["answers"][name][0].after_s for row in rows if name in row["answers"]) * 1e9)


LIMITS: Final = (*BUDGETS_MS, None)


def limit_name(budget_ms: float | None) -> str:
    return "no limit" if budget_ms is None else f"{budget_ms:g} ms"


def regret_section(rows: Sequence[Row], title: str, places: str, more: Mapping[str, Any] | None = None) -> Section:
    """``more``: beside what the table has, for the results file."""
    names = names_of(rows)
    found = {name: {limit_name(limit): regret(rows, name, limit) for limit in LIMITS} for name in names}
    cells = [
        [name, decided_ms(rows, name), *(one.shown() for one in of.values()), f"{of['no limit'].worst:.2f}"]
        for name, of in found.items()
    ]
    return Section(
        title=title,
        method=(
            "What a run takes, **simulated**, against the best known of the same row: geometric mean, and the 95% "
            f"interval over {len(set(map(graph_of, rows)))} graphs that are drawn anew with their states. Columns: "
            "what was decided within that time of one thread, measured (wall time on an idle core); before, the better "
            "side."
        ),
        columns=["way", "first decision, median ms", *map(limit_name, LIMITS), "worst row, no limit"],
        rows=cells,
        data={"regret": {name: {at: one.to_json() for at, one in of.items()} for name, of in found.items()}}
        | dict(more or {}),
        figures=regret_figures(rows) if places == "all" else [],
        remarks=[
            "to compute what all ways look up, before any is asked, takes "
            f"{ms(statistics.median(row['ready_s'] for row in rows) * 1e9)} ms (median), which is in none of the times",
            f"`{ETF_DESCENT}`, `{SIDES_DESCENT}`: descent goes on until the longest time is over, which is its last "
            "column too; `local-search` is the placer, with its own number of steps",
            f"`{JUDGED}`: the best of {', '.join(OURS)} by the simulator, as sessions plan in the background",
            f"`{STORED}`: at most three plans per graph, chosen for all states; `{STORED_OTHERS}`: none of them was "
            "made for the state that they are asked in, unless that is the nominal one",
            f"`{FIXED_SHARE}`: the model was split by rows before, at the share of the nominal state; it is another "
            "graph, and not among what is best known, so that it can be below 1",
        ],
    )


def figure(name: str, what: str, found: Regret, **more: Any) -> Figure:
    what = f"simulated, {found.rows} rows: {what}"
    return Figure(
        name=f"decision_time.{name}", what=what, value=found.mean, unit="ratio", interval=found.interval, **more
    )


def regret_figures(rows: Sequence[Row]) -> list[Figure]:
    """Of the ways that a session could go by, within ten milliseconds and without a limit."""
    figures = []
    for name in (SIDE, "closed-form", "thresholds", ETF, ETF_OR_SIDE, ETF_DESCENT, STORED, STORED_OTHERS, JUDGED):
        for limit in (10.0, None):
            asked = f"within {limit_name(limit)}" if limit else "however long it takes"
            figures.append(
                figure(
                    f"{name}.{limit_name(limit)}".replace(" ", "_"),
                    f"{name}, {asked}, against the best known, geometric mean",
                    regret(rows, name, limit),
                    headline=name in (ETF_DESCENT, STORED_OTHERS) and limit is not None,
                )
            )
    return figures


def network_figures(rows: Sequence[Row], labels: Sequence[str]) -> list[Figure]:
    """Networks against earliest finish and descent: a network belongs into the default where it takes less."""
    return [
        figure(
            f"network.{name}.{limit_name(limit)}".replace(" ", "_"),
            f"{name}, within {limit_name(limit)}, share of what a run takes by {ETF_DESCENT}, geometric mean",
            against(rows, name, ETF_DESCENT, limit),
            bound=1.0,
            headline=False,
        )
        for label in labels
        for name in (label, f"{label} + descent")
        for limit in BUDGETS_MS
        if any(name in row["answers"] for row in rows)
    ]


def network_section(rows: Sequence[Row], trained: Sequence[Trained]) -> Section:
    labels = list(dict.fromkeys(one.label for one in trained))
    names = [name for label in labels for name in (label, f"{label} + descent", f"{label}, alone")]
    names = [name for name in names if any(name in row["answers"] for row in rows)]
    found = {name: {limit: against(rows, name, ETF_DESCENT, limit) for limit in BUDGETS_MS} for name in names}
    return Section(
        title="Networks against earliest finish and descent, simulated",
        method=(
            f"What a run takes, **simulated**, as a share of that by {ETF_DESCENT} in the same time. A network belongs "
            "into the default only where the whole interval is below 1."
        ),
        columns=["network", "rows", *map(limit_name, BUDGETS_MS)],
        rows=[[name, str(of[BUDGETS_MS[0]].rows), *(one.shown() for one in of.values())] for name, of in found.items()],
        data={
            "held_out": [{"label": one.label, "held_out": one.held_out} for one in trained],
            "share": {
                name: {limit_name(limit): one.to_json() for limit, one in of.items()} for name, of in found.items()
            },
        },
        figures=network_figures(rows, labels),
        remarks=[
            f"{one.label}: asked of all rows; nothing is known of what it was trained on"
            for one in trained
            if not one.held_out
        ],
    )


def ablation_section(rows: Sequence[Row], labels: Sequence[str]) -> Section:
    pairs = list(ABLATIONS)
    for label in labels:
        less = ("no state", "alone", "thresholds only", "no reinforcement learning")
        pairs += [(f"{label}, {what}", label) for what in less]
    pairs = [pair for pair in pairs if all(any(name in row["answers"] for row in rows) for name in pair)]
    found = {pair: (regret(rows, pair[0], None), against(rows, *pair, None)) for pair in pairs}
    return Section(
        title="Ablations, simulated",
        method=(
            "However long it takes: regret of what is left when something is left out, and what a run takes, "
            "**simulated**, as a share of that with it. No state: decisions of the nominal state are kept. No rho: "
            "a threshold of work alone. No intensity: a threshold of zeros alone."
        ),
        columns=["what is left", "of", "regret", "worst row", "share of the whole's time"],
        rows=[[*pair, own.shown(), f"{own.worst:.2f}", share.shown()] for pair, (own, share) in found.items()],
        data={
            "ablations": [
                {"left": left, "whole": whole, "regret": own.to_json(), "share": share.to_json()}
                for (left, whole), (own, share) in found.items()
            ]
        },
        figures=[
            figure(
                f"ablation.{left}.of.{whole}".replace(" ", "_"),
                f"{left}, share of what a run takes by {whole}, geometric mean",
                share,
                headline=False,
            )
            for (left, whole), (_, share) in found.items()
        ],
        remarks=[
            "no kernel is priced as quicker for zeros in weights, so that rho has nothing to decide by: it can do harm "
            "here, and no good"
        ],
    )


def threshold_section(rows: Sequence[Row], cases: Sequence[Case], labels: Sequence[str]) -> Section:
    """How well a threshold of work can be told: every predictor, by the same rule."""
    predicted: dict[str, list[int | None]] = {name: list(ns) for name, ns in predicted_ns(cases).items()}
    for label in labels:
        name = f"{label}, thresholds only"
        predicted[name] = [row["answers"][name][0].takes_ns if name in row["answers"] else None for row in rows]
    closed = predicted["closed form"]
    table: dict[str, tuple[Regret, Regret]] = {}
    for name, times in predicted.items():
        told = [(row, ns, other) for row, ns, other in zip(rows, times, closed, strict=True) if ns is not None]
        families = [graph_of(row) for row, _, _ in told]
        if told:
            table[name] = (
                Regret.of([ns / row["best_known_ns"] for row, ns, _ in told], families),
                Regret.of([ns / other for _, ns, other in told if other is not None], families),
            )
    return Section(
        title="Thresholds of work, told beforehand, simulated",
        method=(
            "One threshold per model and state, by the rule of `thresholds`: what a run takes, **simulated**, against "
            "the best known and against the threshold in closed form. Constant, median and linear (least squares) know "
            f"nothing of the model, or of the device, that they are asked about ({', '.join(FITTED)} are fitted)."
        ),
        columns=["predictor", "rows", "regret", "worst row", "share of the closed form's time"],
        rows=[
            [name, str(own.rows), own.shown(), f"{own.worst:.2f}", share.shown()]
            for name, (own, share) in table.items()
        ],
        data={
            "thresholds": {
                name: {"regret": own.to_json(), "share_of_closed_form": share.to_json()}
                for name, (own, share) in table.items()
            }
        },
        figures=[
            figure(
                f"threshold.{name}".replace(" ", "_").replace(",", ""),
                f"threshold of work, {name}, against the best known, geometric mean",
                own,
                headline=False,
            )
            for name, (own, _) in table.items()
        ],
    )


def row_json(row: Row) -> Row:
    """For the results file: per way its decisions, each as "microseconds until it was made:nanoseconds of a run"."""
    answers: Mapping[str, Sequence[Answer]] = row["answers"]
    dumped = {
        name: " ".join(f"{answer.after_s * 1e6:.0f}:{answer.takes_ns}" for answer in found)
        for name, found in answers.items()
    }
    return {**row, "ready_s": round(row["ready_s"], 6), "answers": dumped}


def graphs(models: Sequence[str], devices: Sequence[str]) -> list[tuple[str, str]]:
    """Every model on every device, in an order that has as many models and devices as can be from the beginning."""
    turns = range(max(len(models), len(devices)))
    pairs = [(models[place % len(models)], devices[(place + turn) % len(devices)]) for turn in turns for place in turns]
    return list(dict.fromkeys(pairs))


def main() -> None:
    parser = make_parser(__doc__, "decision_time")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--devices", nargs="+", default=[*BOARDS, *PHONES], metavar="PROFILE")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} on the boards, in three states")
    parser.add_argument("--minutes", type=float, help="begin with no further model on a device after so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well")
    parser.add_argument(
        "--network",
        nargs="+",
        default=[],
        metavar="[LABEL=]FILE[@HELD_OUT]",
        help="ONNX files of trained networks, proposers and their schedulers by label; of one that was trained without "
        "a model or device only that is asked",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.devices = [QUICK], list(BOARDS)
    trained = read_networks(arguments.network)
    machine = describe_machine()
    began = time.monotonic()
    models = {name: load_converted(name) for name in arguments.models}
    rows: list[Row] = []
    cases: list[Case] = []
    asked = graphs(arguments.models, arguments.devices)
    for number, (name, device) in enumerate(asked):
        if arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes:
            say(f"the time is over: {number} of {len(asked)} graphs were asked about")
            break
        states = state_grid([f"emulated:{device}"])
        assert states[0] == NOMINAL
        subject = Subject.of(name, device, models[name])
        found, told = study(subject, states[::5] if arguments.quick else states, trained)
        rows.extend(found)
        cases.extend(told)
    labels = list(dict.fromkeys(one.label for one in trained))
    more = {"rows": [*map(row_json, rows)]}
    sections = {"all": regret_section(rows, "Regret against decision time, simulated", "all", more)}
    for places, devices in (("boards", BOARDS), ("phones", PHONES)):
        of_places = [row for row in rows if row["device"] in devices]
        if 0 < len(of_places) < len(rows):
            title = f"The same, {'Jetson boards' if places == 'boards' else places} only"
            sections[places] = regret_section(of_places, title, places)
    if trained:
        sections["networks"] = network_section(rows, trained)
    sections["thresholds"] = threshold_section(rows, cases, labels)
    sections["ablations"] = ablation_section(rows, labels)
    title = "What little time to decide costs, on emulated devices, simulated"
    publish_sections(title, sections, Path(arguments.output), machine, json_copy=arguments.json)


if __name__ == "__main__":
    main()
