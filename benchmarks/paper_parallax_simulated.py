"""The Parallax paper's models (arXiv 2512.11532) on phones, **simulated**: nothing here was timed.

For each of five models and three phones: the CPU alone; greedy delegation with sequential fallback, as today's
runtimes do it; TFLite's default; the paper's thresholds; HEFT over whole regions, as onert and Band schedule them;
regions beside the CPU; rows of operators shared between both sides; and both in one plan. Operators are priced on four
equal cores that together are as fast as the phone's processor, accelerators by the phone's profile, and what runs at
the same time is decided by the dispatcher that the engine runs. Any machine gives the same figures.

Rows are shared as ``policy="rows-and-regions"`` does it: within chains, with layers left whole where that is predicted
to gain, and regions elsewhere. Beside that stand regions alone, and rows wherever they can be split.

A second table asks how much hangs on what is assumed: see `_sensitivity.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import describe_machine, make_parser, ms, say
from _figures import Figure
from _paper import BEST_GOAL, GREEDY_NOTE, MEAN_GOAL, MODELS, PHONES, load_converted
from _paper_simulated import CORES, simulate_row
from _sections import Section, publish_sections
from _sensitivity import ASSUMPTIONS

AS_PROFILED = "as_profiled"
FLIPS = 0
"""Tuned sessions try up to 64, which changes little here and takes minutes."""

Row = Mapping[str, Any]


def better_ns(row: Row) -> int:
    """The better of the CPU alone and greedy delegation."""
    return min(int(row["cpu_only_ns"]), int(row["greedy_ns"]))


def without_rows_ns(row: Row) -> int:
    return min(int(row["regions_ns"]), int(row["cpu_only_ns"]))


def either_ns(row: Row) -> int:
    """The better of regions alone and rows wherever they can be split."""
    everywhere = row["rows_everywhere_ns"]
    return min(without_rows_ns(row), without_rows_ns(row) if everywhere is None else int(everywhere))


def ours_ns(row: Row) -> int:
    return min(int(row["ours_ns"]), int(row["cpu_only_ns"]))


def reductions(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Per comparison, the share of time saved in each row."""
    return {
        "better": [1 - ours_ns(row) / better_ns(row) for row in rows],
        "better_without_rows": [1 - without_rows_ns(row) / better_ns(row) for row in rows],
        "greedy": [1 - ours_ns(row) / row["greedy_ns"] for row in rows],
        "greedy_without_rows": [1 - without_rows_ns(row) / row["greedy_ns"] for row in rows],
        "tflite_default": [1 - ours_ns(row) / row["greedy_default_ns"] for row in rows],
        "cpu": [1 - ours_ns(row) / row["cpu_only_ns"] for row in rows],
        "either": [1 - ours_ns(row) / either_ns(row) for row in rows],
    }


WORDS = {
    "better": "the better of CPU and greedy, rows of operators shared",
    "better_without_rows": "the better of CPU and greedy, no rows of operators shared",
    "greedy": "greedy, rows of operators shared",
    "greedy_without_rows": "greedy, no rows of operators shared",
    "tflite_default": "TFLite's default, rows of operators shared",
    "cpu": "the CPU alone, rows of operators shared",
    "either": "the better of regions alone and rows wherever they can be split, both in one plan",
}


def make_figures(key: str, rows: Sequence[Row]) -> list[Figure]:
    """Of one set of assumptions; simulated, so that the value is its own interval."""
    title, figures = ASSUMPTIONS[key].title, []
    for name, gains in reductions(rows).items():
        mean = statistics.mean(gains)
        promised = key == AS_PROFILED and name.startswith(("better", "greedy"))
        figures.append(
            Figure(
                name=f"paper_simulated.{key}.{name}",
                what=f"simulated, {title}: latency less than that of {WORDS[name]}, mean of {len(rows)} rows",
                value=mean,
                unit="percent",
                interval=(mean, mean),
                bound=MEAN_GOAL if promised else None,
                at_least=True,
                headline=key == AS_PROFILED and name.startswith("better"),
            )
        )
    best = max(reductions(rows)["better"])
    figures.append(
        Figure(
            name=f"paper_simulated.{key}.best",
            what=f"simulated, {title}: latency less than that of the better of CPU and greedy, the best row",
            value=best,
            unit="percent",
            interval=(best, best),
            bound=BEST_GOAL if key == AS_PROFILED else None,
            at_least=True,
            headline=False,
        )
    )
    return figures


def policies(rows: Sequence[Row]) -> Section:
    """Every policy, as the profiles have it."""
    cells = []
    for row in rows:
        split = everywhere = "-"
        if row["rows_ns"] is not None:
            split = f"{ms(row['rows_ns'])} ({row['rows_share']:.0%}, {row['rows_whole']} whole)"
            everywhere = ms(row["rows_everywhere_ns"])
        cells.append(
            [
                row["model"],
                row["phone"],
                *(ms(row[key]) for key in ("cpu_only_ns", "greedy_ns", "greedy_kept_ns", "greedy_default_ns")),
                *(ms(row[key]) for key in ("paper_rule_ns", "heft_ns", "regions_ns")),
                everywhere,
                split,
                f"{1 - ours_ns(row) / either_ns(row):.1%}",
                f"{1 - ours_ns(row) / better_ns(row):.0%}",
                f"{1 - without_rows_ns(row) / better_ns(row):.0%}",
                f"{row['fragments']} > {row['ours_regions']}",
                f"{row['shape_original']} > {row['shape_greedy']} > {row['shape_regions']}",
                " / ".join("-" if value is None else str(value) for value in row["paper_ms"] or ()),
                row["paper_shapes"] or "",
            ]
        )
    return Section(
        title="Simulated: as the profiles have it",
        method=(
            f"Milliseconds, simulated on {CORES} equal cores that are together as fast as the phone's. "
            "Shapes: nodes/layers/parallel layers/most branches of a layer."
        ),
        columns=[
            "model",
            "device",
            "CPU only",
            "greedy",
            "greedy-kept",
            "TFLite's default",
            "paper's thresholds",
            "HEFT",
            "regions",
            "rows wherever they can be split",
            "rows and regions (share, layers left whole)",
            "less than the better of the two before",
            "less than the better of CPU and greedy",
            "without rows",
            "fragments > regions",
            "graph > greedy > regions",
            "paper: CPU / greedy / Parallax CPU / with accelerator",
            "paper: graph > greedy > Parallax",
        ],
        rows=cells,
        data={"results": list(rows)},
        figures=make_figures(AS_PROFILED, rows),
        remarks=[
            GREEDY_NOTE + "; greedy-kept: as if tensors between fragments stayed on the device",
            "the paper's columns: the lower of its two latencies, measured on phones. It took other exports of the "
            "models (all of Whisper, SwinV2 in float16, texts of 16 to 77 tokens), other accelerators (a TPU and NPUs "
            "through NNAPI), and counts nodes of TFLite graphs",
            "greedy delegation is dearer there: the profiles count a launch and copies for each fragment, not what a "
            "driver adds",
        ],
    )


def assumptions(found: Mapping[str, Sequence[Row]]) -> Section:
    """The means under each assumption."""
    return Section(
        title="Simulated: what hangs on the assumptions",
        method="Latency less, mean over the rows. Nothing here was timed.",
        columns=["assumed", *WORDS.values()],
        rows=[
            [ASSUMPTIONS[key].title, *(f"{statistics.mean(gains):.1%}" for gains in reductions(rows).values())]
            for key, rows in found.items()
        ],
        data={key: list(rows) for key, rows in found.items() if key != AS_PROFILED},
        figures=[figure for key, rows in found.items() if key != AS_PROFILED for figure in make_figures(key, rows)],
        remarks=["Each assumption alone, all else as the profiles have it; see `_sensitivity.py` for what each means."],
    )


def main() -> None:
    parser = make_parser(__doc__, "paper_parallax_simulated")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--phones", nargs="+", default=list(PHONES), metavar="PROFILE")
    parser.add_argument("--assumptions", nargs="+", default=list(ASSUMPTIONS), choices=list(ASSUMPTIONS))
    parser.add_argument("--flips", type=int, default=FLIPS, help="branches that the search may move one by one")
    arguments = parser.parse_args()
    machine = describe_machine()
    found: dict[str, list[Row]] = {key: [] for key in dict.fromkeys((AS_PROFILED, *arguments.assumptions))}
    for name in arguments.models:
        model = load_converted(name)
        for phone in arguments.phones:
            for key, rows in found.items():
                say(f"{name} on {phone}, {ASSUMPTIONS[key].title}")
                rows.append(simulate_row(name, phone, model, ASSUMPTIONS[key], flips=arguments.flips))
    sections = {"policies": policies(found[AS_PROFILED]), "assumptions": assumptions(found)}
    title = "The Parallax paper's models on emulated phones, simulated"
    publish_sections(title, sections, Path(arguments.output), machine, json_copy=None)


if __name__ == "__main__":
    main()
