"""What a process costs that starts, imports, opens and answers once: whole processes, ONNX Runtime's and ours in turn.

Time runs from before a process is started to its first answer, and memory is the most that was resident until then
(mapped files included). For a bundle and for a model that is opened with no options, per reference model; and for
imports alone: of ``parallax``, which loads nothing before it is used, and of its ``InferenceSession``, which is what
``import onnxruntime`` gives. Models and bundles were read once before, so that all start from the page cache, and so
were the libraries; modules are compiled, as they are where a package was installed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _whole
from _common import Report, describe_machine, make_parser, ms, pick_models, publish, say
from _figures import Figure
from _fresh import save_feeds
from _intervals import figure_of_medians, paired, rows_that_keep
from _processes import Process, in_turn

import parallax
from parallax import zoo

IMPORT_LIMIT = 1.15
BUNDLE_MEAN, BUNDLE_LIMIT = 0.70, 0.95
MODEL_MEAN, MODEL_LIMIT = 1.15, 1.3
"""Of ONNX Runtime's: geometric mean over the models, and each."""

OURS = {
    _whole.BUNDLE: ("bundle", "Parallax on a bundle", BUNDLE_MEAN, BUNDLE_LIMIT),
    _whole.MODEL: ("model", "Parallax on the model, no options given", MODEL_MEAN, MODEL_LIMIT),
}
IMPORTS = {_whole.IMPORT_OURS: "import", _whole.IMPORT_SESSION: "import_session"}


def measure_imports(rounds: int) -> dict[str, list[Process]]:
    say("imports")
    in_turn(dict.fromkeys(_whole.IMPORTS, ()), rounds=1)  # reads the libraries from the disk
    return in_turn(dict.fromkeys(_whole.IMPORTS, ()), rounds=rounds)


def measure_model(name: str, rounds: int) -> dict[str, list[Process]]:
    """Processes by variant."""
    say(name)
    model = Path(zoo.load(name))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cache = folder / "cache"  # what was tuned on this machine before is another benchmark
        bundle = parallax.compile(model, folder / "model.plx", cache_dir=cache)
        feeds = save_feeds(zoo.example_inputs(name), folder)
        paths = {_whole.RUNTIME: model, _whole.BUNDLE: bundle, _whole.MODEL: model}
        variants = {variant: (str(path), feeds) for variant, path in paths.items()}
        in_turn(variants, rounds=1, cache=cache)  # reads all files into the page cache
        return in_turn(variants, rounds=rounds, cache=cache)


def times(processes: Sequence[Process]) -> list[float]:
    """In ns."""
    return [process.elapsed_ns for process in processes]


def peaks(processes: Sequence[Process]) -> list[float]:
    """In bytes."""
    return [process.peak_bytes for process in processes]


def beyond(
    processes: Sequence[Process], bare: Sequence[Process], of: Callable[[Sequence[Process]], list[float]]
) -> Any:
    """What was taken beyond the median of processes that do nothing, at least something."""
    base = statistics.median(of(bare))
    return [max(1.0, value - base) for value in of(processes)]


def import_figures(imports: Mapping[str, Sequence[Process]]) -> list[Figure]:
    bare = imports[_whole.NOTHING]
    figures = []
    for variant, name in IMPORTS.items():
        for suffix, what, of in (("", "time", times), ("_memory", "peak memory", peaks)):
            ratios = paired(beyond(imports[variant], bare, of), beyond(imports[_whole.IMPORT_RUNTIME], bare, of))
            figures.append(
                figure_of_medians(
                    f"start.{name}{suffix}",
                    f"`{variant}` in a fresh process: share of the {what} of `import onnxruntime`",
                    [[ratios]],
                    bound=IMPORT_LIMIT,
                )
            )
    return figures


def model_figures(models: Mapping[str, Mapping[str, Sequence[Process]]]) -> list[Figure]:
    """Means over the models, each model's own, and the memory."""
    figures = []
    process = "from the start of a process to its first answer, imports included"
    for variant, (short, who, mean, limit) in OURS.items():
        measured = {name: found for name, found in models.items() if variant in found and _whole.RUNTIME in found}
        if not measured:
            continue
        ratios = {name: paired(times(found[variant]), times(found[_whole.RUNTIME])) for name, found in measured.items()}
        memory = {name: paired(peaks(found[variant]), peaks(found[_whole.RUNTIME])) for name, found in measured.items()}
        rows = {
            name: figure_of_medians(
                f"start.{short}.{name}",
                f"{name}, {process}: {who}, share of ONNX Runtime's time on the model",
                [[ratios[name]]],
                bound=limit,
                headline=False,
            )
            for name in measured
        }
        values = [row.value for row in rows.values()]
        figures += [
            figure_of_medians(
                f"start.{short}",
                f"{process}: {who}, share of ONNX Runtime's time on the model, geometric mean over {len(rows)} models",
                [[found] for found in ratios.values()],
                bound=mean,
            ),
            *rows.values(),
            rows_that_keep(
                f"start.{short}_models",
                f"of {len(rows)} models, those whose process, {who}, takes at most {limit} of ONNX Runtime's time",
                rows,
                note=f"from {min(values):.2f} to {max(values):.2f} of it",
            ),
            figure_of_medians(
                f"start.{short}_memory",
                f"most memory resident from the start of a process to its first answer, mapped files included: {who}, "
                f"share of ONNX Runtime's on the model, geometric mean over {len(rows)} models",
                [[found] for found in memory.values()],
                headline=False,
            ),
        ]
    return figures


def table(models: Mapping[str, Mapping[str, Sequence[Process]]], imports: Mapping[str, Sequence[Process]]) -> list[Any]:
    rows = []
    for name, found in [("imports", imports), *models.items()]:
        theirs = found.get(_whole.IMPORT_RUNTIME if name == "imports" else _whole.RUNTIME, ())
        for variant, processes in found.items():
            compared = ""
            if theirs and processes is not theirs and len(processes) == len(theirs):
                compared = f"{statistics.median(paired(times(processes), times(theirs))):.3f}"
            middle, peak = statistics.median(times(processes)), statistics.median(peaks(processes))
            rows.append([name, variant, ms(middle), compared, f"{peak / 2**20:.0f}" if peak else "not told"])
    return rows


def make_report(
    models: Mapping[str, Mapping[str, Sequence[Process]]],
    imports: Mapping[str, Sequence[Process]],
    arguments: argparse.Namespace,
) -> Report:
    def dump(found: Mapping[str, Sequence[Process]]) -> dict[str, Any]:
        return {variant: [asdict(process) for process in processes] for variant, processes in found.items()}

    return Report(
        title="Start of a process",
        method=(
            f"Whole processes, from their start to their first answer, medians of {arguments.rounds} each, in turn; "
            "ratios are medians of the rounds' ratios to ONNX Runtime's process. Memory is the most that was resident "
            "until then, mapped files included. Models, bundles and libraries are in the page cache."
        ),
        columns=["model", "", "ms", "of ONNX Runtime's", "MiB at peak"],
        rows=table(models, imports),
        data={
            "rounds": arguments.rounds,
            "imports": dump(imports),
            "models": {name: dump(found) for name, found in models.items()},
        },
        figures=[*import_figures(imports), *model_figures(models)],
        remarks=["A process that only imports begins like one that does nothing, which is taken off in the figures."],
    )


def main() -> None:
    parser = make_parser(__doc__, "start")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well")
    arguments = parser.parse_args()
    machine = describe_machine()
    imports = measure_imports(arguments.rounds)
    models = {name: measure_model(name, arguments.rounds) for name in pick_models(arguments.models)}
    publish(make_report(models, imports, arguments), arguments.output, machine)
    if arguments.json is not None:
        arguments.json.write_text(arguments.output.with_suffix(".json").read_text())


if __name__ == "__main__":
    main()
