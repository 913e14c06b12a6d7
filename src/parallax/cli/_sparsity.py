"""``parallax inspect --sparsity``: which zeros a model computes with, and what they are worth here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallax.backends import Backend, open_backend
from parallax.bundle import read_bundle
from parallax.cli._console import ProgressCallback, Screen
from parallax.cli._examples import Example, random_examples, read_examples
from parallax.cli._feeds import parse_shapes
from parallax.cli._models import ModelSource, find_model
from parallax.cli._open import check_writable
from parallax.cli._original import find_original
from parallax.cli._providers import parse_provider
from parallax.cli._scatter import draw_scatter
from parallax.cli._sparsity_tables import render_sparsity
from parallax.cli._timing import time_interleaved
from parallax.errors import BundleError, ConfigError
from parallax.machine import NOISY_SHARE, LoadMeter, available_cores
from parallax.model import Model, load_model
from parallax.options import make_device
from parallax.profile import Cache
from parallax.schedule import CPU_BACKEND
from parallax.sparsity import (
    OperatorZeros,
    SparsityReport,
    ZeroWorth,
    keep_worth,
    kept_worths,
    measure_zero_worth,
    study_zeros,
)

DEFAULT_SAMPLES = 3
"""Random examples that a model is looked at with."""

_ROUNDS = 21
"""In which each form of zeros is timed once: a quarter of a minute per backend in all."""

RANDOM_NOTE = (
    "Inputs are random, and zeros of activations depend on what is fed: these say little of real ones. Give examples "
    "with --calibration FILE.npz."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsityQuestion:
    """What is asked of a model's zeros; see the options of ``parallax inspect``."""

    calibration: Path | None = None
    samples: int | None = None
    min_flops: float | None = None
    max_zeros: float | None = None
    plot: Path | None = None
    measure: bool = False


def inspect_sparsity(
    model: str,
    question: SparsityQuestion,
    *,
    shapes: Sequence[str],
    threads: int | None,
    providers: Sequence[str],
    cache_dir: Path | None,
    screen: Screen,
) -> None:
    """Show the zeros of ``model``, for which it is run on examples.

    Args:
        providers: devices for which it is measured what they make of zeros, beside the CPU.
    """
    if providers and not question.measure:
        raise ConfigError(
            "--provider names a device, and --sparsity looks at a model on the CPU",
            fix="add --measure, which measures what the device makes of zeros, or leave --provider out",
        )
    if question.calibration is not None and shapes:
        raise ConfigError(
            "--shape and --calibration both say which shapes the inputs have",
            fix="leave --shape out: the file has them",
        )
    if question.plot is not None:
        check_writable(question.plot)
    backends = _open_backends(providers)
    given = parse_shapes(shapes)
    source = _source_of(find_model(model, screen, bundles=True, cache_dir=cache_dir), screen)
    width = threads or available_cores()
    with screen.progress() as progress:
        progress("loading", 0, 1)
        loaded = load_model(source.path)
        if question.calibration is None:
            examples, notices = random_examples(
                loaded, question.samples or DEFAULT_SAMPLES, shapes=given, zoo_name=source.zoo_name
            )
            for notice in notices:
                screen.notice(notice)
        else:
            examples = read_examples(question.calibration, loaded, most=question.samples)
        progress("loading", 1, 1)
        found = study_zeros(
            _in_shapes_of(examples[0], loaded),
            examples,
            min_flops=question.min_flops,
            max_zeros=question.max_zeros,
            width=width,
            progress=functools.partial(progress, "running"),
        )
        cache = Cache(cache_dir)
        worths, others = _worths(backends, cache, question, screen=screen, progress=progress)
    report: dict[str, Any] = {
        "model": source.label,
        **_describe(found, loaded, is_random=question.calibration is None),
        "worth": _describe_worth(worths, others),
        "plot": None if question.plot is None else str(question.plot),
    }
    if question.plot is not None:
        thresholds = {"min_flops": found.min_flops, "max_zeros": found.max_zeros}
        drawn = draw_scatter(f"{source.label}: work and zeros of operators", report["operators"], **thresholds)
        question.plot.write_text(drawn, encoding="utf-8")
    screen.show(report, lambda console: render_sparsity(report, console))


def _source_of(source: ModelSource, screen: Screen) -> ModelSource:
    """The model to look at: that which a bundle was compiled from, for a bundle.

    Raises: BundleError where that is not there any more.
    """
    if not source.is_bundle:
        return source
    path, why = find_original(read_bundle(source.path, verify="never"))
    if path is None:
        raise BundleError(
            f"{source.label!r} is compiled: its weights are packed, and the tensors between its operators are gone",
            where=why,
            fix="name the model that it was compiled from",
        )
    screen.notice(f"{source.label} is compiled: looking at {path}, which it was made from")
    return ModelSource(label=source.label, path=path)


def _in_shapes_of(example: Example, model: Model) -> Model:
    """The model with the shapes of an example where it leaves them open, so that sizes are known."""
    shapes = {info.name: tuple(example[info.name].shape) for info in model.graph.inputs if not info.is_static}
    return model.with_shapes(shapes) if shapes else model


# What zeros are worth ---------------------------------------------------------------------------------


def _open_backends(providers: Sequence[str]) -> dict[str, Backend]:
    """The CPU and the devices asked for, by name. Raises: as `parallax.backends.open_backend`."""
    found = {CPU_BACKEND: open_backend(CPU_BACKEND)}
    for text in providers:
        asked = make_device(*parse_provider(text))
        backend = open_backend(asked.name, asked.options)
        if backend.info.is_emulated:
            raise ConfigError(
                f"{asked.name} is emulated: it computes nothing itself, so that zeros cost it what a profile says",
                fix="leave it out; `parallax devices` lists devices that are there",
            )
        found[asked.name] = backend
    return found


def _worths(
    backends: Mapping[str, Backend],
    cache: Cache,
    question: SparsityQuestion,
    *,
    screen: Screen,
    progress: ProgressCallback,
) -> tuple[dict[str, ZeroWorth], float]:
    """What is known of what backends make of zeros, measured now where that is asked for; and how many cores other
    programs used meanwhile. Measured figures are kept, unless others used the cores."""
    if not question.measure:
        return kept_worths(cache, backends), 0.0
    meter = LoadMeter()
    compare = functools.partial(_compare, progress)
    measured = {name: measure_zero_worth(backend, compare) for name, backend in backends.items()}
    others = meter.cores_taken(1)
    if others > NOISY_SHARE:
        screen.notice(f"other programs used {others:.1f} cores: what was measured of zeros is shown, and not kept")
    else:
        for worth in measured.values():
            keep_worth(cache, worth)
    return measured, others


def _compare(progress: ProgressCallback, calls: Mapping[str, Callable[[], object]]) -> Mapping[str, Sequence[float]]:
    timings = time_interleaved(calls, rounds=_ROUNDS, cores=1, progress=functools.partial(progress, "measuring zeros"))
    return {label: timing.samples_ns for label, timing in timings.items()}


def _describe_worth(worths: Mapping[str, ZeroWorth], others: float) -> dict[str, Any]:
    return {
        "others_used_cores": others,
        "backends": {
            name: {
                "backend": worth.backend,
                "version": worth.version,
                "changes_prices": not worth.is_nothing,
                "timings": [
                    {
                        "operator": timing.operator,
                        "form": timing.form,
                        "zeros": timing.zeros_permille / 1000,
                        "time_ratio": timing.ratio_permille / 1000,
                        "low": timing.low_permille / 1000,
                        "high": timing.high_permille / 1000,
                        "price_factor": timing.factor,
                    }
                    for timing in worth.timings
                ],
            }
            for name, worth in worths.items()
        },
    }


# What was seen ----------------------------------------------------------------------------------------


def _describe(found: SparsityReport, model: Model, *, is_random: bool) -> dict[str, Any]:
    zero_rows, rows, zero_columns, columns = found.channels()
    has_mask = any("mask" in info.name for info in model.graph.inputs)
    return {
        "examples": {
            "source": "random" if is_random else "calibration",
            "number": found.examples,
            "runs_each": found.runs,
            "note": RANDOM_NOTE if is_random else "",
        },
        "summary": {
            "zero_multiplications": found.zero_multiplications,
            "zero_output_channels": zero_rows,
            "output_channels": rows,
            "zero_input_channels": zero_columns,
            "input_channels": columns,
            "removed_by": "slim=True",
            "padding_removed_by": 'padding="trim"' if has_mask else None,
            "operators_seen": sum(operator.seen is not None for operator in found.operators),
        },
        "thresholds": {"min_flops": found.min_flops, "max_zeros": found.max_zeros},
        "operators": [_describe_operator(found, operator) for operator in found.operators],
    }


def _describe_operator(found: SparsityReport, operator: OperatorZeros) -> dict[str, Any]:
    seen, weights = operator.seen, operator.weights
    return {
        "node": operator.name,
        "operator": operator.op_type,
        "inside": operator.inside,
        "input": operator.activation,
        "input_zeros": None if seen is None else {"mean": seen.mean, "deviation": seen.deviation},
        "not_observed": operator.why_unseen or None,
        "weight_zeros": None
        if weights is None
        else {
            "share": weights.share,
            "elements": weights.elements,
            "output_channels": weights.rows,
            "zero_output_channels": weights.zero_rows,
            "input_channels": weights.columns,
            "zero_input_channels": weights.zero_columns,
        },
        "zeros": operator.zeros,
        "flops": operator.flops,
        "flops_known": operator.is_work_known,
        "flops_per_byte": operator.intensity,
        "quadrant": found.quadrant(operator).value,
    }
