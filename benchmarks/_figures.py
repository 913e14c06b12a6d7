"""Figures that a benchmark stands for: value, 95% interval, bound, verdict, and where they come from.

Every results file has a list ``figures`` of them, so that one tool (``tools/readme_figures.py``) renders and checks
them all, whatever was measured. Needs nothing but Python's own library.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Verdict(StrEnum):
    """What a figure says about its bound. The order is that of the tables: what goes against us comes first."""

    MISSED = "missed"
    """The whole interval lies beyond the bound."""
    NOT_SHOWN = "not shown"
    """The interval crosses the bound, or is not known."""
    MET = "met"
    """The whole interval keeps the bound."""
    NO_BOUND = "no bound"


ORDER = {verdict: place for place, verdict in enumerate(Verdict)}

Interval = tuple[float, float]

FORMATS: Mapping[str, str] = {
    "ratio": "{:.3f}",
    "percent": "{:.1%}",
    "count": "{:.0f}",
    "us": "{:.1f} µs",
    "ms": "{:.1f} ms",
    "s": "{:.2f} s",
    "MiB": "{:.1f} MiB",
}


def judge(value: float, interval: Interval | None, bound: float | None, *, at_least: bool) -> Verdict:
    """The verdict on a figure. One without an interval is judged as not shown."""
    if bound is None:
        return Verdict.NO_BOUND
    if interval is None or math.isnan(value):
        return Verdict.NOT_SHOWN
    low, high = interval
    if at_least:
        return Verdict.MET if low >= bound else Verdict.MISSED if high < bound else Verdict.NOT_SHOWN
    return Verdict.MET if high <= bound else Verdict.MISSED if low > bound else Verdict.NOT_SHOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure."""

    name: str
    """Unique among all results files."""
    what: str
    """What was measured, as the first cell of a table."""
    value: float
    unit: str
    """One of `FORMATS`; percentages are shares of 1."""
    interval: Interval | None
    """95%. Of what is counted and not estimated: the value twice. None where too little was measured to say."""
    bound: float | None = None
    at_least: bool = False
    """Whether the bound is a lower one."""
    note: str = ""
    headline: bool = True
    """Whether it belongs into the project's README, or only into the list of all results."""

    @property
    def verdict(self) -> Verdict:
        return judge(self.value, self.interval, self.bound, at_least=self.at_least)

    def to_json(self, origin: Mapping[str, str]) -> dict[str, Any]:
        """For a results file; ``origin`` has command, commit, date and machine."""
        bound = (
            None if self.bound is None else {"limit": self.bound, "kind": "at least" if self.at_least else "at most"}
        )
        return {
            "name": self.name,
            "what": self.what,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "unit": self.unit,
            "bound": bound,
            "verdict": str(self.verdict),
            "note": self.note,
            "headline": self.headline,
            **origin,
        }


def counted(name: str, what: str, value: int, **more: Any) -> Figure:
    """A figure that was counted, so that its interval is the value itself."""
    return Figure(name=name, what=what, value=value, unit="count", interval=(value, value), **more)


def origin_of(machine: Mapping[str, Any]) -> dict[str, str]:
    """Where a figure comes from: this process's command, the commit, and the machine as `describe_machine` has it."""
    return {
        "command": command_line(),
        "commit": str(machine["commit"]),
        "date": str(machine["date"]),
        "machine": f"{machine['machine']}, {machine['cores_used']} cores used",
    }


def command_line() -> str:
    """What to type in the project's folder to run this script so again; where it writes is left out."""
    words = []
    skip = False
    for word in sys.argv[1:]:
        if not skip and word not in ("--output", "--json"):
            words.append(word)
        skip = word in ("--output", "--json")
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    if shown.name == "__main__.py":
        return shlex.join(["python", "-m", ".".join(shown.parent.parts), *words])
    return shlex.join(["python", shown.as_posix(), *words])


def commit_hash() -> str:
    """Of the sources that are measured; with "+" where they were changed since; "unknown" outside a repository."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


# Rendering, from a results file's own list ---------------------------------------------------------------------

COLUMNS = ("what", "figure (95% interval)", "bound", "")
ORIGIN_COLUMNS = ("command", "made")
PAGE_COLUMNS = ("page",)


def read_figures(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The figures of all results files, in the order of the files, each with its ``file``.

    Raises: ValueError for two figures of one name, and for a verdict that does not follow from the figure.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for figure in json.loads(path.read_text(encoding="utf-8")).get("figures", ()):
            name = figure["name"]
            if name in found:
                raise ValueError(f"{path.name} and {found[name]['file']} both have a figure {name!r}")
            bound = figure["bound"] or {"limit": None, "kind": "at most"}
            interval = None if figure["interval"] is None else (figure["interval"][0], figure["interval"][1])
            said = judge(figure["value"], interval, bound["limit"], at_least=bound["kind"] == "at least")
            if said != figure["verdict"]:
                raise ValueError(f"{path.name}: {name} is called {figure['verdict']!r}, but is {str(said)!r}")
            found[name] = figure | {"file": path.name}
    return list(found.values())


def table_lines(figures: Sequence[Mapping[str, Any]], *, pages: str | None = None) -> list[str]:
    """A Markdown table; what goes against us comes first, otherwise in the order given.

    Args:
        figures: as results files have them.
        pages: where the results' pages lie, ending with "/"; each row then links to its own instead of giving command
            and commit.
    """
    ordered = sorted(figures, key=lambda figure: ORDER[Verdict(figure["verdict"])])
    columns = COLUMNS + (ORIGIN_COLUMNS if pages is None else PAGE_COLUMNS)
    rows = [columns, ("---",) * len(columns)]
    rows += [_cells(figure) + (_origin(figure) if pages is None else _page(figure, pages)) for figure in ordered]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]


def _origin(figure: Mapping[str, Any]) -> tuple[str, str]:
    return f"`{figure['command']}`", f"{figure['date'].split()[0]}, {figure['commit']}"


def _page(figure: Mapping[str, Any], pages: str) -> tuple[str]:
    name = Path(figure["file"]).stem
    return (f"[{name}]({pages}{name}.md)",)


def _cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    unit = figure["unit"]
    value = show(figure["value"], unit)
    interval = figure["interval"]
    if interval is None:
        value += " (interval not known)"
    elif interval[0] != interval[1]:
        value += f" ({show(interval[0], unit)} to {show(interval[1], unit)})"
    bound = figure["bound"]
    verdict = Verdict(figure["verdict"])
    what = figure["what"] + (f"; {figure['note']}" if figure["note"] else "")
    return (
        what,
        value,
        "" if bound is None else f"{bound['kind']} {show(bound['limit'], unit)}",
        "" if verdict is Verdict.NO_BOUND else f"{verdict}" if verdict is Verdict.MET else f"**{verdict}**",
    )


def show(value: float, unit: str) -> str:
    """A value in its unit."""
    return FORMATS[unit].format(value)
