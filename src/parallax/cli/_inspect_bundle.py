"""``parallax inspect`` of a bundle: whether it is of use here, what it holds, and the plan that was compiled."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from parallax.bundle import Bundle, read_bundle
from parallax.cli._answers import NO, YES, render_answers
from parallax.cli._bundle import describe_bundle, render_fit, render_manifest
from parallax.cli._console import Screen
from parallax.cli._plan_view import form_of, render_plan
from parallax.cli._units import size


def inspect_bundle(path: Path, *, cores: int | None, screen: Screen) -> None:
    """Show a bundle without opening its graphs.

    Args:
        cores: that a session on it is to use; None: those that it was compiled for, or all.
    """
    bundle = read_bundle(path, verify="never")
    report = describe_bundle(bundle, cores=cores)
    report["answers"] = _describe_answers(bundle, report)

    def render(console: Console) -> None:
        render_answers(report["answers"], console)
        render_manifest(bundle.manifest, console)
        render_fit(report, console)
        render_plan(bundle.plan, console)

    screen.show(report, render)


def _describe_answers(bundle: Bundle, report: dict[str, Any]) -> dict[str, Any]:
    name = shlex.quote(str(bundle.path))
    if report["fits_here"]:
        worth = {
            "answer": YES,
            "text": "it was compiled for this machine, so that it opens without planning, and maps its weights",
            "next": f"bench {name}",
        }
    else:
        differences = "; ".join(report["differences"])
        worth = {
            "answer": NO,
            "text": f"it was not made for here ({differences})",
            "next": report["rebuild"].removeprefix("parallax "),
        }
    held = f"weights of {size(bundle.manifest.weight_bytes)} are mapped, and shared by all processes"
    return {
        "worth_it": {"times_faster": None, "basis": "compiled", **worth},
        "here": {"text": f"{form_of(bundle.plan)}, for {bundle.manifest.cores} cores; {held}", "next": f"run {name}"},
        "right": {
            "text": "a manifest of digests is compared whenever it is opened; ONNX Runtime's kernels compute",
            "next": f"bundle verify {name} (every file), or bench {name} (every output)",
        },
    }
