"""ONNX's backend tests, on every backend that takes a whole case: what it takes, it computes as ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from parallax.backends import Backend, CompileOptions
from parallax.errors import BackendError, ParallaxError
from parallax.model import load_model
from tests.backends._backends import obstacle, opened, value, whole
from tests.conformance._expected import difference_of, expectations
from tests.conformance._onnx_suite import Case, load_cases, shard_of

NAMES = ("openvino", "webgpu")
SHARDS = 8
"""One shard of the cases is run by default; the others are slow tests."""

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")

FAILED_SHARE = 0.02
"""Of the cases: fewer may be taken and then fail, which the guard of a session makes good by computing them again."""

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
    failed: list[str] = field(default_factory=list)
    """Cases that the backend took, and then could not compile or run: they cost time, but no answer."""
    differences: list[str] = field(default_factory=list)


def _params() -> list[Any]:
    params = []
    for name in NAMES:
        reason = obstacle(name)
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        params.append(pytest.param((name, 0), id=name, marks=marks))
        for shard in range(1, SHARDS):
            params.append(pytest.param((name, shard), id=f"{name}-{shard}", marks=[*marks, pytest.mark.slow]))
    return params


@pytest.fixture(scope="module", params=_params())
def sampled(request: pytest.FixtureRequest) -> Iterator[tuple[str, Backend, int]]:
    name, shard = request.param
    with opened(name) as backend:
        yield name, backend, shard


@pytest.mark.timeout(600)
def test_what_a_backend_takes_it_computes_as_onnxruntime_does(sampled: tuple[str, Backend, int]) -> None:
    name, backend, shard = sampled
    cases = [case for kind in KINDS for case in load_cases(kind) if shard_of(case, SHARDS) == shard]
    tally = Tally()
    for case in cases:
        _examine(name, backend, case, tally)
    print(name, len(cases), "cases;", tally.equal, "equal", tally.refused, "refused", len(tally.failed), "failed")
    assert not tally.differences, "\n".join(tally.differences)
    assert len(tally.failed) < FAILED_SHARE * len(cases), "\n".join(tally.failed)
    # Refusing everything is right and worth nothing.
    assert tally.equal > 0.15 * len(cases)


def _examine(name: str, backend: Backend, case: Case, tally: Tally) -> None:
    proto = case.read_model()
    prepared = expectations(proto, case)
    if prepared is None:
        return
    feeds, expected = prepared
    try:
        model = load_model(proto)
        takes_all = not backend.capability(model).refused
    except BackendError:
        takes_all = False
    if not takes_all:
        tally.refused += 1
        return
    try:
        part = backend.compile(whole(model), width=1, options=CompileOptions(exclusive=True))
        fed = {key: value(array) for key, array in feeds.items()}
        made = [np.array(got.numpy()) for got in part.run_with_ort_values(fed, part.interface.output_names)]
    except BackendError as error:
        tally.failed.append(f"{case.id}: {error}")
        return
    except ParallaxError as error:
        if (name, case.id) not in EXCUSED:
            tally.differences.append(f"{case.id}: {error}")
        return
    difference = difference_of(expected, made)
    if not difference:
        tally.equal += 1
    elif (name, case.id) not in EXCUSED:
        tally.differences.append(f"{case.id}: {difference}")
