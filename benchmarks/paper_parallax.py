"""The Parallax paper's models (arXiv 2512.11532) on emulated phones, measured through ``InferenceSession(tune=True)``.

For each of five models and three phones: the session that a user opens, tuned, with the emulated accelerator among its
providers, against ONNX Runtime on the CPU alone, greedy delegation, TFLite's default, and above all *the better of the
CPU alone and greedy delegation*, which is chosen in rounds of its own. With rows of single operators shared between
both sides, which is beyond the paper, and without: then the best candidate of the same tuning that shares none.

Each run of a row is a process and a tuning of its own, with an empty cache (but for the costs of the model, which the
phones of a run share). The CPU's segments run on this machine's cores, the accelerator's take the time that the profile
gives them, scaled by how much faster this machine's processor is than the phone's; copies that a core makes on the
phone take a core here. Delegation gets models as a delegate's converter leaves them: shapes fixed, constants computed.
The session and ONNX Runtime are given them as they are, the session with ``shapes=``.

Rows are measured run by run, until ``--minutes`` are over; ``--resume`` goes on with an earlier result of the same
commit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import Report, describe_machine, make_parser, ms, publish, say
from _figures import Figure, Verdict
from _intervals import figure_of_medians, mean_reduction, median_of, paired, rows_that_keep
from _paper import BEST_GOAL, GREEDY_NOTE, MEAN_GOAL, MODELS, PHONES
from _paper_row import CPU, DEFAULT, GREEDY, LABELS, OURS, WITHOUT, measure_row

from parallax.machine import available_cores

RUNS, ROUNDS = 3, 20
CPU_LIMIT = 1.02
"""Of the CPU's time alone: what no row may exceed."""
BETTER = "the better of CPU and greedy"

Rows = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""The runs of each model and phone."""


def by_row(runs: Sequence[Mapping[str, Any]]) -> Rows:
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if "failed" not in run:
            rows.setdefault((run["model"], run["phone"]), []).append(run)
    return rows


def ratios(runs: Sequence[Mapping[str, Any]], ours: str, theirs: str) -> list[list[float]]:
    """Per run, the ratio of each round; `BETTER` is what the run's own trial found so."""
    found = []
    for run in runs:
        label = run["better"] if theirs == BETTER else theirs
        found.append(paired(run["timings"][ours]["samples_ns"], run["timings"][label]["samples_ns"]))
    return found


def make_figures(runs: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Against the better of CPU and greedy first; then against each; then row by row."""
    rows = by_row(runs)
    if not rows:
        return []
    counts = sorted({len(found) for found in rows.values()})
    tunings = " or ".join(map(str, counts)) + (" tuning" if counts == [1] else " tunings")
    where = f"{len(rows)} rows (the Parallax paper's models on emulated phones), {tunings} each"
    ours_by_name = {"": OURS, "_without_rows": WITHOUT}
    figures = []
    for theirs, name in ((BETTER, "better"), (GREEDY, "greedy"), (DEFAULT, "tflite_default"), (CPU, "cpu")):
        for suffix, ours in ours_by_name.items():
            shares = "no rows of operators shared" if suffix else "rows of operators shared where that is kept"
            figures.append(
                figure_of_medians(
                    f"paper.vs_{name}{suffix}",
                    f"latency less than that of {theirs}, {shares}, mean of {where}",
                    [ratios(found, ours, theirs) for found in rows.values()],
                    mean_reduction,
                    unit="percent",
                    bound=MEAN_GOAL if theirs in (BETTER, GREEDY) else None,
                    at_least=True,
                )
            )
    for theirs, name in ((BETTER, "better"), (GREEDY, "greedy")):
        best = min(rows, key=lambda row: median_of(ratios(rows[row], OURS, theirs)))
        figures.append(
            figure_of_medians(
                f"paper.best_vs_{name}",
                f"latency less than that of {theirs}, the best of the rows: {best[0]} on {best[1]}",
                [ratios(rows[best], OURS, theirs)],
                mean_reduction,
                unit="percent",
                bound=BEST_GOAL,
                at_least=True,
            )
        )
    cpu = row_figures(rows, "cpu", OURS, CPU, CPU_LIMIT)
    figures.append(
        rows_that_keep("paper.never_slower", f"of {where}, those that take at most {CPU_LIMIT} of the CPU's time", cpu)
    )
    for suffix, ours in ours_by_name.items():
        better = row_figures(rows, f"better{suffix}", ours, BETTER, 1.0)
        figures.append(
            rows_that_keep(
                f"paper.faster{suffix}",
                f"of {where}, those that take no longer than {BETTER}" + (", no rows shared" if suffix else ""),
                better,
                headline=not suffix,
            )
        )
        figures += better.values()
    return [*figures, *cpu.values()]


def row_figures(rows: Rows, name: str, ours: str, theirs: str, bound: float) -> dict[str, Figure]:
    """A ratio for each row."""
    return {
        f"{model} on {phone}": figure_of_medians(
            f"paper.{model}.{phone}.{name}",
            f"{model} on {phone}, {ours}: share of the time of {theirs}",
            [ratios(found, ours, theirs)],
            bound=bound,
            headline=False,
            note=f"{len(found)} tuning{'s' if len(found) > 1 else ''}",
        )
        for (model, phone), found in rows.items()
    }


def table(runs: Sequence[Mapping[str, Any]], figures: Sequence[Figure]) -> list[list[str]]:
    named = {figure.name: figure for figure in figures}
    lines = []
    for (model, phone), found in by_row(runs).items():
        cells = [model, phone, str(len(found))]
        for label in LABELS:
            cells.append(ms(statistics.median(run["timings"][label]["median_ns"] for run in found)))
        for name in ("better", "better_without_rows", "cpu"):
            figure = named[f"paper.{model}.{phone}.{name}"]
            low, high = figure.interval or (float("nan"), float("nan"))
            verdict = "" if figure.verdict is Verdict.MET else f" **{figure.verdict}**"
            cells.append(f"{figure.value:.3f} ({low:.3f} to {high:.3f}){verdict}")
        cells.append("; ".join(run["better"] for run in found))
        cells.append("; ".join(run["kept"] for run in found))
        cells.append("; ".join(run["kept_without"] for run in found))
        lines.append(cells)
    return lines


def make_report(runs: list[dict[str, Any]], *, rounds: int, cores: int) -> Report:
    figures = make_figures(runs)
    return Report(
        title="The Parallax paper's models on emulated phones",
        method=(
            f"Milliseconds: medians of {rounds} interleaved rounds per run (of the runs' medians), on {cores} cores "
            "of this machine, and everything as much faster as they are than the phone's processor. Ratios: medians "
            "of the rounds of all runs, with 95% intervals that count what differs from tuning to tuning; **not "
            f"shown** where they cross 1 (or {CPU_LIMIT} of the CPU's time). *{BETTER}*: as rounds of their own, "
            "before, found, in each run."
        ),
        columns=[
            "model",
            "device (emulated)",
            "runs",
            *LABELS,
            f"ours / {BETTER}",
            f"without rows / {BETTER}",
            f"ours / {CPU}",
            "the better was",
            "tuning kept",
            "without rows",
        ],
        rows=table(runs, figures),
        data={"rounds": rounds, "cores": cores, "runs": runs},
        figures=figures,
        remarks=[
            GREEDY_NOTE,
            "The ratio of CPU and accelerator is the device's, but branches on the CPU run beside each other on as "
            "many cores as this machine has, not on eight.",
            *(f"failed: {run['model']} on {run['phone']}, {run['failed']}" for run in runs if "failed" in run),
        ],
    )


def in_process(model: str, phone: str, *, run: int, rounds: int, cache: Path) -> dict[str, Any]:
    """One run of one row, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--one", model, phone, str(result), str(cache), "--rounds", str(rounds)]
        begin = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        row = json.loads(result.read_text()) if done.returncode == 0 else {"failed": f"exit code {done.returncode}"}
    return {"model": model, "phone": phone, "run": run, "seconds": time.monotonic() - begin} | row


def left(
    models: Sequence[str], phones: Sequence[str], runs: int, done: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, str, str]]:
    """What is still to be measured, run by run."""
    known = {(run["run"], run["model"], run["phone"]) for run in done if "failed" not in run}
    for number in range(1, runs + 1):
        for model in models:
            for phone in phones:
                if (number, model, phone) not in known:
                    yield number, model, phone


def earlier(path: Path, commit: str, rounds: int) -> list[dict[str, Any]]:
    """The runs of an earlier result. Raises: SystemExit if it is of another commit or another number of rounds."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["machine"]["commit"] != commit or document["rounds"] != rounds:
        raise SystemExit(
            f"{path.name} is of {document['machine']['commit']} with {document['rounds']} rounds: start anew"
        )
    return [run for run in document["runs"] if "failed" not in run]


def measure_all(arguments: Any, done: list[dict[str, Any]], keep: Callable[[], None]) -> None:
    """Append what is still to be measured to ``done``, while there is time; ``keep`` is called after each."""
    until = time.monotonic() + arguments.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        for number, model, phone in left(arguments.models, arguments.phones, arguments.runs, list(done)):
            before = [run["seconds"] for run in done if run["model"] == model]
            if time.monotonic() + (max(before) if before else 0) > until:
                say(f"no time left for run {number} of {model} on {phone}")
                return
            say(f"run {number}: {model} on {phone}")
            done.append(
                in_process(model, phone, run=number, rounds=arguments.rounds, cache=Path(folder) / f"run-{number}")
            )
            say(f"  {done[-1].get('kept') or done[-1].get('failed')}, {done[-1]['seconds']:.0f} s")
            keep()


def main() -> None:
    parser = make_parser(__doc__, "paper_parallax")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--phones", nargs="+", default=list(PHONES), metavar="PROFILE")
    parser.add_argument("--runs", type=int, default=RUNS, help="processes and tunings of each row")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds of each run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so many")
    parser.add_argument("--resume", action="store_true", help="go on with the runs that the results file has")
    parser.add_argument("--one", nargs=4, metavar="X", help="measure one row (used by the script itself)")
    arguments = parser.parse_args()
    cores = available_cores()
    if arguments.one:
        model, phone, result, cache = arguments.one
        row = measure_row(model, phone, rounds=arguments.rounds, cores=cores, cache=Path(cache))
        Path(result).write_text(json.dumps(row))
        return
    machine = describe_machine()
    results = arguments.output.with_suffix(".json")
    partial = arguments.output.with_suffix(".partial.json")
    done: list[dict[str, Any]] = []
    if arguments.resume:
        done = earlier(partial if partial.exists() else results, machine["commit"], arguments.rounds)

    def keep() -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"machine": machine, "rounds": arguments.rounds, "runs": done}))

    measure_all(arguments, done, keep)
    publish(make_report(done, rounds=arguments.rounds, cores=cores), arguments.output, machine)
    partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
