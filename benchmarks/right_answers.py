"""Damaged bundles, and every option in every mode: how many were tried, and how many were not as they should be.

    python benchmarks/right_answers.py                     # both, about 15 minutes
    python benchmarks/right_answers.py --only bundles

The random structured models, which are the third of the kind, are `python -m tests.fuzz`. All three are tests too, in
the slow suite; as a benchmark each leaves a results file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import Report, describe_machine, make_parser, publish, say
from _figures import ROOT, Figure, counted

sys.path.insert(0, str(ROOT))

from tests.bundle._mutations import UNNOTICEABLE
from tests.bundle.test_fuzz import BATCH, Case, faults, make_subjects, try_all

OPTIONS_TEST = "tests/session/test_every_option_in_every_mode.py"
LEAST_BUNDLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one of the two suites came to."""

    figures: Sequence[Figure]
    rows: Sequence[Sequence[str]]
    data: dict[str, Any]


def damaged_bundles(seeds: range) -> Part:
    """Damage and forge a bundle per seed, open and run it.

    Raises: AssertionError if a worker process fails by itself.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_subjects(folder / "subjects")
        cases: list[Case] = []
        for first in range(seeds.start, seeds.stop, BATCH):
            cases += try_all(folder / "subjects", range(first, min(first + BATCH, seeds.stop)))
            say(f"bundles: {len(cases)} of {len(seeds)}: {dict(Counter(case.word for case in cases))}")
        bad = faults(cases, folder / "work")
    words = Counter(case.word for case in cases)
    for case in bad:
        say(f"bundle {case.seed}, {case.kind}: {case.outcome}")
    kinds = sorted({case.kind for case in cases})
    figures = [
        counted(
            "bundle_fuzz.bundles",
            f"damaged or forged bundles, of {len(kinds)} kinds",
            len(cases),
            bound=LEAST_BUNDLES,
            at_least=True,
            note=(
                f"{words['refused']} refused with an error of Parallax, {words['right']} with the right answer, "
                f"{words['other']} whole and consistent bundles of another model"
            ),
        ),
        counted(
            "bundle_fuzz.faults",
            "damaged or forged bundles: wrong answers, exceptions that are not Parallax's, crashes and hangs that "
            "ONNX Runtime alone does not have",
            len(bad),
            bound=0,
        ),
    ]
    rows = [["bundle: " + kind, *_counts([case for case in cases if case.kind == kind], bad)] for kind in kinds]
    return Part(figures=figures, rows=rows, data={"bundles": dict(words), "unnoticeable": sorted(UNNOTICEABLE)})


def _counts(cases: Sequence[Case], bad: Sequence[Case]) -> list[str]:
    return [str(len(cases)), str(sum(case in bad for case in cases))]


def options_in_modes() -> Part:
    """Run the test that opens a session with every option in every mode, and count by mode.

    Raises: RuntimeError if the test cannot be run.
    """
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "options.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", f"--junitxml={result}", OPTIONS_TEST]
        say(f"options: {OPTIONS_TEST}")
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if not result.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and left no results")
        cases = list(ElementTree.parse(result).iter("testcase"))
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    options = set()
    for case in cases:
        test, _, row = case.attrib["name"].removesuffix("]").partition("[")
        if not test.startswith("test_an_option_has_the_effect"):
            continue
        option, mode = _option_and_mode(row)
        options.add(option)
        tried[mode] += 1
        failed[mode] += any(case.find(word) is not None for word in ("failure", "error", "skipped"))
    figures = [
        counted(
            "options.cases",
            f"settings of SessionOptions, RunOptions and the constructor ({len(options)}), each in {len(tried)} modes: "
            "sessions compared with ONNX Runtime's",
            sum(tried.values()),
        ),
        counted(
            "options.faults",
            "settings in modes: those without the effect that they have in ONNX Runtime, where nothing says so",
            sum(failed.values()),
            bound=0,
        ),
    ]
    rows = [["options: " + mode, str(tried[mode]), str(failed[mode])] for mode in sorted(tried)]
    return Part(figures=figures, rows=rows, data={"options": dict(tried)})


def _option_and_mode(row: str) -> tuple[str, str]:
    """The two parameters of a test, whose names pytest joins by a hyphen."""
    from tests.session.test_every_option_in_every_mode import MODES

    for mode in sorted((*MODES, "tuned"), key=len, reverse=True):
        if row.endswith(f"-{mode}"):
            return row.removesuffix(f"-{mode}"), mode
        if row.startswith(f"{mode}-"):
            return row.removeprefix(f"{mode}-"), mode
    raise ValueError(f"no mode in {row!r}")


def main() -> int:
    """0 if nothing was wrong."""
    parser = make_parser(__doc__, "right_answers")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=("bundles", "options"), help="one of the two; both by default")
    parser.add_argument("--seeds", type=int, default=LEAST_BUNDLES, metavar="N", help="bundles to damage")
    arguments = parser.parse_args()
    machine = describe_machine()
    parts = []
    if arguments.only != "options":
        parts.append(damaged_bundles(range(arguments.seeds)))
    if arguments.only != "bundles":
        parts.append(options_in_modes())
    figures = [figure for part in parts for figure in part.figures]
    report = Report(
        title="Damaged bundles, and every option in every mode",
        method="Each is run beside plain ONNX Runtime, and the answers are compared.",
        columns=["what", "tried", "not as they should be"],
        rows=[row for part in parts for row in part.rows],
        data={key: value for part in parts for key, value in part.data.items()},
        figures=figures,
    )
    publish(report, arguments.output, machine)
    return 1 if any(figure.name.endswith(".faults") and figure.value for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
