"""The commands and their options; what they do is in the module named after each, which is loaded when it is run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import parallax
from parallax.cli._exits import guarded

if TYPE_CHECKING:
    from parallax.cli._console import Screen

app = typer.Typer(
    name="parallax",
    help="Run ONNX models through a plan of their own: inspect, run, bench and compile them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # an unexpected exception is a bug: the plain traceback is what a report needs
    rich_markup_mode="markdown",
)
zoo_app = typer.Typer(help="Reference models that need no download.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")
bundle_app = typer.Typer(help="Compiled models: what is in them, whether they are whole.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")


class Rule(StrEnum):
    """Refinement rules by their names on the command line."""

    COST = "cost"
    PAPER = "paper"


class Splitting(StrEnum):
    """Answers to whether a model is split, by their names on the command line."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `parallax compile -o` wrote.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Path of an .onnx file, or zoo:NAME (see `parallax zoo list`).")
]
RunnableArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Path of an .onnx file or of a bundle (.plx), or zoo:NAME.")
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
        "--memory-budget", metavar="SIZE", help="What a session may hold to run: 256MiB, or 50% of what is free."
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
    int | None, typer.Option("--threads", "-t", min=1, help="Cores to use. Default: all that this process may use.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of random inputs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"parallax {parallax.__version__}")
        raise typer.Exit


def _screen(as_json: bool) -> Screen:
    from parallax.cli._console import Screen

    return Screen(as_json=as_json)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("inspect")
@guarded
def inspect_command(
    model: ModelArgument,
    shape: ShapeOption = None,
    threads: ThreadsOption = None,
    rule: Annotated[Rule, typer.Option("--rule", help="Which layers to call worth running in parallel.")] = Rule.COST,
    provider: Annotated[
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
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAME[,KEY=VALUE...]",
            help=(
                "With --provider: also the plan of a session with this policy: adaptive, sequential or a placer. "
                "Without one, too: parallax-paper, with the paper's thresholds or others (margin=0.3)."
            ),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is made of and where it could be cut.

    Operators with their FLOPs and bytes, node classes, branches, layers, dynamic dimensions, control flow, and what
    the cost tables predict. Runs nothing.

    With `--provider`, also what a device would take of it, which operators fall back and why, with what that costs and
    what to change to gain most. A device without figures of its own is measured by a few probes.

    Example: `parallax inspect zoo:yolov8n --rule paper`

    Example: `parallax inspect zoo:yolov8n --provider emulated:pixel-6-gpu`

    Example: `parallax inspect zoo:yolov8n --policy parallax-paper,max_imbalance=2`
    """
    from parallax.cli._inspect import inspect_model

    inspect_model(
        model,
        shapes=shape or (),
        threads=threads,
        rule=rule.value,
        providers=provider or (),
        policy=policy,
        screen=_screen(as_json),
    )


@app.command("run")
@guarded
def run_command(
    model: RunnableArgument,
    inputs: InputOption = None,
    shape: ShapeOption = None,
    runs: Annotated[int, typer.Option("--runs", "-n", min=1, help="Timed runs, after one untimed.")] = 1,
    threads: ThreadsOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="Search and measure for the best plan first.")] = False,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write each output as a .npy file here.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.npz", help="Write all outputs to one .npz file.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE.json", help="Write a trace for Perfetto or chrome://tracing."),
    ] = None,
    memory_budget: BudgetOption = None,
    provider: ProvidersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model and show its outputs and latency.

    Example: `parallax run model.onnx --input x=image.npy --runs 20 --trace trace.json`
    """
    from parallax.cli._run import run_model

    run_model(
        model,
        inputs=inputs or (),
        shapes=shape or (),
        runs=runs,
        options=parallax.Options(threads=threads, tune=tune, memory_budget=memory_budget),
        seed=seed,
        output_folder=output,
        output_archive=save,
        trace=trace,
        providers=provider or (),
        screen=_screen(as_json),
    )


@app.command("bench")
@guarded
def bench_command(
    model: ModelArgument,
    inputs: InputOption = None,
    shape: ShapeOption = None,
    runs: Annotated[int, typer.Option("--runs", "-n", min=1, help="Rounds; each times every rival once.")] = 30,
    threads: ThreadsOption = None,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Search for the best plan before timing.")] = True,
    seed: SeedOption = 0,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.json", help="Write the report as JSON here as well.")
    ] = None,
    memory_budget: BudgetOption = None,
    provider: ProvidersOption = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME[,KEY=VALUE...]",
            help="Another policy to time as well, such as parallax-paper or heft. Repeat for several.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time a model against plain ONNX Runtime on 1 to N threads and in its parallel mode.

    Rivals take turns, so that what disturbs the machine disturbs them all. Outputs are compared.

    Example: `parallax bench zoo:yolov8n --runs 30`

    Example: `parallax bench zoo:yolov8n --policy parallax-paper`
    """
    from parallax.cli._bench import bench_model

    bench_model(
        model,
        inputs=inputs or (),
        shapes=shape or (),
        runs=runs,
        options=parallax.Options(threads=threads, tune=tune, memory_budget=memory_budget),
        seed=seed,
        save=save,
        providers=provider or (),
        policies=policy or (),
        screen=_screen(as_json),
    )


@app.command("compile")
@guarded
def compile_command(
    model: ModelArgument,
    inputs: InputOption = None,
    shape: ShapeOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NAME.plx", help="Write a bundle here, ready to run.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="With -o: search and measure for the best plan first.")] = False,
    portable: Annotated[
        bool, typer.Option("--portable", help="With -o: keep the model in the bundle, to make it anew elsewhere.")
    ] = False,
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory-limit", help="With -o: all the memory it will have, such as 150MiB.", metavar="SIZE"),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="With -o: work side by side (adaptive), in sequence (sequential), or as parallax-paper.",
        ),
    ] = "adaptive",
    split: Annotated[
        Splitting,
        typer.Option("--split", help="With -o: split the model where it gains (auto), never, or wherever possible."),
    ] = Splitting.AUTO,
    min_gain: Annotated[
        float | None, typer.Option("--min-gain", help="With -o: least predicted gain for which the model is split.")
    ] = None,
    memory_budget: BudgetOption = None,
    provider: ProvidersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best plan for a model on this machine and keep it for later sessions.

    Profiles the model, searches plans, measures the best of them against the uncut model, and shows what was compared.

    With `--output`, writes a bundle instead: the plan, optimised graphs and packed weights, which
    `InferenceSession("model.plx")` opens in milliseconds. Nothing is measured then, unless with `--tune`.

    Example: `parallax compile model.onnx --output model.plx`
    """
    from parallax.cli._compile import compile_model

    compile_model(
        model,
        inputs=inputs or (),
        shapes=shape or (),
        options=parallax.Options(
            threads=threads,
            policy=policy,
            split=split.value,
            min_gain=min_gain,
            tune=tune,
            memory_budget=memory_budget,
        ),
        seed=seed,
        output=output,
        portable=portable,
        memory_limit=memory_limit,
        providers=provider or (),
        screen=_screen(as_json),
    )


@app.command("devices")
@guarded
def devices_command(as_json: JsonOption = False) -> None:
    """List what could run models here: execution providers, plugins, OpenVINO, emulated devices.

    What is not usable comes with the reason and the remedy. Loads the libraries that are installed.

    Example: `parallax devices --json`
    """
    from parallax.cli._devices import list_devices

    list_devices(screen=_screen(as_json))


@bundle_app.command("info")
@guarded
def bundle_info_command(path: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle was made from and for, and whether it can be opened here.

    Example: `parallax bundle info model.plx`
    """
    from parallax.cli._bundle import show_bundle

    show_bundle(path, screen=_screen(as_json))


@bundle_app.command("verify")
@guarded
def bundle_verify_command(path: BundleArgument, as_json: JsonOption = False) -> None:
    """Compute the digest of every file of a bundle; exits with 2 if one is not as it was written.

    Example: `parallax bundle verify model.plx`
    """
    from parallax.cli._bundle import verify_bundle

    verify_bundle(path, screen=_screen(as_json))


@bundle_app.command("prune")
@guarded
def bundle_prune_command(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="A bundle, or a folder of bundles. Default: the cache of bundles."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what interrupted compilations left, and from the cache what was not used for longest.

    Example: `parallax bundle prune model.plx`
    """
    from parallax.cli._bundle import prune_bundles

    prune_bundles(path, screen=_screen(as_json))


@zoo_app.command("list")
@guarded
def zoo_list_command(as_json: JsonOption = False) -> None:
    """List the reference models.

    Example: `parallax zoo list --json`
    """
    from parallax.cli._zoo_list import list_zoo

    list_zoo(screen=_screen(as_json))
