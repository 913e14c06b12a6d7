"""Zeros that are worth something, against ONNX Runtime on all of them: padding left out, pruned weights removed.

For padding, each runtime has a process of its own, in turn, in alternating order; a process opens the model, runs once,
and then a few times. Ratios are of the medians of one round's processes. Outputs are compared number by number. Pruned
models run in one process in turn, run by run (`_slimmed.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import Report, describe_machine, make_parser, ms, publish, say
from _figures import Figure
from _fresh import DEFAULT, OURS, Order, run_fresh, save_feeds
from _intervals import figure_of_medians, median_of, paired
from _slimmed import CASES as PRUNED
from _slimmed import measure_slimmed, slimmed_cells, slimmed_figures

from parallax import zoo
from parallax.machine import available_cores

PADDED = 128
CLOSE = 1e-5
"""By how much outputs may differ: sums over fewer places are added up in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model with inputs that hold zeros, and what is asked of ours."""

    name: str
    what: str
    model: str
    """Of the zoo."""
    lengths: Sequence[int]
    """Tokens of each row; all are padded to `PADDED`."""
    options: Mapping[str, Any] = field(default_factory=lambda: {"padding": "trim"})
    """Of our session."""
    bound: float
    """Share of ONNX Runtime's time, at most."""

    def feeds(self) -> dict[str, np.ndarray]:
        """Random tokens, padded places as well; the mask hides those."""
        feeds = zoo.example_inputs(self.model, batch=len(self.lengths), sequence=PADDED)
        mask = np.arange(PADDED) < np.array(self.lengths)[:, None]
        return feeds | {"attention_mask": mask.astype(feeds["attention_mask"].dtype)}


CASES = (
    Case(
        name="one",
        what=f"DistilBERT, one sentence of 32 tokens padded to {PADDED}",
        model="distilbert",
        lengths=(32,),
        bound=0.45,
    ),
    Case(
        name="batch",
        what=f"DistilBERT, a batch of 8 sentences of 9 to 52 tokens padded to {PADDED}",
        model="distilbert",
        lengths=(9, 52, 17, 31, 24, 44, 12, 38),
        bound=0.40,
    ),
)


def measure(case: Case, *, rounds: int) -> dict[str, Any]:
    """Medians of processes, in ns, by variant and round; and the largest difference of outputs."""
    say(case.what)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        feeds = save_feeds(case.feeds(), folder)
        orders = {
            variant: Order(
                variant=variant,
                path=str(zoo.load(case.model)),
                feeds=feeds,
                least_runs=4,
                least_seconds=0.5,
                outputs=str(folder / f"{number}.npz"),
                options=case.options if variant == OURS else {},
            )
            for number, variant in enumerate((DEFAULT, OURS))
        }
        samples: dict[str, list[int]] = {variant: [] for variant in orders}
        for number in range(rounds):
            for variant in list(orders)[:: 1 if number % 2 == 0 else -1]:
                samples[variant].append(run_fresh(orders[variant]).steady_ns)
        difference = _difference(*(orders[variant].outputs for variant in (DEFAULT, OURS)))
    return {"case": case.name, "samples_ns": samples, "difference": difference}


def _difference(*paths: str | None) -> float:
    """The largest, of any number of any output."""
    found = 0.0
    stored = [np.load(path) for path in paths if path is not None]
    for name in stored[0].files:
        found = max(found, float(np.abs(stored[0][name] - stored[1][name]).max()))
    for file in stored:
        file.close()
    return found


def make_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Per case the share of ONNX Runtime's time; and how far outputs are apart in all of them."""
    cases = {case.name: case for case in CASES}
    figures = [
        figure_of_medians(
            f"sparsity.padding.{result['case']}",
            f"{cases[result['case']].what}, run without padding: share of ONNX Runtime's time",
            [[ratios_of(result)]],
            bound=cases[result["case"]].bound,
        )
        for result in results
    ]
    if not results:
        return figures
    apart = max(result["difference"] for result in results)
    figures.append(
        Figure(
            name="sparsity.padding.difference",
            what=f"outputs of these runs, in units of {CLOSE:g}: the largest difference from ONNX Runtime's",
            value=apart / CLOSE,
            unit="ratio",
            interval=(apart / CLOSE, apart / CLOSE),
            bound=1.0,
        )
    )
    return figures


def ratios_of(result: Mapping[str, Any]) -> list[float]:
    """Ours to ONNX Runtime's, round by round."""
    samples = result["samples_ns"]
    return paired(samples[OURS], samples[DEFAULT])


def make_report(
    results: Sequence[Mapping[str, Any]], pruned: Sequence[Mapping[str, Any]], *, rounds: int, runs: int
) -> Report:
    """The table."""
    cases = {case.name: case for case in CASES}
    rows = [
        [
            cases[result["case"]].what,
            *(ms(median_of([result["samples_ns"][variant]])) for variant in (DEFAULT, OURS)),
            f"{median_of([ratios_of(result)]):.3f}",
            f"{result['difference']:.1e}",
        ]
        for result in results
    ]
    rows += [slimmed_cells(row) for row in pruned]
    return Report(
        title="Zeros that are worth something",
        method=(
            f"Milliseconds per run: the median of {rounds} processes, each the median of its runs. ONNX Runtime has "
            'its defaults and all the padding; Parallax is opened with padding="trim". Pruned models: the median of '
            f"{runs} runs of each in one process, in turn; Parallax is opened with slim=True."
        ),
        columns=["inputs", DEFAULT, OURS, "ratio", "difference"],
        rows=rows,
        data={"rounds": rounds, "runs": runs, "results": list(results), "pruned": list(pruned)},
        figures=[*make_figures(results), *slimmed_figures(pruned)],
    )


def main() -> None:
    parser = make_parser(__doc__, "sparsity")
    parser.add_argument("--rounds", type=int, default=9, help="processes of each runtime, per case")
    parser.add_argument("--runs", type=int, default=30, help="runs of each, per pruned model")
    names = [*(case.name for case in CASES), *PRUNED]
    parser.add_argument("--cases", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    arguments = parser.parse_args()
    machine = describe_machine()
    results = [measure(case, rounds=arguments.rounds) for case in CASES if case.name in arguments.cases]
    pruned = []
    for name in PRUNED:
        if name in arguments.cases:
            with tempfile.TemporaryDirectory() as made:
                pruned.append(measure_slimmed(name, runs=arguments.runs, threads=available_cores(), folder=Path(made)))
    report = make_report(results, pruned, rounds=arguments.rounds, runs=arguments.runs)
    publish(report, arguments.output, machine)


if __name__ == "__main__":
    main()
