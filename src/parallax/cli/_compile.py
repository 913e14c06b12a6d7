"""``parallax compile``: find a plan and keep it, in the cache or ready to run in a bundle, and show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from parallax.bundle import read_bundle, resolve_target
from parallax.cli._console import Screen, print_line
from parallax.cli._open import open_shapes, prepare, runtime_errors_at
from parallax.cli._plan_view import describe_plan, render_plan
from parallax.cli._units import milliseconds, size
from parallax.errors import ConfigError
from parallax.session import Options
from parallax.session import compile as compile_bundle


def compile_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    options: Options,
    seed: int,
    output: Path | None,
    portable: bool,
    providers: Sequence[str],
    memory_limit: str | None,
    screen: Screen,
) -> None:
    """Tune ``model`` for this machine; later sessions on it open with the plan that is kept.

    With ``output``, compile it into a bundle there instead, tuned only if the options say so.
    """
    if output is None:
        is_planned = options.policy != "adaptive" or options.split != "auto" or options.min_gain is not None
        if portable or memory_limit is not None or is_planned:
            raise ConfigError(
                "--portable, --policy, --split, --min-gain and --memory-limit are for bundles",
                fix="say where to write one with --output",
            )
        subject = prepare(model, inputs=inputs, shapes=shapes, seed=seed, screen=screen)
        with screen.progress() as progress:
            plan = subject.open(replace(options, tune=True, progress=progress), providers=providers).plan
        report: dict[str, Any] = {"model": subject.source.label}
    else:
        if providers:
            raise ConfigError(
                f"a bundle is compiled for the CPU, not for {providers[0]}",
                fix="leave --provider out, or leave --output out to keep the plan in the cache",
            )
        resolve_target(output)
        subject = prepare(model, inputs=inputs, shapes=shapes, seed=seed, screen=screen)
        with (
            screen.progress() as progress,
            runtime_errors_at(subject.source.label, fix="check that this ONNX Runtime knows the model's operators"),
        ):
            # Shapes that were asked for, or are to be measured with: others are made up, and would bind the plan.
            chosen = open_shapes(subject) if options.tune or shapes or inputs else None
            compile_bundle(
                subject.source.path,
                output,
                options=replace(
                    options, shapes=chosen, calibration=subject.feeds if options.tune else None, progress=progress
                ),
                portable=portable,
                memory_limit=memory_limit,
            )
        bundle = read_bundle(output, verify="never")
        plan = bundle.plan
        held = sum(record.size for record in bundle.manifest.files)
        report = {"model": subject.source.label, "bundle": str(output), "bytes": held}
    report |= {"structure_digest": plan.structure_digest, "plan": describe_plan(plan)}

    def render(console: Console) -> None:
        if output is not None:
            print_line(console, f"wrote {output}, {size(report['bytes'])}")
        render_plan(plan, console)
        uncut, chosen = plan.provenance.uncut_ns, plan.provenance.chosen_ns
        if uncut is not None and chosen is not None:
            print_line(console, f"uncut {milliseconds(uncut)} ms, chosen {milliseconds(chosen)} ms")
        print_line(console, f"machine: {plan.provenance.machine}")

    screen.show(report, render)
