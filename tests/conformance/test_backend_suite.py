"""ONNX's backend tests, on every backend that takes a whole case: what it takes, it computes as ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from parallax.device import Backend, CompileOptions
from parallax.errors import BackendError, ParallaxError
from parallax.model import load_model
from tests.conformance._onnx_suite import Case, load_cases, shard_of
from tests.device._backends import obstacle, opened, value, whole

SHARES = {"openvino": 8, "webgpu": 8}
"""One case of so many is run by default; all of them among the slow tests."""

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")

EXCUSED = {
    # The scale and zero point are computed by operators of their own, and one value of six falls on a tie.
    ("openvino", "node/test_dynamicquantizelinear_expanded"),
}


@dataclass(slots=True)
class Tally:
    """What became of the cases."""

    equal: int = 0
    refused: int = 0
    differences: list[str] | None = None


def _params() -> list[Any]:
    params = []
    for name, share in SHARES.items():
        reason = obstacle(name)
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        params.append(pytest.param((name, share), id=name, marks=marks))
        params.append(pytest.param((name, 1), id=f"{name}-all", marks=[*marks, pytest.mark.slow]))
    return params


@pytest.fixture(scope="module", params=_params())
def sampled(request: pytest.FixtureRequest) -> Iterator[tuple[str, Backend, int]]:
    name, share = request.param
    with opened(name) as backend:
        yield name, backend, share


@pytest.mark.timeout(1800)
def test_what_a_backend_takes_it_computes_as_onnxruntime_does(sampled: tuple[str, Backend, int]) -> None:
    name, backend, share = sampled
    cases = [case for kind in KINDS for case in load_cases(kind) if shard_of(case, share) == 0]
    tally = Tally(differences=[])
    for case in cases:
        _examine(name, backend, case, tally)
    assert not tally.differences, "\n".join(tally.differences or ())
    # Refusing everything is right and worth nothing.
    assert tally.equal > 0.15 * len(cases)


def _examine(name: str, backend: Backend, case: Case, tally: Tally) -> None:
    assert tally.differences is not None
    proto = case.read_model()
    prepared = _expectations(proto, case)
    if prepared is None:
        return
    feeds, expected = prepared
    try:
        model = load_model(proto)
        if backend.capability(model).refused:
            tally.refused += 1
            return
        part = backend.compile(whole(model), width=1, options=CompileOptions(exclusive=True))
        fed = {key: value(array) for key, array in feeds.items()}
        made = [np.array(got.numpy()) for got in part.run_with_ort_values(fed, part.outputs)]
    except BackendError:
        # It said that it takes the case, or these feeds are not for it. To say so then costs time, but no answer.
        tally.refused += 1
        return
    except ParallaxError as error:
        tally.differences.append(f"{case.id}: {error}")
        return
    difference = _difference(expected, made, case)
    if not difference:
        tally.equal += 1
    elif (name, case.id) not in EXCUSED:
        tally.differences.append(f"{case.id}: {difference}")


def _expectations(
    proto: onnx.ModelProto, case: Case
) -> tuple[dict[str, np.ndarray[Any, Any]], Sequence[np.ndarray[Any, Any]]] | None:
    """Feeds, and what ONNX Runtime's own provider makes of them; None where it refuses, or not all are tensors."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    inputs, _ = case.read_data(proto)[0]
    feeds = {info.name: array for info, array in zip(proto.graph.input, inputs, strict=False) if array is not None}
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in feeds.values()):
        return None
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        expected = session.run(None, feeds)
    except Exception:  # the suite has cases for newer operators than ONNX Runtime's
        return None
    plain = all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in expected)
    return ({key: np.array(array, order="C") for key, array in feeds.items()}, expected) if plain else None


def _difference(
    expected: Sequence[np.ndarray[Any, Any]], made: Sequence[np.ndarray[Any, Any]], case: Case
) -> str | None:
    for want, got in zip(expected, made, strict=True):
        if (want.dtype, want.shape) != (got.dtype, got.shape):
            return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
        if want.dtype.kind != "f":
            if not np.array_equal(want, got):
                return f"{got.ravel()[:8]} instead of {want.ravel()[:8]}"
            continue
        # Sums of large terms that cancel are as inexact as the terms.
        scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        absolute = (1e-2 if want.dtype == np.float16 else max(case.atol, 1e-4)) * scale
        if not np.allclose(got, want, rtol=max(case.rtol, 1e-3), atol=absolute, equal_nan=True):
            return f"{got.ravel()[:8]} instead of {want.ravel()[:8]}"
    return None
