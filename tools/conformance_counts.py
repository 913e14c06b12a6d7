"""Count how ONNX's backend test suite fares in ONNX Runtime and in Parallax, for the README.

    python tools/conformance_counts.py                       # the tables, in Markdown
    python tools/conformance_counts.py --json                # the same figures, for programs
    python tools/conformance_counts.py --update README.md    # replace what stands between the markers
    python tools/conformance_counts.py --case node/test_adam # one case, with what went wrong

The figures are counted, never typed: a case passes where its outputs are what the suite expects and what
ONNX Runtime computes. Takes a minute or two on two cores.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

import parallax

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"

sys.path.insert(0, str(ROOT))

from tests.conformance._onnx_suite import (  # noqa: E402
    EXCUSED,
    KINDS,
    MODES,
    WHY_CLOSE,
    Result,
    Verdict,
    examine,
    load_cases,
    why_excluded,
)


def examine_kind(kind: str) -> list[Result]:
    """Every case of a kind, with a line of progress."""
    print(f"{kind}: reading", end="", file=sys.stderr, flush=True)
    cases, results = load_cases(kind), []
    for number, case in enumerate(cases, 1):
        results.append(examine(case, parallax.InferenceSession))
        if number % 50 == 0 or number == len(cases):
            print(f"\r{kind}: {number} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def count(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of one column of the table."""
    passing = [result for result in results if not result.complaint]
    counts: dict[str, Any] = {"cases": len(results), "onnxruntime": len(passing)}
    for mode in MODES:
        ours = [result.modes[mode.name] for result in passing]
        counts[mode.name] = {
            "passes": sum(one.passes for one in ours),
            "identical": sum(one.passes and one.verdict is Verdict.IDENTICAL for one in ours),
            "cut": sum(one.passes and one.segments > 1 for one in ours),
            "alike_where_onnxruntime_does_not_pass": sum(
                result.modes[mode.name].verdict is not Verdict.DIFFERENT for result in results if result.complaint
            ),
            "missed": {
                result.case.id: EXCUSED.get((result.case.id, mode.name), result.modes[mode.name].difference)
                for result in passing
                if not result.modes[mode.name].passes
            },
            "different": sorted(
                f"{result.case.id}: {result.modes[mode.name].difference}"
                for result in results
                if result.modes[mode.name].verdict is Verdict.DIFFERENT
            ),
        }
    return counts


def gather(kinds: Sequence[str]) -> dict[str, Any]:
    """All the figures, as ``--json`` prints them."""
    results = {kind: examine_kind(kind) for kind in kinds}
    everything = [result for column in results.values() for result in column]
    excluded: dict[str, list[str]] = collections.defaultdict(list)
    for result in everything:
        if result.complaint:
            excluded[why_excluded(result.complaint)].append(result.case.id)
    return {
        "versions": {
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "parallax": parallax.__version__,
        },
        "counts": {kind: count(column) for kind, column in results.items()} | {"all": count(everything)},
        "excluded": {
            reason: sorted(cases) for reason, cases in sorted(excluded.items(), key=lambda item: -len(item[1]))
        },
    }


def as_markdown(figures: dict[str, Any]) -> str:
    """Two tables: the counts, and why cases are left out."""
    counts, versions = figures["counts"], figures["versions"]
    rows: list[tuple[str, list[int]]] = [
        (f"cases in onnx {versions['onnx']}", [column["cases"] for column in counts.values()]),
        (f"ONNX Runtime {versions['onnxruntime']} passes", [column["onnxruntime"] for column in counts.values()]),
    ]
    for name, title in (("default", "Parallax passes"), ("split", "Parallax passes, splitting forced")):
        rows.append((f"**{title}**", [column[name]["passes"] for column in counts.values()]))
        rows.append(("— bit for bit like ONNX Runtime", [column[name]["identical"] for column in counts.values()]))
    rows.append(("— split into several segments", [column["split"]["cut"] for column in counts.values()]))
    lines = [
        "| | " + " | ".join(counts) + " |",
        "| --- |" + " ---: |" * len(counts),
        *(f"| {title} | " + " | ".join(str(value) for value in values) + " |" for title, values in rows),
        "",
        "| why ONNX Runtime does not pass | cases |",
        "| --- | ---: |",
        *(f"| {reason} | {len(cases)} |" for reason, cases in figures["excluded"].items()),
    ]
    alike = [counts["all"][mode.name]["alike_where_onnxruntime_does_not_pass"] for mode in MODES]
    left_out = sum(len(cases) for cases in figures["excluded"].values())
    lines += [
        "",
        f"Those {left_out} are compared all the same: Parallax gives ONNX Runtime's answer or refuses with its"
        f" exception class in {alike[0]} of them, and in {alike[1]} with splitting forced.",
    ]
    totals = counts["all"]
    if any(totals[mode.name]["identical"] < totals[mode.name]["passes"] for mode in MODES):
        lines += ["", f"Not bit for bit: {WHY_CLOSE}."]
    for mode in MODES:
        for case, reason in counts["all"][mode.name]["missed"].items():
            lines += ["", f"Not passed ({mode.name}): `{case}`: {reason}."]
    return "\n".join(lines)


def update(path: Path, text: str) -> None:
    """Put ``text`` between the markers of a Markdown file."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def show(case_id: str) -> None:
    """One case, in full."""
    found = [case for case in load_cases(case_id.split("/")[0]) if case.id == case_id]
    if not found:
        sys.exit(f"no case {case_id!r}; kinds are {', '.join(KINDS)}")
    result = examine(found[0], parallax.InferenceSession)
    print(f"onnxruntime: {result.complaint or 'passes'}")
    for name, ours in result.modes.items():
        outcome = "passes" if ours.passes else "does not pass"
        print(f"parallax, {name}: {outcome}, {ours.verdict}, segments: {ours.segments} {ours.difference}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--update", type=Path, metavar="FILE", help=f"replace the tables between {BEGIN} and {END}")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind of case (may be repeated)")
    parser.add_argument("--case", metavar="KIND/NAME", help="examine one case")
    arguments = parser.parse_args()
    if arguments.case:
        show(arguments.case)
        return
    figures = gather(arguments.kind or KINDS)
    if arguments.update:
        update(arguments.update, as_markdown(figures))
    elif arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        print(as_markdown(figures))
    different = sum(len(figures["counts"]["all"][mode.name]["different"]) for mode in MODES)
    if different:
        sys.exit(f"{different} outcomes differ from ONNX Runtime's; --json lists them")


if __name__ == "__main__":
    main()
