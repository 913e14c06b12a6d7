"""Requests of many callers through a batcher: in time, refused in time, none lost, and as many as can be served.

Each model is loaded with 50, 90 and 150% of what its batcher serves when flooded, as a Poisson process and in bursts,
in turn with two other ways to size batches: a fixed window of 5 ms, and additive increase with multiplicative decrease
alone. Flooded, it is compared with callers that call the session itself, as many as serve most.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from _common import Report, describe_machine, make_parser, publish, say
from _figures import Figure, counted
from _intervals import median_interval, paired
from _load import (
    BURST,
    Answers,
    Slice,
    Stress,
    arrivals,
    open_loop,
    servable,
    served_by_batcher,
    served_by_callers,
    stress,
)

import parallax
from parallax import zoo
from parallax.serving import Batcher
from parallax.serving._serving import BatcherOptions, make_batcher
from parallax.serving.policy import Sizing

LOADS = (0.5, 0.9, 1.5)
KINDS = ("poisson", "bursts")
WINDOW_MS = 5.0
LEAST_LIMIT_MS = 100.0
LIMIT_RUNS = 12
"""The limit of a request is so many times what it takes alone, and not below `LEAST_LIMIT_MS`."""

OURS, WINDOW, TRIAL = "ours", "window of 5 ms", "AIMD alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model to serve."""

    name: str
    model: str
    dims: tuple[tuple[str, int], ...] = ()
    device: str | None = None
    gain: float
    """What it is to serve at least, relative to callers that call the session."""
    is_replayed: bool = False
    """All requests are the same: an emulated device computes unknown ones on this processor, in its own time."""

    def session(self) -> parallax.InferenceSession:
        providers = None if self.device is None else [self.device, "CPUExecutionProvider"]
        return parallax.InferenceSession(zoo.load(self.model), providers=providers)

    def answers(self, session: parallax.InferenceSession) -> Answers:
        seeds = [1] if self.is_replayed else range(12)
        feeds = [zoo.example_inputs(self.model, seed=seed, **dict(self.dims)) for seed in seeds]
        made = Answers(feeds, lambda fed: session.run(None, fed))
        if not self.is_replayed and not made.are_unlike():
            raise SystemExit(f"{self.name}: two requests have the same answer, so that a swapped one would not show")
        return made


CASES = (
    Case(name="distilbert-8", model="distilbert", dims=(("sequence", 8),), gain=1.3),
    Case(name="distilbert-16", model="distilbert", dims=(("sequence", 16),), gain=1.3),
    Case(name="distilbert-32", model="distilbert", dims=(("sequence", 32),), gain=1.3),
    Case(name="resnet18", model="resnet18", gain=0.97),
    Case(
        name="mobilenetv3-s-orin",
        model="mobilenetv3-s",
        device="emulated:jetson-agx-orin",
        gain=2.0,
        is_replayed=True,
    ),
)


def wilson(good: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share that was counted (Wilson, 1927)."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, good / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model's measurements."""

    case: Case
    limit_s: float
    capacity: float
    """Requests a second of ours, flooded."""
    flooded: dict[str, list[float]]
    """Requests a second, round by round: of "ours" and of "callers"."""
    callers: int
    slices: dict[tuple[str, float], dict[str, list[Slice]]]
    """By kind of arrivals and load, and by way to size batches."""
    stressed: list[Stress]
    stats: dict[str, Any]


def measure(case: Case, *, seconds: float, rounds: int) -> Result:
    session = case.session()
    answers = case.answers(session)
    run: Callable[..., object] = lambda fed: session.run(None, fed)  # noqa: E731
    alone = statistics.median([_seconds(run, answers) for _ in range(9)])
    limit_s = max(LEAST_LIMIT_MS / 1e3, LIMIT_RUNS * alone)
    examples = answers.feeds[:2] if len(answers.feeds) > 1 else None

    def batcher(sizing: Sizing, slo_ms: float | None = limit_s * 1e3) -> Batcher:
        options = BatcherOptions(slo_ms=slo_ms, examples=examples, sizing=sizing, window_ms=WINDOW_MS)
        return make_batcher(session, options)

    say(f"{case.name}: {alone * 1e3:.1f} ms alone, limit {limit_s * 1e3:.0f} ms")
    trials = {count: served_by_callers(run, answers, seconds=2, callers=count) for count in (1, 2, 4, 8)}
    callers = max(trials, key=lambda count: trials[count])
    flooded: dict[str, list[float]] = {OURS: [], "callers": []}
    with batcher(Sizing.FITTED, None) as flood:
        served_by_batcher(flood, answers, seconds=2)
        for _ in range(max(6, rounds)):
            flooded[OURS].append(served_by_batcher(flood, answers, seconds=2))
            flooded["callers"].append(served_by_callers(run, answers, seconds=2, callers=callers))
    capacity = statistics.median(flooded[OURS])
    say(f"{case.name}: {capacity:.0f} a second, {statistics.median(flooded['callers']):.0f} by {callers} callers")
    slices: dict[tuple[str, float], dict[str, list[Slice]]] = {}
    stats: dict[str, Any] = {}
    for kind in KINDS:
        for load in LOADS:
            slices[kind, load] = {OURS: [], WINDOW: [], TRIAL: []}
            with ExitStack() as stack:
                ways = {
                    OURS: stack.enter_context(batcher(Sizing.FITTED)),
                    WINDOW: stack.enter_context(batcher(Sizing.WINDOW)),
                    TRIAL: stack.enter_context(batcher(Sizing.TRIAL)),
                }
                for number in range(rounds):
                    moments = arrivals(kind, rate=load * capacity, seconds=seconds / rounds, seed=number)
                    most = servable(moments, capacity=capacity, limit_s=limit_s)
                    for shift in range(3):  # in turn, each first once in three rounds
                        way = list(ways)[(number + shift) % 3]
                        part = open_loop(ways[way], answers, moments, seconds=seconds / rounds, seed=number)
                        part.servable = most
                        slices[kind, load][way].append(part)
                stats[f"{kind} {load}"] = ways[OURS].stats().to_json()
            ours = slices[kind, load][OURS]
            good = sum(part.in_time(limit_s) for part in ours)
            say(f"{case.name}: {kind} at {load:.0%}: {good} of {sum(part.admitted for part in ours)} admitted in time")
    stressed = [
        stress(lambda: batcher(Sizing.FITTED, None), answers, requests=800, drain=drain, seed=5)
        for drain in (True, False)
    ]
    return Result(
        case=case,
        limit_s=limit_s,
        capacity=capacity,
        flooded=flooded,
        callers=callers,
        slices=slices,
        stressed=stressed,
        stats=stats,
    )


def _seconds(run: Callable[..., object], answers: Answers) -> float:
    begin = time.perf_counter()
    run(answers.feeds[0])
    return time.perf_counter() - begin


def figures_of(result: Result) -> list[Figure]:
    """Those of one model."""
    name, limit_s = result.case.name, result.limit_s
    ratios = paired(result.flooded[OURS], result.flooded["callers"])
    figures = [
        Figure(
            name=f"batcher.{name}.gain",
            what=f"{name}: requests a second through a batcher, relative to {result.callers} callers of the session",
            value=statistics.median(ratios),
            unit="ratio",
            interval=median_interval(ratios),
            bound=result.case.gain,
            at_least=True,
        )
    ]
    good = admitted = 0
    refusals: list[float] = []
    wrong = lost = 0
    for (kind, load), ways in result.slices.items():
        for part in ways[OURS]:
            good += part.in_time(limit_s)
            admitted += part.admitted
            refusals += part.refusals_s
            wrong += part.wrong + part.failed
            lost += part.lost
        if load > 1:
            shares = [part.in_time(limit_s) / part.seconds / result.capacity for part in ways[OURS]]
            most = statistics.median(part.servable / part.seconds / result.capacity for part in ways[OURS])
            figures.append(
                Figure(
                    name=f"batcher.{name}.{kind}.goodput",
                    what=f"{name}: answers in time a second at 150% of capacity ({kind}), as a share of it",
                    value=statistics.median(shares),
                    unit="percent",
                    interval=median_interval(shares),
                    bound=0.9,
                    at_least=True,
                    note=f"{most:.1%} could be served at all",
                    headline=False,
                )
            )
    figures.append(
        Figure(
            name=f"batcher.{name}.in_time",
            what=f"{name}: admitted requests that were answered within {limit_s * 1e3:.0f} ms, at all loads",
            value=good / max(1, admitted),
            unit="percent",
            interval=wilson(good, admitted),
            bound=0.99,
            at_least=True,
        )
    )
    if refusals:
        ordered = sorted(refusals)
        figures.append(
            Figure(
                name=f"batcher.{name}.refusal",
                what=f"{name}: time of a refusal, 99th percentile",
                value=ordered[int(0.99 * len(ordered))] * 1e3,
                unit="ms",
                interval=_percentile_interval([taken * 1e3 for taken in ordered], 0.99),
                bound=1.0,
                headline=False,
            )
        )
    figures += [against(result, other) for other in (WINDOW, TRIAL)]
    wrong += sum(entry.wrong for entry in result.stressed)
    lost += sum(entry.lost for entry in result.stressed)
    figures.append(
        counted(
            f"batcher.{name}.wrong",
            f"{name}: answers that are not their own request's, failures, and requests without an answer",
            wrong + lost,
            bound=0,
            headline=False,
        )
    )
    return figures


def against(result: Result, other: str) -> Figure:
    """Answers in time relative to another way to size batches, at the load where ours does worst."""
    worst: tuple[float, Any, str] | None = None
    for (kind, load), ways in result.slices.items():
        ratios = [
            (mine.in_time(result.limit_s) + 1) / (theirs.in_time(result.limit_s) + 1)
            for mine, theirs in zip(ways[OURS], ways[other], strict=True)
        ]
        value = statistics.median(ratios)
        if worst is None or value < worst[0]:
            worst = value, median_interval(ratios), f"{kind} at {load:.0%}"
    assert worst is not None
    return Figure(
        name=f"batcher.{result.case.name}.against.{'window' if other == WINDOW else 'trial'}",
        what=f"{result.case.name}: answers in time relative to {other}, at the load where ours does worst ({worst[2]})",
        value=worst[0],
        unit="ratio",
        interval=worst[1],
        bound=1.0,
        at_least=True,
        headline=False,
    )


def _percentile_interval(ordered: Sequence[float], share: float) -> tuple[float, float] | None:
    """From the order of the samples, by the normal approximation of the binomial; None for too few."""
    count = len(ordered)
    half = 1.96 * math.sqrt(count * share * (1 - share))
    low, high = math.floor(count * share - half), math.ceil(count * share + half)
    return (ordered[low], ordered[high]) if low >= 0 and high < count else None


def rows_of(result: Result) -> list[list[str]]:
    """One per kind of arrivals, load and way to size batches."""
    rows = []
    for (kind, load), ways in result.slices.items():
        for way, parts in ways.items():
            times = sorted(taken for part in parts for taken in part.times_s)
            admitted, good = sum(part.admitted for part in parts), sum(part.in_time(result.limit_s) for part in parts)
            offered = sum(part.offered for part in parts)
            at_capacity = result.capacity * sum(part.seconds for part in parts)
            rows.append(
                [
                    result.case.name,
                    f"{kind} {load:.0%}",
                    way,
                    f"{offered}",
                    f"{sum(part.refused for part in parts) / max(1, offered):.1%}",
                    f"{good / max(1, admitted):.2%}",
                    f"{good / at_capacity:.3f}",
                    f"{sum(part.servable for part in parts) / at_capacity:.3f}",
                    f"{_at(times, 0.5):.1f}",
                    f"{_at(times, 0.99):.1f}",
                    f"{_at(sorted(lag for part in parts for lag in part.lags_s), 0.99):.1f}",
                ]
            )
    return rows


def _at(ordered: Sequence[float], share: float) -> float:
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def dump(result: Result) -> dict[str, Any]:
    """For JSON."""
    return {
        "model": result.case.name,
        "limit_ms": result.limit_s * 1e3,
        "capacity": result.capacity,
        "callers": result.callers,
        "flooded": result.flooded,
        "stressed": [asdict(entry) for entry in result.stressed],
        "stats": result.stats,
        "loads": [
            {
                "arrivals": kind,
                "load": load,
                "way": way,
                "slices": [
                    {
                        "seconds": part.seconds,
                        "offered": part.offered,
                        "servable": part.servable,
                        "refused": part.refused,
                        "dropped": part.dropped,
                        "in_time": part.in_time(result.limit_s),
                        "answered": len(part.times_s),
                    }
                    for part in parts
                ],
            }
            for (kind, load), ways in result.slices.items()
            for way, parts in ways.items()
        ],
    }


def main() -> None:
    parser = make_parser(__doc__, "batcher")
    names = [case.name for case in CASES]
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load and way to size batches")
    parser.add_argument("--rounds", type=int, default=12, help="in which the ways take turns")
    arguments = parser.parse_args()
    machine = describe_machine()
    results = [
        measure(case, seconds=arguments.seconds, rounds=arguments.rounds)
        for case in CASES
        if case.name in arguments.models
    ]
    publish(
        Report(
            title="Batcher",
            method=(
                f"Open loop, {arguments.seconds:g} s for each load and way to size batches, in {arguments.rounds} "
                "turns; times from when a request was handed over. The share of admitted requests counts those that "
                "were dropped as late. Capacity is what a flood of ours comes to. On an emulated device all "
                "requests are equal, since it computes unknown ones on this processor."
            ),
            columns=[
                "model",
                "load",
                "way",
                "requests",
                "refused",
                "in time",
                "goodput",
                "servable",
                "median ms",
                "99% ms",
                "handed over late, 99% ms",
            ],
            rows=[row for result in results for row in rows_of(result)],
            data={"seconds": arguments.seconds, "rounds": arguments.rounds, "models": [dump(r) for r in results]},
            figures=[figure for result in results for figure in figures_of(result)],
            remarks=[
                "goodput: answers in time a second, relative to capacity",
                "servable: what a server that serves one by one at capacity, and knows what comes, would come to: no "
                f"batcher could serve more of bursts of {BURST}, between which it is idle",
                "requests are handed over late where the batcher's own threads hold Python's lock: there the load is "
                "less than is stated",
            ],
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
