"""ONNX's backend tests, on every backend that takes a whole case: what it takes, it computes as ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from parallax.device import Backend, CompileOptions
from parallax.errors import BackendError, ParallaxError
from parallax.model import load_model
from tests.conformance._expected import difference_of, expectations
from tests.conformance._onnx_suite import Case, load_cases, shard_of
from tests.device._backends import obstacle, opened, value, whole

SHARES = {"openvino": 8, "webgpu": 8}
"""One case of so many is run by default; all of them among the slow tests."""

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")

EXCUSED = {
    # The scale and zero point are computed by operators of their own, and one value of six falls on a tie.
    ("openvino", "node/test_dynamicquantizelinear_expanded"),
    # The plugin takes them, and calls it the feeds' fault that it does not train.
    ("webgpu", "node/test_batchnorm_epsilon_training_mode"),
    ("webgpu", "node/test_batchnorm_example_training_mode"),
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
    prepared = expectations(proto, case)
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
        if (name, case.id) not in EXCUSED:
            tally.differences.append(f"{case.id}: {error}")
        return
    difference = difference_of(expected, made, case)
    if not difference:
        tally.equal += 1
    elif (name, case.id) not in EXCUSED:
        tally.differences.append(f"{case.id}: {difference}")
