"""The commands and their options; what they do is in the module named after each, which is loaded when it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import parallax
from parallax.cli._arguments import (
    AdaptOption,
    Aim,
    BatchOption,
    BudgetOption,
    BundleArgument,
    BundlesArgument,
    BundleTargetOption,
    CacheOption,
    CalibrationOption,
    CallersOption,
    ComparedPoliciesOption,
    CompiledPolicyOption,
    DurationOption,
    EnergyOption,
    ExportedFileOption,
    InputOption,
    JsonOption,
    MarginOption,
    MaxTimeOption,
    MaxZerosOption,
    MeasureOption,
    MemoryLimitOption,
    MinFlopsOption,
    MinGainOption,
    ModelArgument,
    ObjectiveOption,
    OutputFolderOption,
    PaddingOption,
    PlotOption,
    PortableOption,
    ProvidersOption,
    RoundsOption,
    Rule,
    RunnableArgument,
    SamplesOption,
    SaveOutputsOption,
    SaveReportOption,
    SeedOption,
    ShapeOption,
    SlimOption,
    SparsityOption,
    SplitOption,
    Splitting,
    StudiedPolicyOption,
    StudiedProvidersOption,
    ThreadsOption,
    TraceFileOption,
    TriedTuneOption,
    VersionOption,
    WaitOption,
    ZooNameArgument,
)
from parallax.cli._exits import guarded
from parallax.cli._train_command import train_command
from parallax.cli._usage import OneLineErrors, budget_options, refuse_options

if TYPE_CHECKING:
    from parallax.cli._console import Screen

# Help is plain text: rich takes longer to load than everything else that help needs.
_PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}

app = typer.Typer(
    name="parallax",
    cls=OneLineErrors,
    help="Run ONNX models: what runs where is planned, measured and explained.",
    epilog="""\b
Is it worth it for my model?
    parallax inspect MODEL    (runs nothing), then parallax bench MODEL
What will it do on my device?
    parallax devices, then parallax inspect MODEL --provider NAME
How do I know it is right?
    parallax bench MODEL      compares every output with ONNX Runtime's

\b
No model at hand? zoo:mobilenetv3-s is one; `parallax zoo list` has more.
`parallax COMMAND -h` says what a command takes, with an example.""",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # an unexpected exception is a bug: the plain traceback is what a report needs
    **_PLAIN,
)
zoo_app = typer.Typer(help="Reference models that need no download.", **_PLAIN)
app.add_typer(zoo_app, name="zoo")
bundle_app = typer.Typer(help="Compiled models: what is in them, whether they are whole.", **_PLAIN)
app.add_typer(bundle_app, name="bundle")


def _screen(as_json: bool) -> Screen:
    from parallax.cli._console import Screen

    return Screen(as_json=as_json)


@app.callback()
def _root(version: VersionOption = False) -> None:
    pass


@app.command("inspect")
@guarded
def inspect_command(
    model: RunnableArgument,
    shape: ShapeOption = None,
    threads: ThreadsOption = None,
    rule: Annotated[Rule, typer.Option("--rule", help="Which layers to call worth running in parallel.")] = Rule.COST,
    provider: StudiedProvidersOption = None,
    policy: StudiedPolicyOption = None,
    objective: ObjectiveOption = Aim.LATENCY,
    sparsity: SparsityOption = False,
    calibration: CalibrationOption = None,
    samples: SamplesOption = None,
    min_flops: MinFlopsOption = None,
    max_zeros: MaxZerosOption = None,
    plot: PlotOption = None,
    measure: MeasureOption = False,
    slim: SlimOption = False,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether Parallax is worth it for a model here, what it would do, and what the model is made of.

    The first lines answer; below them are operators with their FLOPs and bytes, node classes, branches, layers, open
    sizes, control flow, and what the cost tables predict. Runs nothing. Of a bundle: what is in it. With --slim, all
    this is said of the slimmed model, after a list of the channels that were removed and of what kept others.

    With --sparsity, instead: the zeros that each operator reads, for which the model is run on examples.

    With --provider, also what a device would take of it, which operators fall back and why, with what that costs and
    what to change to gain most. A device without figures of its own is measured by a few probes.

    Example: `parallax inspect zoo:yolov8n`

    Example: `parallax inspect zoo:yolov8n --provider emulated:pixel-6-gpu`

    Example: `parallax inspect zoo:yolov8n --policy parallax-paper,max_imbalance=2`

    Example: `parallax inspect zoo:yolov8n --sparsity --plot zeros.svg`
    """
    zeros: dict[str, Any] = {
        "calibration": calibration,
        "samples": samples,
        "min_flops": min_flops,
        "max_zeros": max_zeros,
        "plot": plot,
        "measure": measure,
    }
    if sparsity:
        from parallax.cli._sparsity import SparsityQuestion, inspect_sparsity

        plain = {"rule": rule is Rule.PAPER, "policy": policy, "objective": objective is not Aim.LATENCY, "slim": slim}
        refuse_options(plain, "is not for --sparsity", fix="leave it out")
        inspect_sparsity(
            model,
            SparsityQuestion(**zeros),
            shapes=shape or (),
            threads=threads,
            providers=provider or (),
            cache_dir=cache_dir,
            screen=_screen(as_json),
        )
        return
    refuse_options(zeros, "is about zeros, and nobody asks for them", fix="add --sparsity")
    from parallax.cli._inspect import inspect_model

    inspect_model(
        model,
        shapes=shape or (),
        threads=threads,
        rule=rule.value,
        providers=provider or (),
        policy=policy,
        objective=objective.value,
        slim=slim,
        cache_dir=cache_dir,
        screen=_screen(as_json),
    )


@app.command("run")
@guarded
def run_command(
    model: RunnableArgument,
    inputs: InputOption = None,
    shape: ShapeOption = None,
    runs: Annotated[int, typer.Option("--runs", "-n", metavar="N", min=1, help="Timed runs, after one untimed.")] = 1,
    threads: ThreadsOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="Search and measure for the best plan first.")] = False,
    objective: ObjectiveOption = Aim.LATENCY,
    slim: SlimOption = False,
    adapt: AdaptOption = False,
    seed: SeedOption = 0,
    output: OutputFolderOption = None,
    save: SaveOutputsOption = None,
    trace: TraceFileOption = None,
    memory_budget: BudgetOption = None,
    margin: MarginOption = None,
    provider: ProvidersOption = None,
    cache_dir: CacheOption = None,
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
        options=parallax.Options(
            threads=threads,
            tune=tune,
            objective=objective.value,
            slim=slim,
            adapt=adapt,
            **budget_options(memory_budget, margin),
            cache_dir=cache_dir,
        ),
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
    model: RunnableArgument,
    inputs: InputOption = None,
    shape: ShapeOption = None,
    batch: BatchOption = None,
    runs: RoundsOption = None,
    max_time: MaxTimeOption = None,
    callers: CallersOption = 1,
    duration: DurationOption = None,
    threads: ThreadsOption = None,
    tune: TriedTuneOption = None,
    objective: ObjectiveOption = Aim.LATENCY,
    slim: SlimOption = False,
    adapt: AdaptOption = False,
    seed: SeedOption = 0,
    save: SaveReportOption = None,
    memory_budget: BudgetOption = None,
    margin: MarginOption = None,
    provider: ProvidersOption = None,
    policy: ComparedPoliciesOption = None,
    energy: EnergyOption = False,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a model's speed and outputs with plain ONNX Runtime's, on 1 to N threads and in its parallel mode.

    All take turns, so that what disturbs the machine disturbs all of them; the verdict comes with its uncertainty.
    Ends within --max-time, and on Ctrl-C with what was measured until then.

    Example: `parallax bench zoo:mobilenetv3-s`

    Example: `parallax bench model.onnx --callers 4 --duration 5`

    Example: `parallax bench zoo:yolov8n --policy parallax-paper`
    """
    from parallax.cli._limit import begin_limit

    limit = begin_limit(model, max_time, as_json=as_json)  # before the imports below, which the limit includes
    from parallax.cli._bench import bench_model
    from parallax.cli._bench_rounds import BenchPlan

    how = BenchPlan(
        rounds=runs, max_time_s=max_time, callers=callers, duration_s=duration, batch=batch, tunes=tune, energy=energy
    )
    bench_model(
        model,
        inputs=inputs or (),
        shapes=shape or (),
        options=parallax.Options(
            threads=threads,
            objective=objective.value,
            slim=slim,
            adapt=adapt,
            cache_dir=cache_dir,
            **budget_options(memory_budget, margin),
        ),
        how=how,
        limit=limit,
        seed=seed,
        save=save,
        providers=provider or (),
        policies=policy or (),
        screen=_screen(as_json),
    )


@app.command("tune")
@guarded
def tune_command(
    model: ModelArgument,
    inputs: InputOption = None,
    shape: ShapeOption = None,
    threads: ThreadsOption = None,
    objective: ObjectiveOption = Aim.LATENCY,
    slim: SlimOption = False,
    wait: WaitOption = 0.0,
    seed: SeedOption = 0,
    memory_budget: BudgetOption = None,
    margin: MarginOption = None,
    provider: ProvidersOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure which plan is fastest for a model on this machine, and remember it: later sessions open with it.

    Profiles the model, searches plans, measures the best of them against the whole model, and shows what was compared.
    Exits with 3 where other programs used the cores meanwhile, so that nothing was concluded; see --wait.

    Example: `parallax tune model.onnx --wait 600`
    """
    from parallax.cli._tune import tune_model

    tune_model(
        model,
        inputs=inputs or (),
        shapes=shape or (),
        options=parallax.Options(
            threads=threads,
            tune=True,
            objective=objective.value,
            slim=slim,
            **budget_options(memory_budget, margin),
            cache_dir=cache_dir,
        ),
        seed=seed,
        wait_s=wait,
        providers=provider or (),
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
    output: BundleTargetOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="Search and measure for the best plan first.")] = False,
    slim: SlimOption = False,
    wait: WaitOption = 0.0,
    portable: PortableOption = False,
    memory_limit: MemoryLimitOption = None,
    policy: CompiledPolicyOption = "adaptive",
    objective: ObjectiveOption = Aim.LATENCY,
    split: SplitOption = Splitting.AUTO,
    min_gain: MinGainOption = None,
    padding: PaddingOption = None,
    memory_budget: BudgetOption = None,
    margin: MarginOption = None,
    provider: ProvidersOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle of a model: the plan, optimised graphs and packed weights, for this machine and the devices named.

    `InferenceSession("model.plx")` opens it in milliseconds. Nothing is measured, unless with --tune; then it exits
    with 3 where other programs used the cores meanwhile, so that nothing was concluded (the bundle is whole, and
    usable); see --wait.

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
            slim=slim,
            **budget_options(memory_budget, margin),
            padding=None if padding is None else "trim",
            objective=objective.value,
            cache_dir=cache_dir,
        ),
        seed=seed,
        output=output,
        portable=portable,
        memory_limit=memory_limit,
        wait_s=wait,
        providers=provider or (),
        screen=_screen(as_json),
    )


app.command("train")(train_command)


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
    path: BundlesArgument = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what interrupted compilations left, and from the cache what was not used for longest.

    Example: `parallax bundle prune model.plx`
    """
    from parallax.cli._bundle import prune_bundles

    prune_bundles(path, cache_dir=cache_dir, screen=_screen(as_json))


@zoo_app.command("list")
@guarded
def zoo_list_command(as_json: JsonOption = False) -> None:
    """List the reference models.

    Example: `parallax zoo list --json`
    """
    from parallax.cli._zoo_list import list_zoo

    list_zoo(screen=_screen(as_json))


@zoo_app.command("export")
@guarded
def zoo_export_command(
    name: ZooNameArgument,
    output: ExportedFileOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a reference model to a file of its own, to be used like any other model.

    The weights are random: right for time and memory, and meaningless as predictions.

    Example: `parallax zoo export mobilenetv3-s -o model.onnx`
    """
    from parallax.cli._zoo_export import export_model

    export_model(name, output=output, replaces=force, cache_dir=cache_dir, screen=_screen(as_json))
