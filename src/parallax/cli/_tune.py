"""``parallax tune``: measure which plan is fastest here, remember it for later sessions, and show what was compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import typer
from rich.console import Console

from parallax.cli._console import ProgressCallback, Screen, print_line
from parallax.cli._exits import INCONCLUSIVE_EXIT, say
from parallax.cli._open import prepare
from parallax.cli._plan_view import describe_plan, render_plan
from parallax.cli._providers import parse_providers
from parallax.cli._quiet import Deadline, await_idle_cores
from parallax.cli._units import milliseconds
from parallax.machine import available_cores
from parallax.options import Options
from parallax.schedule import Plan


def tune_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    options: Options,
    seed: int,
    wait_s: float,
    providers: Sequence[str],
    screen: Screen,
) -> None:
    """Tune ``model`` for this machine; later sessions on it open with the plan that is kept.

    Exits with `INCONCLUSIVE_EXIT` where nothing could be concluded.
    """
    parse_providers(providers)
    subject = prepare(model, inputs=inputs, shapes=shapes, seed=seed, cache_dir=options.cache_dir, screen=screen)
    with screen.progress() as progress:

        def tuned() -> Plan:
            asked = replace(options, tune=True, progress=progress)
            return subject.open(asked, providers=providers).plan

        plan = concluded(tuned, cores=options.threads, wait_s=wait_s, screen=screen, progress=progress)
    report = {
        "model": subject.source.label,
        "structure_digest": plan.structure_digest,
        "concluded": not plan.provenance.is_noisy,
        "plan": describe_plan(plan),
    }
    screen.show(report, lambda console: render_tuned(plan, console))
    end_unless_concluded(plan)


def concluded(
    tuned: Callable[[], Plan], *, cores: int | None, wait_s: float, screen: Screen, progress: ProgressCallback
) -> Plan:
    """The plan that ``tuned`` finds; found anew, while there is time, where the measurement was noisy.

    Args:
        tuned: measures and returns a plan, or what was found earlier.
        cores: that it measures on; None: all.
        wait_s: seconds after which it is not begun again.
    """
    deadline = Deadline(wait_s)
    used = cores or available_cores()
    while True:
        if deadline.remaining_s:
            await_idle_cores(screen, progress, cores=used, limit_s=deadline.remaining_s)
        plan = tuned()
        if not plan.provenance.is_noisy or not deadline.remaining_s:
            return plan
        screen.notice(f"{plan.provenance.reason}; measuring again")


def render_tuned(plan: Plan, console: Console) -> None:
    """The plan, what it was compared with, and for which machine that holds."""
    render_plan(plan, console)
    whole, chosen = plan.provenance.whole_ns, plan.provenance.chosen_ns
    if whole is not None and chosen is not None:
        print_line(console, f"whole model {milliseconds(whole)} ms, chosen {milliseconds(chosen)} ms")
    print_line(console, f"machine: {plan.provenance.machine}")


def end_unless_concluded(plan: Plan) -> None:
    """Exit with `INCONCLUSIVE_EXIT`, saying why, where tuning came to no conclusion."""
    if plan.provenance.is_noisy:
        say(
            f"inconclusive: {plan.provenance.reason}; run this again when the machine is idle, or with --wait 600, "
            "which waits until it is"
        )
        raise typer.Exit(INCONCLUSIVE_EXIT)
