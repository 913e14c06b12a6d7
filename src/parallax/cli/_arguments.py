"""Arguments and options that several commands share, with what the shell offers for them."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import parallax
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


class Aim(StrEnum):
    """What plans are compared by, by their names on the command line."""

    LATENCY = "latency"
    ENERGY = "energy"
    EDP = "edp"


MOST_THREADS = 4096
"""As many cores as a plan may have (`parallax.schedule.Plan.MOST_CORES`, which help need not load)."""


def finite(value: float | None) -> float | None:
    """A number of seconds that an end can be computed from. Raises: typer.BadParameter for "inf" and "nan"."""
    return _finite(value, "number of seconds")


def finite_threshold(value: float | None) -> float | None:
    """A number to compare others with. Raises: typer.BadParameter for "inf" and "nan"."""
    return _finite(value, "threshold")


def _finite(value: float | None, what: str) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no {what}.")
    return value


BundleArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="A folder that `parallax compile -o` wrote.", autocompletion=complete_bundle),
]
BundlesArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[PATH]", help="A bundle, or a folder of bundles. Default: the cache of bundles."),
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
StudiedProvidersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        metavar="NAME[,KEY=VALUE...]",
        help=(
            "A device: what it would take, what falls back and why, at what cost; with memory_budget=64MiB, of so "
            "much of its memory. Several: also the plan of a session with all of them. See `parallax devices`."
        ),
    ),
]
StudiedPolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME[,KEY=VALUE...]",
        help=(
            "With --provider: also the plan of a session with this policy: adaptive, sequential or a placer. "
            "Without one, too: parallax-paper, with the paper's thresholds or others (margin=0.3)."
        ),
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", "-b", metavar="N", min=1, help="Size of the batch, where the model leaves it open."),
]
RoundsOption = Annotated[
    int | None,
    typer.Option(
        "--runs", "-n", metavar="N", min=1, help="Rounds at most, each of which times everybody once. Default: 30."
    ),
]
MaxTimeOption = Annotated[
    float | None,
    typer.Option(
        "--max-time",
        metavar="SECONDS",
        min=1,
        callback=finite,
        help="End by then with what is known. Default: 30, or as long as --duration needs.",
    ),
]
DurationOption = Annotated[
    float | None,
    typer.Option(
        "--duration",
        metavar="SECONDS",
        min=0.1,
        callback=finite,
        help="Measure throughput: call each for so long, in ten turns.",
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
SlimOption = Annotated[
    bool, typer.Option("--slim", help="Remove the channels, neurons and heads that zeros in weights make superfluous.")
]
ObjectiveOption = Annotated[
    Aim,
    typer.Option(
        "--objective",
        help="What the plan is to be good at: time (latency), modelled joules (energy), or joules x seconds (edp).",
    ),
]
CompiledPolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="Work side by side (adaptive), in sequence (sequential), or as parallax-paper.",
    ),
]
MemoryLimitOption = Annotated[
    str | None,
    typer.Option("--memory-limit", help="All the memory it will have, such as 150MiB.", metavar="SIZE"),
]
OutputFolderOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write each output as a .npy file here.")
]
SaveOutputsOption = Annotated[
    Path | None, typer.Option("--save", metavar="FILE.npz", help="Write all outputs to one .npz file.")
]
TraceFileOption = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE.json", help="Write a trace for Perfetto or chrome://tracing."),
]
SaveReportOption = Annotated[
    Path | None, typer.Option("--save", metavar="FILE.json", help="Write the report as JSON here as well.")
]
EnergyOption = Annotated[
    bool, typer.Option("--energy", help="Also joules per run: by meters that can be read here, else modelled.")
]
BundleTargetOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="NAME.plx", help="Write the bundle here.")
]
PortableOption = Annotated[
    bool, typer.Option("--portable", help="Keep the model in the bundle, to make it anew elsewhere.")
]
SplitOption = Annotated[
    Splitting, typer.Option("--split", help="Split the model where it gains (auto), never, or wherever possible.")
]
MinGainOption = Annotated[
    float | None, typer.Option("--min-gain", help="Least predicted gain for which the model is split.")
]
PaddingOption = Annotated[
    PaddingWay | None, typer.Option("--padding", help="Run without padding (trim), if that is proven to be right.")
]
ExportedFileOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.onnx", help="Where to write it. Default: NAME.onnx here."),
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of random inputs.")]
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
SparsityOption = Annotated[
    bool,
    typer.Option(
        "--sparsity", help="Which zeros it computes with, per operator; runs it on a few examples, random by default."
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE.npz",
        help=(
            "With --sparsity: real examples, arrays by the names of the inputs; arrays of one dimension more than "
            "their inputs hold several examples."
        ),
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        min=1,
        max=10_000,
        help="With --sparsity: examples to run: random ones (default 3), or at most of the file (default all).",
    ),
]
MinFlopsOption = Annotated[
    float | None,
    typer.Option(
        "--min-flops",
        metavar="FLOPS",
        min=0,
        callback=finite_threshold,
        help="With --sparsity: work from which on an operator counts as heavy. Default: that of the middle operator.",
    ),
]
MaxZerosOption = Annotated[
    float | None,
    typer.Option(
        "--max-zeros",
        metavar="SHARE",
        min=0,
        max=1,
        callback=finite_threshold,
        help="With --sparsity: share of zeros, 0 to 1, above which it is sparse. Default: the middle operator's.",
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.svg", help="With --sparsity: write work against zeros as a picture here."),
]
MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="With --sparsity: measure what the CPU, and --provider, make of zeros, and keep it for this machine.",
    ),
]
CallersOption = Annotated[
    int,
    typer.Option("--callers", "-c", metavar="N", min=1, max=1024, help="Threads that call at once, without a pause."),
]
TriedTuneOption = Annotated[
    bool | None,
    typer.Option(
        "--tune/--no-tune",
        help="Search for the best plan first, in half of the time at most; by default for models, not for bundles.",
    ),
]
ComparedPoliciesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME[,KEY=VALUE...]",
        help="Another policy to time as well, such as parallax-paper or heft. Repeat for several.",
    ),
]
AdaptOption = Annotated[
    bool,
    typer.Option("--adapt", help="Follow the machine: switch to another plan where a device or the cores are slow."),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        "--margin",
        metavar="SHARE",
        help="With --memory-budget: the share of it that stays free, 0 to below 1. Default: 0.1.",
    ),
]


def show_version(asked: bool) -> None:
    """Print it and exit, if that is asked for."""
    if asked:
        typer.echo(f"parallax {parallax.__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
]
