"""``parallax compile``: make a bundle, a model that is ready to be run on this machine, and show its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from parallax.bundle import read_bundle, resolve_target
from parallax.cli._console import Screen, print_line
from parallax.cli._open import open_shapes, prepare, runtime_errors_at
from parallax.cli._plan_view import describe_plan
from parallax.cli._providers import parse_providers
from parallax.cli._tune import concluded, end_unless_concluded, render_tuned, tune_model
from parallax.cli._units import size
from parallax.errors import ConfigError
from parallax.opening import compile as compile_bundle
from parallax.options import Options
from parallax.schedule import Plan


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
    wait_s: float,
    screen: Screen,
) -> None:
    """Compile ``model`` into a bundle at ``output``, tuned only if the options say so, for devices if some are named.

    Without ``output`` it is tuned, which this command meant in version 0.1, with a note that says so.
    """
    if output is None:
        is_planned = options.policy != "adaptive" or options.split != "auto" or options.min_gain is not None
        if portable or memory_limit is not None or is_planned:
            raise ConfigError(
                "--portable, --policy, --split, --min-gain and --memory-limit are for bundles",
                fix="say where to write one with --output",
            )
        screen.notice(
            "to measure and remember is `parallax tune` now; `parallax compile` without --output will be an error in "
            "the next version"
        )
        tune_model(
            model,
            inputs=inputs,
            shapes=shapes,
            options=replace(options, tune=True),
            seed=seed,
            wait_s=wait_s,
            providers=providers,
            screen=screen,
        )
        return
    if wait_s and not options.tune:
        raise ConfigError("--wait is for what is measured, and nothing is", fix="add --tune, or leave --wait out")
    devices = parse_providers(providers)
    resolve_target(output)
    subject = prepare(model, inputs=inputs, shapes=shapes, seed=seed, cache_dir=options.cache_dir, screen=screen)
    with (
        screen.progress() as progress,
        runtime_errors_at(subject.source.label, fix="check that this ONNX Runtime knows the model's operators"),
    ):
        # Shapes that were asked for, or are to be measured with: others are made up, and would bind the plan.
        chosen = open_shapes(subject) if options.tune or shapes or inputs else None
        asked = replace(options, shapes=chosen, calibration=subject.feeds if options.tune else None, progress=progress)

        def compiled() -> Plan:
            compile_bundle(
                subject.source.path,
                output,
                options=asked,
                providers=devices,
                portable=portable,
                memory_limit=memory_limit,
            )
            return read_bundle(output, verify="never").plan

        plan = concluded(compiled, cores=options.threads, wait_s=wait_s, screen=screen, progress=progress)
    held = sum(record.size for record in read_bundle(output, verify="never").manifest.files)
    report: dict[str, Any] = {
        "model": subject.source.label,
        "bundle": str(output),
        "bytes": held,
        "structure_digest": plan.structure_digest,
        "concluded": not plan.provenance.is_noisy,
        "plan": describe_plan(plan),
    }

    def render(console: Console) -> None:
        print_line(console, f"wrote {output}, {size(held)}")
        render_tuned(plan, console)

    screen.show(report, render)
    end_unless_concluded(plan)
