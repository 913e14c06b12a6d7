"""One random model in every mode of Parallax, beside ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from onnxruntime import InferenceSession as Session
from onnxruntime.capi import onnxruntime_pybind11_state as C

import parallax
from tests.fuzz._counts import Counts, Fault, Kind
from tests.fuzz._models import Made

DEVICE: Final = "emulated:pixel-6-gpu"


def _bundle(path: Path, folder: Path, **options: Any) -> Session:
    return parallax.InferenceSession(parallax.compile(path, folder / "model.plx", **options))


MODES: Final[Mapping[str, Callable[[Path, Path], Session]]] = {
    "default": lambda path, _: parallax.InferenceSession(path),
    "split": lambda path, _: parallax.InferenceSession(path, min_gain=0, threads=2),
    "budget": lambda path, _: parallax.InferenceSession(path, min_gain=0, threads=2, memory_budget="256MiB"),
    "bundle": lambda path, folder: _bundle(path, folder),
    "split bundle": lambda path, folder: _bundle(path, folder, min_gain=0, threads=2),
    "device": lambda path, _: parallax.InferenceSession(path, min_gain=0, providers=[DEVICE, "CPUExecutionProvider"]),
}

NATIVE = tuple(kind for kind in vars(C).values() if isinstance(kind, type) and issubclass(kind, Exception))
_EXPECTED = (*NATIVE, parallax.ParallaxError)

TOLERANCE = 1e-4
"""Of the largest magnitude in an output: what the README promises of other libraries; nearly all is bit for bit."""


def try_model(seed: int, made: Made, folder: Path, counts: Counts, modes: Sequence[str] = tuple(MODES)) -> None:
    """Compare all modes with ONNX Runtime on one model; faults are noted in ``counts``."""
    path = made.save(folder)
    counts.models += 1
    try:
        stock, expected = run_stock(path, made)
    except NATIVE:
        counts.invalid.append(seed)
        return
    for mode in modes:
        fault = _fault(MODES[mode], path, folder, stock, made, expected, counts, mode)
        if fault is not None:
            kind, text = fault
            counts.faults.append(Fault(seed=seed, mode=mode, kind=kind, text=text))


def run_stock(path: Path, made: Made) -> tuple[Session, list[Sequence[Any]]]:
    """ONNX Runtime's session for the model, and its answers. Raises: what ONNX Runtime raises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    stock = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return stock, [stock.run(None, feeds) for feeds in made.feeds]


def _fault(
    opening: Callable[[Path, Path], Session],
    path: Path,
    folder: Path,
    stock: Session,
    made: Made,
    expected: Sequence[Sequence[Any]],
    counts: Counts,
    mode: str,
) -> tuple[Kind, str] | None:
    try:
        session = opening(path, folder)
        counts.opened[mode] += 1
        counts.split[mode] += len(session.plan.segments) > 1
        for told in ("get_inputs", "get_outputs", "get_overridable_initializers"):
            found, wanted = _told(getattr(session, told)()), _told(getattr(stock, told)())
            if found != wanted:
                return Kind.WRONG, f"{told} gives {found} instead of {wanted}"
        for feeds, want in zip(made.feeds, expected, strict=True):
            got = session.run(None, feeds)
            counts.runs[mode] += 1
            for output, one, other in zip(stock.get_outputs(), want, got, strict=True):
                if (difference := _difference(one, other)) is not None:
                    return Kind.WRONG, f"output {output.name!r} is {difference}"
    except _EXPECTED as error:
        return Kind.REFUSED, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    except Exception as error:  # the fault that is looked for
        return Kind.FOREIGN, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return None


def _told(arguments: Sequence[Any]) -> list[tuple[str, str, str]]:
    return [(argument.name, argument.type, repr(argument.shape)) for argument in arguments]


def _difference(want: Any, got: Any) -> str | None:
    """How an output differs: an array, or a sequence or map of them."""
    if isinstance(want, list):
        if not isinstance(got, list) or len(want) != len(got):
            return f"{got!r} instead of {want!r}"
        return next((found for one, other in zip(want, got, strict=True) if (found := _difference(one, other))), None)
    if isinstance(want, dict):
        if not isinstance(got, dict) or list(want) != list(got):
            return f"{got!r} instead of {want!r}"
        return next((found for key in want if (found := _difference(want[key], got[key]))), None)
    if isinstance(want, float):
        return None if isinstance(got, float) and math.isclose(want, got, abs_tol=TOLERANCE) else f"{got} not {want}"
    if not isinstance(want, np.ndarray):
        return None if want == got else f"{got!r} instead of {want!r}"
    if not isinstance(got, np.ndarray) or (want.dtype, want.shape) != (got.dtype, got.shape):
        return f"{got!r} instead of {want!r}"
    if want.dtype.kind != "f":
        return None if np.array_equal(want, got) else f"{got!r} instead of {want!r}"
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
    share = 2e-3 if want.dtype == np.float16 else TOLERANCE
    if np.allclose(got, want, rtol=0, atol=share * max(scale, 1e-3), equal_nan=True):
        return None
    return f"off by {np.nanmax(np.abs(got - want)):.3g} where the largest is {scale:.3g}"
