"""``parallax compile``: profile, search, measure, keep what was found, and show it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from parallax.cli._console import Screen, print_line
from parallax.cli._open import prepare
from parallax.cli._plan_view import describe_plan, render_plan
from parallax.cli._units import milliseconds


def compile_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    threads: int | None,
    seed: int,
    screen: Screen,
) -> None:
    """Tune ``model`` for this machine; later sessions on it open with the plan that is kept."""
    subject = prepare(model, inputs=inputs, shapes=shapes, seed=seed, screen=screen)
    with screen.progress() as progress:
        plan = subject.open(threads=threads, tune=True, progress=progress).plan
    report = {"model": subject.source.label, "structure_digest": plan.structure_digest, "plan": describe_plan(plan)}

    def render(console: Console) -> None:
        render_plan(plan, console)
        uncut, chosen = plan.provenance.uncut_ns, plan.provenance.chosen_ns
        if uncut is not None and chosen is not None:
            print_line(console, f"uncut {milliseconds(uncut)} ms, chosen {milliseconds(chosen)} ms")
        print_line(console, f"machine: {plan.provenance.machine}")

    screen.show(report, render)
