"""The command ``train`` and its options; what it does is in `parallax.cli._train`, which is loaded when it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallax.cli._arguments import CacheOption, JsonOption
from parallax.cli._exits import guarded


@guarded
def train_command(
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            min=100,
            help="Steps of the scheduler; other budgets in proportion. Default: 40000.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="S", min=0, help="Seed of all that is random. Default: 0.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="DIR", help="Go on with the training that was interrupted in this folder."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="PROFILE", help="An emulated device to place models on. Repeat for several."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models", metavar="MODEL[,MODEL...]", help="Models to learn from besides random ones. Repeat for more."
        ),
    ] = None,
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations",
            help="Train schedulers by rewards alone, too (SAC, PPO), to compare with. With --resume also afterwards.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write networks and checkpoints here.")
    ] = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train networks that place models on devices, for policy="learned,network=...,scheduler=...".

    Needs the extra "train". Takes about twenty minutes of one core, and --ablations a third of that on top; --steps
    1000 shows in about two how it goes. By default it learns from the zoo on all emulated devices but one, and from
    random models; some of the zoo is kept apart to judge what came out. The same seed gives the same digest on one
    machine.

    Example: `parallax train --seed 0 -o networks`

    Example: `parallax train --resume networks`
    """
    from parallax.cli._console import Screen
    from parallax.cli._train import AskedTraining, train_networks

    asked = AskedTraining(
        steps=steps,
        seed=seed,
        resume=resume,
        devices=device or (),
        models=models or (),
        output=output,
        ablations=ablations,
    )
    train_networks(asked, cache_dir=cache_dir, screen=Screen(as_json=as_json))
