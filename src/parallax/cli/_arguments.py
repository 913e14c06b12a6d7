"""Arguments and options that several commands share, with what the shell offers for them."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from parallax.cli._completing import complete_bundle, complete_model, complete_zoo_name


class Rule(StrEnum):
    """Refinement rules by their names on the command line."""

    COST = "cost"
    PAPER = "paper"


class Splitting(StrEnum):
    """Answers to whether a model is split, by their names on the command line."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class PaddingWay(StrEnum):
    """Ways to run padding, by their names on the command line."""

    TRIM = "trim"


MOST_THREADS = 4096
"""As many cores as a plan may have (`parallax.schedule.Plan.MOST_CORES`, which help need not load)."""


def finite(value: float | None) -> float | None:
    """A number of seconds that an end can be computed from. Raises: typer.BadParameter for "inf" and "nan"."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number of seconds.")
    return value


BundleArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="A folder that `parallax compile -o` wrote.", autocompletion=complete_bundle),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Path of an .onnx file, or zoo:NAME (see `parallax zoo list`).",
        autocompletion=complete_model,
    ),
]
RunnableArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Path of an .onnx file or of a bundle (.plx), or zoo:NAME.", autocompletion=complete_model
    ),
]
ZooNameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="See `parallax zoo list`.", autocompletion=complete_zoo_name)
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="NAME=VALUE",
        help="FILE.npy, FILE.npz, random, zeros, ones, or numbers. Repeat per input; random where left out.",
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", "-s", metavar="NAME=1,3,224,224", help="Concrete shape of an input. Repeat per input."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        envvar="PARALLAX_MEMORY_BUDGET",
        show_envvar=True,
        help="What a session may hold to run: 256MiB, or 50% of what is free.",
    ),
]
ProvidersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        metavar="NAME[,KEY=VALUE...]",
        help=(
            "A device to run on beside the CPU, with its options, such as memory_budget=64MiB. Repeat in order of "
            "preference. See `parallax devices`."
        ),
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        metavar="N",
        min=1,
        max=MOST_THREADS,
        envvar="PARALLAX_THREADS",
        show_envvar=True,
        help="Cores to use. Default: all that this process may use.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of random inputs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        file_okay=False,
        help=(
            "Where plans, costs, bundles and zoo models are kept. Default: PARALLAX_CACHE_DIR, else the user's cache "
            "folder."
        ),
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        callback=finite,
        help="While other programs use the cores: wait for them, and measure again, for so long.",
    ),
]
