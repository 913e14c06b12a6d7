"""What every benchmark shares: the machine's description, result files, tables, zoo models with inputs.

Timing itself (variants that take turns, pauses until spinning pools are quiet, ratios round by round) is
`parallax.cli`'s, so that `parallax bench` and these scripts measure alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
from _figures import Figure, commit_hash, origin_of, table_lines

import parallax
from parallax import zoo
from parallax.cli import Ratio, Timing
from parallax.machine import available_cores
from parallax.profile import machine_fingerprint
from parallax.schedule import Provenance

RESULTS = Path(__file__).parent / "results"

ORIGIN = Provenance(
    source="forced",
    whole_ns=None,
    chosen_ns=None,
    candidates=(),
    runtime_version=onnxruntime.__version__,
    machine="",
    reason="benchmark",
)
"""Of plans that a benchmark makes itself."""


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge the figures; names neither host nor user."""
    memory = psutil.virtual_memory()
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "machine": machine_fingerprint(),
        "cores_used": available_cores(),
        "cores_of_machine": os.cpu_count(),
        "memory_gib": round(memory.total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "parallax": parallax.__version__,
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "commit": commit_hash(),
        "load_before": None if load is None else [round(figure, 2) for figure in load],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One benchmark's result: Markdown for people, JSON for programs, both with the machine."""

    title: str
    method: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Mapping[str, Any]
    figures: Sequence[Figure]
    """What the whole stands for, with bounds and verdicts."""
    remarks: Sequence[str] = ()

    def markdown(self, machine: Mapping[str, Any]) -> str:
        lines = [f"# {self.title}", "", self.method, ""]
        lines += figure_lines(self.figures, machine)
        lines += markdown_table(self.columns, self.rows)
        lines += ["", *(f"* {remark}" for remark in self.remarks), "", "## Machine", ""]
        lines += [f"* {key.replace('_', ' ')}: {value}" for key, value in machine.items()]
        return "\n".join(lines) + "\n"


def figure_lines(figures: Sequence[Figure], machine: Mapping[str, Any]) -> list[str]:
    """The figures as a Markdown table, with an empty line after it."""
    return [*table_lines([figure.to_json(origin_of(machine)) for figure in figures]), ""]


def dump_figures(figures: Sequence[Figure], machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For a results file."""
    return [figure.to_json(origin_of(machine)) for figure in figures]


def publish(report: Report, output: Path, machine: Mapping[str, Any]) -> None:
    """Print the table; write ``output`` (Markdown) and the same name with ``.json``."""
    text = report.markdown(machine)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    document = {
        "title": report.title,
        "machine": dict(machine),
        "figures": dump_figures(report.figures, machine),
        **report.data,
    }
    output.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(text)
    say(f"wrote {output} and {output.with_suffix('.json').name}")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_markdown_row(columns), _markdown_row(["---"] * len(columns)), *map(_markdown_row, rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with ``--output``, which every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=RESULTS / f"{name}.md", help="Markdown file to write; the JSON goes beside it"
    )
    return parser


def say(text: str) -> None:
    """Progress, on stderr so that stdout is the report."""
    print(text, file=sys.stderr, flush=True)


def pick_models(names: Sequence[str]) -> tuple[str, ...]:
    """Zoo models by name; ``paper`` stands for the ten of the papers, ``all`` for every one."""
    picked: dict[str, None] = {}
    for name in names:
        group = {"paper": zoo.PAPER_MODELS, "all": zoo.names()}.get(name, (name,))
        picked.update(dict.fromkeys(group))
    missing = sorted(set(picked) - set(zoo.names()))
    if missing:
        raise SystemExit(f"no such zoo models: {', '.join(missing)}; there are {', '.join(zoo.names())}")
    return tuple(picked)


def open_inputs(path: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]] | None:
    """Shapes for ``InferenceSession(shapes=)``: of the inputs that the model leaves open."""
    graph = parallax.model.load_model(path).graph
    return {info.name: feeds[info.name].shape for info in graph.inputs if not info.is_static} or None


def ms(ns: float) -> str:
    """Milliseconds with three significant digits."""
    value = ns / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def us(ns: float) -> str:
    """Microseconds with one decimal."""
    return f"{ns / 1e3:.1f}"


def spread(timing: Timing, unit: Callable[[float], str] = ms) -> str:
    """``median (first quartile - third quartile)``."""
    low, high = timing.quartiles_ns
    return f"{unit(timing.median_ns)} ({unit(low)} - {unit(high)})"


def show_ratio(ratio: Ratio) -> str:
    """``median (first quartile - third quartile)`` of per-round ratios."""
    return f"{ratio.median:.3f} ({ratio.low:.3f} - {ratio.high:.3f})"


def dump_timing(timing: Timing) -> dict[str, Any]:
    """For JSON: the samples themselves, so that anyone can compute another statistic."""
    return {
        "median_ns": timing.median_ns,
        "samples_ns": [round(sample) for sample in timing.samples_ns],
        "discarded_rounds": timing.discarded_rounds,
    }


# One model after the other, each in a process of its own ----------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser, *, groups: str) -> None:
    """Which models, how many rounds, how many threads; and the option by which a script calls itself."""
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME", help=f"zoo models; {groups}")
    parser.add_argument("--runs", type=int, default=30, help="interleaved rounds per model")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument(
        "--one", nargs=2, metavar=("NAME", "FILE"), help="measure one model and write JSON (used by the script itself)"
    )


def measure_as_child(measure: Callable[..., dict[str, Any]], arguments: argparse.Namespace) -> None:
    """What ``--one`` asks for: ``measure(name, runs=, threads=, folder=)``, its answer as JSON."""
    name, result = arguments.one
    with tempfile.TemporaryDirectory() as folder:
        row = measure(name, runs=arguments.runs, threads=arguments.threads, folder=Path(folder))
    Path(result).write_text(json.dumps(row))


def in_child(script: str, name: str, *, runs: int, threads: int, more: Sequence[str] = ()) -> dict[str, Any]:
    """Have a script measure one model in a process of its own: nothing of the models before it lingers.

    Args:
        more: arguments of the script's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A file, not stdout: the runtime's memory planner prints there.
        result = Path(folder) / "row.json"
        command = [sys.executable, script, "--one", name, str(result), "--runs", str(runs), "--threads", str(threads)]
        command += more
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            return {"model": name, "failed": f"exit code {done.returncode}; see stderr"}
        row: dict[str, Any] = json.loads(result.read_text())
        return row


def samples_of(row: Mapping[str, Any], label: str) -> list[float]:
    """One variant's samples of a row's ``timings``, in ns."""
    return list(row["timings"][label]["samples_ns"])


def load_timings(row: Mapping[str, Any]) -> dict[str, Timing]:
    """The inverse of `dump_timing`, for each of a row's ``timings``."""
    return {
        label: Timing(label=label, samples_ns=tuple(entry["samples_ns"]), discarded_rounds=entry["discarded_rounds"])
        for label, entry in row["timings"].items()
    }
