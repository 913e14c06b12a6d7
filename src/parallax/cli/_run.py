"""``parallax run``: run a model, show its outputs and its latency, keep them and a trace."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from parallax.cli._console import Screen, make_table, print_line, print_table
from parallax.cli._open import check_writable, prepare
from parallax.cli._plan_view import describe_adaptation, describe_plan, render_adaptation, summarise_memory
from parallax.cli._providers import parse_providers
from parallax.cli._types import show_shape
from parallax.cli._units import milliseconds, significant
from parallax.engine import TraceRecorder, write_chrome_trace
from parallax.errors import ConfigError
from parallax.options import Options


def run_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    options: Options,
    runs: int,
    seed: int,
    output_folder: Path | None,
    output_archive: Path | None,
    trace: Path | None,
    providers: Sequence[str],
    screen: Screen,
) -> None:
    """Run ``model`` once untimed, then ``runs`` times timed, and show what came of it."""
    for path in (output_archive, trace):
        if path is not None:
            check_writable(path)
    if output_folder is not None and output_folder.exists() and not output_folder.is_dir():
        raise ConfigError(f"{str(output_folder)!r} is a file", fix="name a folder")
    parse_providers(providers)
    subject = prepare(
        model,
        inputs=inputs,
        shapes=shapes,
        seed=seed,
        cache_dir=options.cache_dir,
        screen=screen,
        bundles=True,
        providers=providers,
    )
    if options.tune and subject.source.is_bundle:
        raise ConfigError(f"{model!r} is compiled: its plan is fixed", fix="tune when it is made: `parallax compile`")
    recorder = TraceRecorder() if trace is not None else None
    with screen.progress() as progress:
        session = subject.open(replace(options, trace=recorder, progress=progress), providers=providers)
        if options.tune and session.plan.provenance.is_noisy:
            screen.notice(f"tuning came to no conclusion: {session.plan.provenance.reason}")
        values = subject.run(session)  # untimed: first-run allocations are not the model's latency
        if recorder is not None:
            recorder.take()
        durations_ns = []
        for number in range(runs):
            begin = time.perf_counter_ns()
            values = session.run(None, subject.feeds)
            durations_ns.append(time.perf_counter_ns() - begin)
            progress("running", number + 1, runs)
    outputs = dict(zip([entry.name for entry in session.get_outputs()], values, strict=True))
    saved = _save(outputs, folder=output_folder, archive=output_archive)
    report: dict[str, Any] = {
        "model": subject.source.label,
        "inputs": [_describe_value(name, value) for name, value in subject.feeds.items()],
        "outputs": [_describe_value(name, value) for name, value in outputs.items()],
        "latency_ms": {
            "runs": runs,
            "median": statistics.median(durations_ns) / 1e6,
            "min": min(durations_ns) / 1e6,
            "max": max(durations_ns) / 1e6,
        },
        "plan": describe_plan(session.plan),
        "adaptation": describe_adaptation(session.adaptation),
        "memory": session.memory().to_json(),
        "saved": saved,
        "trace": None if trace is None else str(trace),
    }
    if recorder is not None and trace is not None:
        spans = recorder.take()
        write_chrome_trace(spans, trace)
        report["trace_spans"] = len(spans)

    def render(console: Console) -> None:
        table = make_table("output", "type", "shape", "min", "mean", "max", left=3)
        for row in report["outputs"]:
            figures = [_figure(row[key]) for key in ("min", "mean", "max")]
            table.add_row(row["name"], row["type"], show_shape(row["shape"]), *figures)
        print_table(console, table, optional=("type", "mean", "max", "min"))
        for row in report["outputs"]:
            if row["not_finite"]:
                print_line(
                    console, f"{row['not_finite']} elements of {row['name']} are NaN or infinite; not in the figures"
                )
        print_line(
            console,
            f"latency: median {milliseconds(statistics.median(durations_ns))} ms, "
            f"{milliseconds(min(durations_ns))} to {milliseconds(max(durations_ns))} ms in {runs} runs",
        )
        print_line(console, f"plan: {report['plan']['summary']}")
        render_adaptation(report["adaptation"], console)
        print_line(console, f"memory: {summarise_memory(report['memory'])}")
        for path in (*saved, *([] if trace is None else [str(trace)])):
            print_line(console, f"wrote {path}")

    screen.show(report, render)


def _describe_value(name: str, value: Any) -> dict[str, Any]:
    """Type, shape, and the range of its finite elements; figures are None where there is nothing to measure."""
    row: dict[str, Any] = {"name": name, "type": type(value).__name__, "shape": None}
    row |= {"min": None, "mean": None, "max": None, "not_finite": 0}
    if not isinstance(value, np.ndarray):
        if isinstance(value, list):
            row["shape"] = [len(value)]
        return row
    row["type"] = "string" if value.dtype.kind in "OSU" else str(value.dtype)
    row["shape"] = list(value.shape)
    if value.dtype.kind in "biuf" and value.size:
        finite = value[np.isfinite(value)] if value.dtype.kind == "f" else value.reshape(-1)
        row["not_finite"] = value.size - finite.size
        if finite.size:
            row["min"], row["max"] = finite.min().item(), finite.max().item()
            row["mean"] = float(finite.mean(dtype=np.float64))
    return row


def _save(outputs: Mapping[str, Any], *, folder: Path | None, archive: Path | None) -> list[str]:
    """Write outputs as ``.npy`` files into a folder, as one ``.npz``, or both. Returns the files written."""
    arrays = {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}
    # numpy stores strings without pickling only as fixed-width ones.
    arrays = {name: value.astype(str) if value.dtype == object else value for name, value in arrays.items()}
    written = []
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in arrays.items():
                path = folder / f"{_file_name(name)}.npy"
                np.save(path, value)
                written.append(str(path))
        if archive is not None:
            with archive.open("wb") as file:  # given a name, numpy would append .npz to it
                np.savez(file, allow_pickle=False, **arrays)
            written.append(str(archive))
    except OSError as error:
        raise ConfigError(
            f"cannot write outputs: {error}", fix="choose another place with --output or --save"
        ) from error
    return written


def _file_name(name: str) -> str:
    """A tensor's name made safe as a file's: names may hold slashes, colons and worse."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".") or "output"


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else significant(value) if abs(value) < 1e6 else f"{value:d}"
