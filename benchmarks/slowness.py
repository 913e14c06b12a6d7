"""Small models opened by default: what Parallax adds to ONNX Runtime's time, per call and per opening.

Every model of ONNX's backend suite that ONNX Runtime opens and runs, small models as tables of data have them, and,
where their packages are installed, models converted from scikit-learn, LightGBM and XGBoost. All are measured in one
process: a model that stays whole shares nothing with the one before but the processor, and thousands of processes
would take hours. In each round both sessions are called many times, in alternating order, and the quickest call of
each counts, since whatever else the machine does only adds; figures are medians of rounds. A model that does not keep
a bound after the first rounds gets more of them, and all count.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from _common import Report, describe_machine, make_parser, publish, say
from _figures import ROOT, Figure, Verdict, judge
from _intervals import figure_of_medians, median_interval, paired, rows_that_keep

import parallax

sys.path.insert(0, str(ROOT))

from tests.conformance._onnx_suite import Call, NoWayIn, load_cases, make_call
from tests.conformance._small_models import small_models
from tests.conformance._tabular import converted, why_missing

CPU = ["CPUExecutionProvider"]
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""Of the suite. The light ones are whole networks, whose latency and opening have benchmarks of their own."""

CALL_SHARE, CALL_US = 1.05, 5.0
"""A call takes at most this share of the runtime's time, and so many microseconds."""
OPENING_SHARE, OPENING_MS = 1.3, 2.0

FIRST_ROUNDS, MOST_ROUNDS = 8, 64
ROUND_NS = 2_000_000
LEAST_CALLS, MOST_CALLS = 4, 200
OPENINGS_NS = 8_000_000
LEAST_OPENINGS, MOST_OPENINGS = 2, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, and one way to call it."""

    family: str
    name: str
    data: bytes
    call: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of a subject. Times in ns, a sample of each per round."""

    subject: Subject
    segments: int
    reason: str
    call_stock: Sequence[float]
    call_ours: Sequence[float]
    opening_stock: Sequence[float]
    opening_ours: Sequence[float]

    @property
    def call_excess_us(self) -> list[float]:
        """By round, what a call of ours takes beyond the share that it may take."""
        return [(ours - CALL_SHARE * stock) / 1e3 for stock, ours in zip(self.call_stock, self.call_ours, strict=True)]

    @property
    def opening_excess_ms(self) -> list[float]:
        pairs = zip(self.opening_stock, self.opening_ours, strict=True)
        return [(ours - OPENING_SHARE * stock) / 1e6 for stock, ours in pairs]


# --- What is measured ------------------------------------------------------------------------------------------------


def backend_suite() -> Iterator[Subject]:
    """A subject per case and data set that has one; those that the runtime refuses are found out when measured."""
    for kind in KINDS:
        for case in load_cases(kind):
            model = case.read_model()
            for inputs, _ in case.read_data(model)[:1]:
                with contextlib.suppress(NoWayIn):  # the runtime's Python cannot be handed such values
                    call = make_call(model, inputs)
                    yield Subject(family="backend suite", name=case.id, data=model.SerializeToString(), call=call)


def tabular(family: str, models: Sequence[Any]) -> Iterator[Subject]:
    """A subject per model and feed."""
    for model in models:
        for feed in model.feeds:
            rows = next(iter(feed.values())).shape[0]
            call = Call(feed=dict(feed), as_ort_values=False)
            yield Subject(family=family, name=f"{model.name}, {rows} rows", data=model.data, call=call)


# --- Measuring -------------------------------------------------------------------------------------------------------


def measure(subject: Subject, path: Path, cache: Path) -> Measured | None:
    """The subject's times; None where ONNX Runtime itself does not open or run it."""
    path.write_bytes(subject.data)
    openers: tuple[Callable[[], Any], Callable[[], Any]] = (
        lambda: onnxruntime.InferenceSession(str(path), providers=CPU),
        lambda: parallax.InferenceSession(str(path), cache_dir=cache),
    )
    try:
        stock = openers[0]()
        subject.call.of(stock)
    except Exception:  # the runtime's own affair, which the conformance suites look into
        return None
    ours = openers[1]()
    subject.call.of(ours)
    calls: tuple[list[float], list[float]] = ([], [])
    openings: tuple[list[float], list[float]] = ([], [])
    sessions = (stock, ours)
    measured = Measured(
        subject=subject,
        segments=len(ours.plan.segments),
        reason=ours.plan.provenance.reason,
        call_stock=calls[0],
        call_ours=calls[1],
        opening_stock=openings[0],
        opening_ours=openings[1],
    )
    gc.collect()
    gc.disable()
    try:
        while len(calls[0]) < MOST_ROUNDS:
            order = (0, 1) if len(calls[0]) % 2 else (1, 0)
            for side in order:
                calls[side].append(quickest_call(subject.call, sessions[side]))
            for side in order:
                openings[side].append(quickest_opening(openers[side]))
            if len(calls[0]) % FIRST_ROUNDS == 0 and keeps_bounds(measured):
                break
    finally:
        gc.enable()
    return measured


def quickest_call(call: Call, session: Any) -> float:
    """Of as many calls as take some milliseconds, after one that warms up."""
    call.of(session)
    best, begin, calls = float("inf"), time.perf_counter_ns(), 0
    while calls < LEAST_CALLS or (calls < MOST_CALLS and time.perf_counter_ns() - begin < ROUND_NS):
        start = time.perf_counter_ns()
        call.of(session)
        best = min(best, time.perf_counter_ns() - start)
        calls += 1
    return best


def quickest_opening(opener: Callable[[], Any]) -> float:
    """Of as many as take some milliseconds; what an opened session takes to go away is not counted."""
    best, begin, openings = float("inf"), time.perf_counter_ns(), 0
    while openings < LEAST_OPENINGS or (openings < MOST_OPENINGS and time.perf_counter_ns() - begin < OPENINGS_NS):
        start = time.perf_counter_ns()
        session = opener()
        best = min(best, time.perf_counter_ns() - start)
        openings += 1
        del session
    return best


def keeps_bounds(measured: Measured) -> bool:
    return all(
        judge(0.0, median_interval(excess), bound, at_least=False) is Verdict.MET
        for excess, bound in ((measured.call_excess_us, CALL_US), (measured.opening_excess_ms, OPENING_MS))
    )


# --- Reporting -------------------------------------------------------------------------------------------------------


def excess_figure(name: str, what: str, samples: Sequence[float], unit: str, bound: float) -> Figure:
    """The median excess of one model, which is at most the bound."""
    value = sorted(samples)[len(samples) // 2]
    return Figure(
        name=name, what=what, value=value, unit=unit, interval=median_interval(samples), bound=bound, headline=False
    )


def family_figures(family: str, measured: Sequence[Measured]) -> list[Figure]:
    """How many models of a family keep both bounds, and what is added on average."""
    key = family.replace(" ", "-")
    calls = {m.subject.name: excess_figure("", "", m.call_excess_us, "us", CALL_US) for m in measured}
    openings = {m.subject.name: excess_figure("", "", m.opening_excess_ms, "ms", OPENING_MS) for m in measured}
    split = sum(m.segments > 1 for m in measured)
    return [
        rows_that_keep(
            f"slowness.{key}.calls",
            f"{family}: of {len(measured)} calls opened by default, those that take at most {CALL_SHARE} of ONNX "
            f"Runtime's time and {CALL_US:.0f} µs",
            calls,
            note=f"{split} of their models split",
        ),
        rows_that_keep(
            f"slowness.{key}.openings",
            f"{family}: of {len(measured)} openings, those that take at most {OPENING_SHARE} of ONNX Runtime's time "
            f"and {OPENING_MS:.0f} ms",
            openings,
        ),
        figure_of_medians(
            f"slowness.{key}.call-ratio",
            f"{family}: a call's share of ONNX Runtime's time, geometric mean",
            [[paired(m.call_ours, m.call_stock)] for m in measured],
            bound=CALL_SHARE,
            headline=False,
        ),
        figure_of_medians(
            f"slowness.{key}.opening-ratio",
            f"{family}: an opening's share of ONNX Runtime's time, geometric mean",
            [[paired(m.opening_ours, m.opening_stock)] for m in measured],
            headline=False,
        ),
    ]


def row(measured: Measured) -> dict[str, Any]:
    """For the results file: medians and intervals, not samples, of which there would be a hundred thousand."""
    calls = (_median(measured.call_stock) / 1e3, _median(measured.call_ours) / 1e3)
    openings = (_median(measured.opening_stock) / 1e6, _median(measured.opening_ours) / 1e6)
    return {
        "family": measured.subject.family,
        "model": measured.subject.name,
        "segments": measured.segments,
        "rounds": len(measured.call_stock),
        "call_us": [round(value, 2) for value in calls],
        "call_excess_us": _rounded(median_interval(measured.call_excess_us)),
        "opening_ms": [round(value, 3) for value in openings],
        "opening_excess_ms": _rounded(median_interval(measured.opening_excess_ms)),
    }


def _median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(value, 3) for value in interval]


def worst_rows(measured: Sequence[Measured], count: int) -> list[list[str]]:
    """The models with the largest excess of a call, then those with the largest of an opening."""
    by_call = sorted(measured, key=lambda m: -_median(m.call_excess_us))[:count]
    by_opening = sorted(measured, key=lambda m: -_median(m.opening_excess_ms))[:count]
    return [_cells(m) for m in (*by_call, *(m for m in by_opening if m not in by_call))]


def _cells(measured: Measured) -> list[str]:
    shown = row(measured)
    return [
        measured.subject.family,
        measured.subject.name,
        f"{shown['call_us'][0]:.1f}",
        f"{shown['call_us'][1]:.1f}",
        f"{shown['opening_ms'][0]:.2f}",
        f"{shown['opening_ms'][1]:.2f}",
        str(measured.segments),
        measured.reason[:60],
    ]


def main() -> None:
    parser = make_parser(__doc__, "slowness")
    parser.add_argument("--families", nargs="+", default=["suite", "small", "converted"], metavar="NAME")
    parser.add_argument("--every", type=int, default=1, help="measure one model of so many, to try things out")
    parser.add_argument("--only", default="", help="measure only models whose name has this in it")
    arguments = parser.parse_args()
    machine = describe_machine()
    onnxruntime.set_default_logger_severity(4)
    remarks = []
    missing = why_missing()
    if missing is not None and "converted" in arguments.families:
        remarks.append(f"Converted models were left out: {missing}.")
    families: dict[str, Callable[[], Iterator[Subject]]] = {
        "suite": backend_suite,
        "small": lambda: tabular("small models", small_models()),
        "converted": lambda: tabular("converted models", converted()[0] if missing is None else ()),
    }
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes overflows on purpose
        for family in arguments.families:
            for number, subject in enumerate(families[family]()):
                if number % arguments.every or arguments.only not in subject.name:
                    continue
                found = measure(subject, Path(folder) / "model.onnx", Path(folder) / "cache")
                if found is not None:
                    measured.append(found)
                    if not keeps_bounds(found):
                        say(f"{subject.family}, {subject.name}: {row(found)}")
                if number % 100 == 0:
                    say(f"{family}: {number}")
    figures = [
        figure
        for family in dict.fromkeys(m.subject.family for m in measured)
        for figure in family_figures(family, [m for m in measured if m.subject.family == family])
    ]
    publish(
        Report(
            title="Small models, opened by default",
            method=(
                "Calls in microseconds, openings in milliseconds: medians of the quickest in each of "
                f"{FIRST_ROUNDS} to {MOST_ROUNDS} rounds. The table has the models that exceed ONNX Runtime's time "
                "most."
            ),
            columns=[
                "family",
                "model",
                "call, ONNX Runtime",
                "call",
                "opening, ONNX Runtime",
                "opening",
                "segments",
                "plan",
            ],
            rows=worst_rows(measured, 12),
            data={"onnx_suite": onnx.__version__, "results": [row(m) for m in measured]},
            figures=figures,
            remarks=remarks,
        ),
        arguments.output,
        machine,
    )
    kept = all(figure.verdict in (Verdict.MET, Verdict.NO_BOUND) for figure in figures)
    sys.exit(0 if kept else "not every model is shown to keep the bounds; see the figures")


if __name__ == "__main__":
    main()
