"""Sessions with ``slim=True``: the same answers from what is left of a pruned model, in every way to open one."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from _slimmed import CASES, make_zeroed

import parallax
from parallax import zoo
from parallax.bundle import read_manifest
from parallax.model import load_model, slim_model
from tests.model._pruned import Feeds, losing

PHONE = "emulated:pixel-6-gpu"
CPU = "CPUExecutionProvider"
TOLERANCE = 1e-4
"""Of an output's largest magnitude."""


SEEDS = {"convolutional": 2, "transformer": 3}
"""Models that lose channels and can be split."""


@pytest.fixture(scope="module", params=list(SEEDS))
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Feeds, list[Any]]:
    """A model on disk that loses channels, feeds, and ONNX Runtime's answers."""
    path = tmp_path_factory.mktemp("pruned") / "m.onnx"
    made, feeds = losing(SEEDS[request.param])
    onnx.save(made, path)
    return path, feeds, answers(path, feeds)


def answers(source: Any, feeds: Mapping[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return list(onnxruntime.InferenceSession(source, options, providers=[CPU]).run(None, dict(feeds)))


def assert_close(ours: list[Any], theirs: list[Any]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        scale = float(np.abs(other).max()) or 1.0
        np.testing.assert_allclose(mine / scale, other / scale, rtol=0, atol=TOLERANCE)


def _bundle(path: Path, folder: Path, **given: Any) -> parallax.InferenceSession:
    return parallax.InferenceSession(parallax.compile(path, folder / "m.plx", slim=True, **given))


OPENINGS: Mapping[str, Callable[[Path, Path], parallax.InferenceSession]] = {
    "default": lambda path, _: parallax.InferenceSession(path, slim=True),
    "bytes": lambda path, _: parallax.InferenceSession(path.read_bytes(), slim=True),
    "message": lambda path, _: parallax.InferenceSession(onnx.load(path), slim=True),
    "session options": lambda path, _: parallax.InferenceSession(path, onnxruntime.SessionOptions(), slim=True),
    "split": lambda path, _: parallax.InferenceSession(path, slim=True, split="always", threads=2),
    "tuned": lambda path, folder: parallax.InferenceSession(
        path, slim=True, tune=True, threads=2, cache_dir=folder, backends=()
    ),
    "budget": lambda path, _: parallax.InferenceSession(
        path, slim=True, split="always", threads=2, memory_budget="256MiB"
    ),
    "device": lambda path, _: parallax.InferenceSession(path, slim=True, split="always", providers=[PHONE, CPU]),
    "bundle": _bundle,
    "split bundle": lambda path, folder: _bundle(path, folder, split="always", threads=2),
    "portable bundle": lambda path, folder: _bundle(path, folder, portable=True, split="always", threads=2),
    "cache": lambda path, folder: parallax.InferenceSession(path, slim=True, cache=True, cache_dir=folder),
    "pickled": lambda path, _: pickle.loads(pickle.dumps(parallax.InferenceSession(path, slim=True))),
    "opened anew": lambda path, _: _anew(parallax.InferenceSession(path, slim=True)),
    "whole beside": lambda path, _: parallax.InferenceSession(path, slim=True, split="always", threads=2),
}


def _anew(session: parallax.InferenceSession) -> parallax.InferenceSession:
    session.set_providers([CPU])
    return session


@pytest.mark.parametrize("way", list(OPENINGS))
def test_answers_are_those_of_the_model_as_it_was(
    way: str, pruned: tuple[Path, Feeds, list[Any]], tmp_path: Path
) -> None:
    path, feeds, expected = pruned
    session = OPENINGS[way](path, tmp_path)
    assert_close(session.run(None, feeds), expected)
    if way == "whole beside":
        binding = session.io_binding()
        binding.bind_cpu_input("x", feeds["x"])
        binding.bind_output(session.get_outputs()[0].name)
        session.run_with_iobinding(binding)
        assert_close(binding.copy_outputs_to_cpu(), expected)
    if way in ("split", "budget", "split bundle", "portable bundle", "whole beside"):
        assert len(session.plan.segments) > 1
    assert "slimmed: " in session.plan.provenance.reason
    assert "slimmed: " in session.explain().replace("\n", " ")
    assert [output.shape for output in session.get_outputs()] == [list(value.shape) for value in expected]


def test_threads_share_a_slimmed_session(pruned: tuple[Path, Feeds, list[Any]]) -> None:
    path, feeds, expected = pruned
    session = parallax.InferenceSession(path, slim=True, split="always", threads=2)
    found: list[list[Any]] = []
    callers = [threading.Thread(target=lambda: found.append(session.run(None, feeds))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    for values in found:
        assert_close(values, expected)


def test_a_model_without_zeros_opens_as_without_the_option(tmp_path: Path) -> None:
    made, _ = losing()
    for tensor in made.graph.initializer:  # no number is 0 any more
        value = onnx.numpy_helper.to_array(tensor).copy()
        if value.dtype == np.float32:
            value[value == 0] = 0.01
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(made, tmp_path / "m.onnx")
    given = parallax.InferenceSession(tmp_path / "m.onnx", split="always", threads=2)
    asked = parallax.InferenceSession(tmp_path / "m.onnx", split="always", threads=2, slim=True)
    assert asked.plan.structure_digest == given.plan.structure_digest
    assert asked.plan.segments == given.plan.segments
    assert "slim=True is of no effect: no channel is constant" in asked.plan.provenance.reason
    x = {"x": np.ones([dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim], np.float32)}
    for ours, theirs in zip(asked.run(None, x), given.run(None, x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_session_options_give_are_not_those_of_the_model(pruned: tuple[Path, Feeds, list[Any]]) -> None:
    path, _, _ = pruned
    name = onnx.load(path).graph.initializer[0].name
    held = onnxruntime.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]))
    options = onnxruntime.SessionOptions()
    options.add_initializer(name, held)
    session = parallax.InferenceSession(path, options, slim=True)
    assert "slim=True is of no effect: the session options give" in session.plan.provenance.reason


def test_bundles_and_plans_are_told_apart(pruned: tuple[Path, Feeds, list[Any]], tmp_path: Path) -> None:
    path, _, _ = pruned
    bundle = parallax.compile(path, tmp_path / "m.plx", slim=True)
    manifest = read_manifest(bundle)[0]
    assert manifest.options.slim
    assert manifest.weight_bytes < load_model(path).weight_bytes
    assert manifest.source == read_manifest(parallax.compile(path, tmp_path / "n.plx"))[0].source
    assert parallax.InferenceSession(bundle, slim=True).plan == parallax.InferenceSession(bundle).plan
    with pytest.raises(parallax.ConfigError, match="slim= is decided when a bundle is compiled"):
        parallax.InferenceSession(tmp_path / "n.plx", slim=True)
    for slim in (False, True):
        parallax.InferenceSession(path, slim=slim, cache=True, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("manifest.json"))) == 2
    slimmed, given = (parallax.InferenceSession(path, slim=slim).plan.structure_digest for slim in (True, False))
    assert slimmed != given


@pytest.mark.parametrize(
    "name",
    ["resnet18-channels", pytest.param("distilbert-neurons", marks=pytest.mark.slow)],
)
def test_exported_models_lose_half_of_what_lies_between(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = make_zeroed(case, tmp_path)
    feeds = zoo.example_inputs(case.model)
    slimmed = slim_model(load_model(path)).slimming
    halves = [removal.count * 2 == removal.of for removal in slimmed.removals]
    assert all(halves)
    assert len(halves) == {"resnet18": 8, "distilbert": 6}[case.model]
    assert slimmed.parameters > 0.15 * slimmed.of_parameters
    assert slimmed.flops > 0.25 * slimmed.of_flops
    session = parallax.InferenceSession(path, slim=True)
    assert_close(session.run(None, feeds), answers(path, feeds))


def test_zeros_at_random_are_worth_nothing(tmp_path: Path) -> None:
    path = make_zeroed(CASES["resnet18-random"], tmp_path)
    model = slim_model(load_model(path))
    assert model.slimming.removals == ()
    assert model.whole() == str(path)
