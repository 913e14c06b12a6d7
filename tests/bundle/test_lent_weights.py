"""Weights without a packed form are lent to the runtime from one mapping, for as long as its session lives."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.backends.ort import MappedWeights, RuntimeOptions, make_mapped_session
from parallax.bundle import read_manifest
from parallax.errors import BundleError
from parallax.model import StoredWeight
from tests.bundle._models import compiled, expected, feeds, forge
from tests.bundle.test_arrangement import odd_sizes

FEEDS: dict[str, Any] = {"x": np.ones((3, 96), np.float32), "place": np.array([7])}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return parallax.compile(odd_sizes(tmp_path / "odd.onnx"), tmp_path / "odd.plx")


@pytest.fixture
def answer(bundle: Path, tmp_path: Path) -> Any:
    session = onnxruntime.InferenceSession(tmp_path / "odd.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, FEEDS)[0]


def test_the_manifest_lists_those_without_packed_forms(bundle: Path) -> None:
    (segment,) = read_manifest(bundle)[0].segments
    assert sorted(weight.name for weight in segment.weights) == [f"table_{number}" for number in range(4)]
    assert all(weight.dtype == "<f4" and weight.offset % 64 == 0 for weight in segment.weights)


def test_they_are_what_the_session_computes_with(bundle: Path, answer: Any) -> None:
    np.testing.assert_array_equal(parallax.InferenceSession(bundle).run(None, FEEDS)[0], answer)
    graph = bundle / read_manifest(bundle)[0].segments[0].graph
    weights = read_manifest(bundle)[0].segments[0].weights
    answers = []
    for offset_of in (lambda weight: weight.offset, lambda weight: weights[0].offset):
        lent = MappedWeights(
            str(graph.with_suffix(".data")), [replace(weight, offset=offset_of(weight)) for weight in weights]
        )
        session = make_mapped_session(str(graph), width=1, options=RuntimeOptions(), weights=lent)
        answers.append(session.run(["y"], FEEDS, None)[0])
    np.testing.assert_array_equal(answers[0], answer)
    assert not np.array_equal(answers[1], answer), "all tables lie where the first one does"


def test_they_stay_while_the_runtimes_own_session_is_held(bundle: Path, answer: Any) -> None:
    inner: Any = parallax.InferenceSession(bundle)._sess
    gc.collect()
    np.testing.assert_array_equal(inner.run(["y"], FEEDS, None)[0], answer)


def test_the_options_of_an_open_session_can_open_others(bundle: Path, answer: Any, tmp_path: Path) -> None:
    options = parallax.InferenceSession(bundle).get_session_options()
    gc.collect()
    session = onnxruntime.InferenceSession(tmp_path / "odd.onnx", options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, FEEDS)[0], answer, rtol=1e-5)


def test_the_callers_options_are_left_alone(bundle: Path, answer: Any, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    session = parallax.InferenceSession(bundle, options)
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], answer)
    del session
    gc.collect()
    other = onnxruntime.InferenceSession(tmp_path / "odd.onnx", options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(other.run(None, FEEDS)[0], answer)


def test_cut_bundles_lend_too(tmp_path: Path) -> None:
    model = odd_sizes(tmp_path / "odd.onnx")
    bundle = parallax.compile(model, tmp_path / "cut.plx", min_gain=0, threads=2)
    session = parallax.InferenceSession(bundle)
    theirs = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, FEEDS)[0], theirs.run(None, FEEDS)[0], rtol=1e-6)


def test_weights_that_are_all_packed_need_nothing_lent(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, width=600)
    assert read_manifest(bundle)[0].segments[0].weights == ()
    fed = feeds(width=600)
    np.testing.assert_array_equal(
        parallax.InferenceSession(bundle).run(None, fed)[0], expected(tmp_path / "model.onnx", fed)
    )


@pytest.mark.parametrize(
    "change",
    [
        *({"offset": offset} for offset in (-1, -64, -(1 << 30), 0, 1, 4, 64, 1 << 20, 1 << 40, (1 << 63) - 1)),
        *({"shape": shape} for shape in ([1 << 40], [-1], [0], [1], [2, -3], [], [1 << 62, 1 << 62])),
        *({"dtype": dtype} for dtype in ("no such type", "<f8", "|u1", "<i4", ">f4", "|O", "|V4", "<U1", "")),
        {"name": "another"},
        {"name": "table_3"},
    ],
    ids=str,
)
def test_a_manifest_that_says_another_thing_of_one_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    forge(bundle, lambda manifest: manifest["segments"][0]["weights"][0].update(change))
    with pytest.raises(BundleError):
        parallax.InferenceSession(bundle)


@pytest.mark.parametrize("change", ["swapped", "doubled", "dropped"])
def test_a_manifest_that_mixes_them_up_is_refused(bundle: Path, change: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        weights = manifest["segments"][0]["weights"]
        if change == "swapped":
            weights[0]["offset"], weights[1]["offset"] = weights[1]["offset"], weights[0]["offset"]
        elif change == "doubled":
            weights.append(dict(weights[0]))
        else:
            weights.pop()

    forge(bundle, edit)
    with pytest.raises(BundleError):
        parallax.InferenceSession(bundle)


@pytest.mark.parametrize(
    "weight",
    [
        StoredWeight(name="w", dtype="<f4", shape=(4,), offset=-4),
        StoredWeight(name="w", dtype="<f4", shape=(4,), offset=4096 * 4 - 12),
        StoredWeight(name="w", dtype="<f4", shape=(1 << 40, 1 << 40), offset=0),
        StoredWeight(name="w", dtype="no such type", shape=(4,), offset=0),
    ],
    ids=["before", "beyond", "immense", "untyped"],
)
def test_nothing_is_lent_from_outside_the_file(tmp_path: Path, weight: StoredWeight) -> None:
    path = tmp_path / "w.data"
    path.write_bytes(bytes(4096 * 4))
    with pytest.raises((TypeError, ValueError)):
        MappedWeights(str(path), [weight])


def test_they_are_let_go_with_the_session(tmp_path: Path) -> None:
    path = tmp_path / "w.data"
    path.write_bytes(np.arange(4096, dtype=np.float32).tobytes())
    weights = MappedWeights(str(path), [StoredWeight(name="w", dtype="<f4", shape=(4096,), offset=0)])

    class Session:
        pass

    session = Session()
    weights.keep_for(session)
    assert weights._values
    del session
    gc.collect()
    assert not weights._values
