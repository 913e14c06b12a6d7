"""Put the benchmarks' figures into the texts, or check that the texts say what the results files say.

    python tools/readme_figures.py            # write the tables between the markers
    python tools/readme_figures.py --check    # fail where a text and its results files differ (CI runs this)

Every ``benchmarks/results/*.json`` has a list of figures (`benchmarks/_figures.py`). README.md gets the headlines that
have a bound, and a page of ``docs`` the figures that its markers name (`SOME`), each with a link to its page, which
names command, commit and machine. ``benchmarks/results/README.md`` gets all figures. All are sorted by verdict: what
goes against us comes first. A measured
figure outside of the markers, there or in ``docs/*.md``, has no results file to be compared with, so that ``--check``
complains about it too. (Decision records say what was measured when it was decided, and stay as they are.)
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _figures import Verdict, read_figures, table_lines  # noqa: E402

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SAMPLE_BEGIN, SAMPLE_END = "<!-- sample: begin -->", "<!-- sample: end -->"
SAMPLE = "inspect_sample.txt"
GENERATED = ((BEGIN, END), (SAMPLE_BEGIN, SAMPLE_END), ("<!-- conformance: begin -->", "<!-- conformance: end -->"))

SOME = re.compile(r"(<!-- figures of ([^:]+): begin -->\n).*?(<!-- figures: end -->)", re.S)
"""Some of the figures, by patterns of their names: in pages of ``docs``."""

MEASURED = re.compile(
    r"\d ?(ms|µs|us)\b|\d (milliseconds|microseconds)\b|\bof (its|their|ONNX Runtime's) time\b|\d% (less|more)"
)
"""What a measured figure looks like: a duration, or a share of somebody's time."""


def render_headlines(figures: Sequence[Mapping[str, Any]]) -> str:
    """How many headlines keep their bounds, and a table of them."""
    judged = [figure for figure in figures if figure["headline"] and figure["bound"] is not None]
    counts = Counter(figure["verdict"] for figure in judged)
    first = (
        f"Of {len(judged)} figures with a bound, {counts[Verdict.MISSED]} miss it, {counts[Verdict.NOT_SHOWN]} are not "
        f"shown to keep it, and {counts[Verdict.MET]} keep it."
    )
    return "\n".join([first, "", *_with_notes(table_lines(judged, pages="benchmarks/results/"), judged)])


def render(figures: Sequence[Mapping[str, Any]]) -> str:
    """A table of all figures, and what is true of all of it."""
    return "\n".join(_with_notes(table_lines(figures), figures))


def _with_notes(lines: list[str], figures: Sequence[Mapping[str, Any]]) -> list[str]:
    machines = sorted({figure["machine"] for figure in figures})
    lines += ["", "Made on " + "; ".join(machines) + ". The interval is that of 95%; of what is counted there is none."]
    lines[-1] += " *Not shown*: the interval crosses the bound, or is not known."
    if all(_cores(machine) <= 2 for machine in machines):
        lines[-1] += " No machine with more than two cores was at hand: what more cores give is not known."
    return lines


def _cores(machine: str) -> int:
    found = re.search(r"(\d+) cores used", machine)
    return int(found.group(1)) if found else 0


def replaced(text: str, begin: str, end: str, content: str) -> str:
    """The text with ``content`` between the markers. Raises: ValueError where there are none."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"there is no {begin} ... {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def expected(root: Path) -> dict[Path, str]:
    """What the texts are to say, by path."""
    results = root / "benchmarks" / "results"
    figures = read_figures(sorted(results.glob("*.json")))
    readme, notes = root / "README.md", results / "README.md"
    text = replaced(readme.read_text(encoding="utf-8"), BEGIN, END, render_headlines(figures))
    sample = results / SAMPLE
    if sample.exists():
        content = f"```\n{sample.read_text(encoding='utf-8').rstrip()}\n```"
        text = replaced(text, SAMPLE_BEGIN, SAMPLE_END, content)
    texts = {readme: text, notes: replaced(notes.read_text(encoding="utf-8"), BEGIN, END, render(figures))}
    for page in sorted((root / "docs").glob("*.md")):
        texts[page] = with_some(page.read_text(encoding="utf-8"), figures)
    return texts


def with_some(text: str, figures: Sequence[Mapping[str, Any]]) -> str:
    """A page with the figures that its markers name. Raises: ValueError for a pattern that is no figure's name."""

    def table(found: re.Match[str]) -> str:
        chosen: dict[str, Mapping[str, Any]] = {}
        for pattern in found[2].split():
            own = {f["name"]: f for f in figures if fnmatch.fnmatchcase(f["name"], pattern)}
            if not own:
                raise ValueError(f"no figure is called {pattern}")
            chosen |= own
        return found[1] + "\n".join(table_lines([*chosen.values()], pages="../benchmarks/results/")) + f"\n{found[3]}"

    return SOME.sub(table, text)


def stray_figures(text: str) -> list[str]:
    """Lines outside of generated parts and of code that state a measured figure."""
    for begin, end in GENERATED:
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda found: "\n" * found[0].count("\n"), text, flags=re.S
        )
    text = SOME.sub(lambda found: "\n" * found[0].count("\n"), text)
    text = re.sub(r"```.*?```", lambda found: "\n" * found[0].count("\n"), text, flags=re.S)
    return [
        f"line {number}: {line.strip()[:100]}"
        for number, line in enumerate(text.splitlines(), 1)
        if MEASURED.search(re.sub(r"`[^`]*`", "", line))
    ]


def check(root: Path) -> list[str]:
    """Complaints: where a text differs from the results files, or states a figure that has none."""
    complaints = []
    for path, text in expected(root).items():
        name = path.relative_to(root).as_posix()
        actual = path.read_text(encoding="utf-8")
        changed = difflib.unified_diff(actual.splitlines(), text.splitlines(), f"{name}", "results", n=0, lineterm="")
        complaints += [line for line in changed if line[0] in "+-" and not line.startswith(("+++", "---"))]
        complaints += [f"{name}, {line}: a figure without a results file" for line in stray_figures(actual)]
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where something differs")
    arguments = parser.parse_args()
    if arguments.check:
        complaints = check(ROOT)
        if complaints:
            print("\n".join(complaints))
            sys.exit("the texts' figures are not those of benchmarks/results: python tools/readme_figures.py")
        return
    for path, text in expected(ROOT).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
