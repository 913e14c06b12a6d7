"""``python -m tests.fuzz FIRST LAST``: random structured models in every mode, beside ONNX Runtime.

With ``--output FILE.json`` a results file is written, and the same as Markdown beside it.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _common import Report, describe_machine, publish, say  # noqa: E402
from _figures import Figure, counted  # noqa: E402

from tests.fuzz._chunks import run_seeds  # noqa: E402
from tests.fuzz._counts import Counts, Kind  # noqa: E402
from tests.fuzz._modes import MODES  # noqa: E402

CHUNK = 50
"""Seeds tried in one process."""
LEAST_MODELS = 3000


def figures(counts: Counts) -> list[Figure]:
    """What the README says of it."""
    bundles = sum(counts.opened[mode] for mode in MODES if "bundle" in mode)
    note = f"{sum(counts.opened.values())} sessions, {bundles} of them of bundles"
    if counts.excluded:
        note += f"; left out, since ONNX Runtime alone crashes on them: seeds {', '.join(map(str, counts.excluded))}"
    said = {
        Kind.WRONG: "wrong answers",
        Kind.FOREIGN: "exceptions that are neither Parallax's nor ONNX Runtime's",
        Kind.DIED: "crashes and hangs that ONNX Runtime alone does not have",
        Kind.REFUSED: "refusals of what ONNX Runtime runs",
    }
    return [
        counted(
            "fuzz.models",
            f"random structured models that ONNX Runtime runs, each in {len(MODES)} modes",
            counts.valid,
            bound=LEAST_MODELS,
            at_least=True,
            note=note,
        ),
        counted("fuzz.faults", f"random structured models: {'; '.join(said.values())}", len(counts.faults), bound=0),
        *(
            counted(
                f"fuzz.{kind.name.lower()}",
                f"random structured models: {what}",
                counts.of(kind),
                bound=0,
                headline=False,
            )
            for kind, what in said.items()
        ),
    ]


def report(counts: Counts, seeds: range) -> Report:
    return Report(
        title="Random structured models",
        method=(
            f"The models of seeds {seeds.start} to {seeds.stop - 1}, opened by each mode and run on one or two sets of "
            "inputs. Declared inputs and outputs, and all outputs, are compared with ONNX Runtime's."
        ),
        columns=["mode", "sessions", "of several segments", "runs compared", *map(str, Kind)],
        rows=[
            [mode, *(str(c[mode]) for c in (counts.opened, counts.split, counts.runs))]
            + [str(sum(f.mode == mode and f.kind is kind for f in counts.faults)) for kind in Kind]
            for mode in MODES
        ],
        data=counts.to_json(),
        figures=figures(counts),
        remarks=[f"{len(counts.invalid)} further models are refused by ONNX Runtime itself."],
    )


def main() -> int:
    """0 if there was no fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, help="the first seed that is not tried")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--output", type=Path, help="results file to write; none by default")
    arguments = parser.parse_args()
    machine = describe_machine()
    seeds = range(arguments.first, arguments.last)
    counts = Counts()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
        for chunk, found in zip(chunks, pool.map(run_seeds, chunks), strict=True):
            for fault in found.faults:
                say(str(fault))
            say(f"{chunk.start} to {chunk.stop - 1}: {found.summary()}")
            counts.add(found)
    print(counts.summary())
    if arguments.output is not None:
        publish(report(counts, seeds), arguments.output.with_suffix(".md"), machine)
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
