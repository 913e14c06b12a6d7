"""Every pair of what Parallax offers, in one session, with eight threads, against ONNX Runtime."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.schedule import CPU_BACKEND
from tests._threads import in_threads

FEATURES = (
    *("bundle", "cache", "budget", "device", "two devices", "shared rows"),
    *("open shapes", "control flow", "many callers", "energy", "adapt"),
)

REFUSED = {
    ("bundle", "cache"): "cache= is decided when a bundle is compiled",
    ("bundle", "adapt"): "adapt= is decided when a bundle is compiled",
}
"""Pairs that no session can be opened with, and what is said then."""

OF_NO_EFFECT = {
    ("cache", "adapt"): "the session runs a bundle, which holds one plan",
    ("shared rows", "adapt"): "the model's layers are split by rows",
    ("energy", "adapt"): 'the plan is that of objective="energy", and plans for other states are chosen by time',
}
"""Pairs of which a session does without the second, and what its plan says."""

NOT = {**REFUSED, **OF_NO_EFFECT}

PAIRS = tuple(itertools.combinations(FEATURES, 2))

# Made so quick below that what they take gains there, whatever the processor was measured to take.
PHONE, OTHER = "emulated:pixel-6-gpu", "emulated:p30-pro-gpu"
CPU = "CPUExecutionProvider"
ROWS, SIZE, THREADS = 512, 256, 8
PAGE = Path(__file__).parents[2] / "docs" / "together.md"

Feeds = Mapping[str, Any]


def model(*, rows: int | str, has_branches: bool) -> bytes:
    """Products, which devices take, beside and between error functions, which the phone does not."""
    rng = np.random.default_rng(0)
    nodes, weights, ends = [], [], []
    for side in ("left", "right"):
        last = "x"
        for step in range(2):
            weight = rng.normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE**0.5
            weights.append(numpy_helper.from_array(weight, f"w_{side}_{step}"))
            nodes.append(helper.make_node("MatMul", [last, f"w_{side}_{step}"], [f"p_{side}_{step}"]))
            nodes.append(helper.make_node("Erf", [f"p_{side}_{step}"], [f"e_{side}_{step}"]))
            last = f"e_{side}_{step}"
        ends.append(last)
    nodes.append(helper.make_node("Add", ends, ["joined"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, SIZE])]
    if has_branches:
        inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        bodies = {
            f"{name}_branch": helper.make_graph(
                [
                    helper.make_node("MatMul", ["joined", "w_left_0"], [f"{name}_product"]),
                    helper.make_node(operator, [f"{name}_product"], [f"{name}_end"]),
                ],
                name,
                [],
                [helper.make_tensor_value_info(f"{name}_end", TensorProto.FLOAT, [rows, SIZE])],
            )
            for name, operator in (("then", "Tanh"), ("else", "Neg"))
        }
        nodes.append(helper.make_node("If", ["flag"], ["y"], **bodies))
    else:
        nodes.append(helper.make_node("Neg", ["joined"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, SIZE])]
    graph = helper.make_graph(nodes, "together", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a pair is run on: a model, feeds with ONNX Runtime's answers, and the options of the pair."""

    path: Path
    cache: Path
    features: frozenset[str]
    feeds: tuple[Feeds, ...]
    answers: tuple[Any, ...]
    planning: dict[str, Any] = field(default_factory=dict)
    """Options that a bundle decides, and a session on the model is given."""
    running: dict[str, Any] = field(default_factory=dict)
    """Options of sessions alone."""

    @classmethod
    def of(cls, features: frozenset[str], folder: Path) -> Scene:
        is_open, has_branches = "open shapes" in features, "control flow" in features
        content = model(rows="n" if is_open else ROWS, has_branches=has_branches)
        path = folder / "model.onnx"
        path.write_bytes(content)
        stock = onnxruntime.InferenceSession(content, providers=[CPU])
        feeds: list[Feeds] = []
        for number, rows in enumerate((ROWS, 24) if is_open else (ROWS, ROWS)):
            fed = {"x": np.random.default_rng(number).normal(size=(rows, SIZE)).astype(np.float32)}
            feeds.append(fed | ({"flag": np.array(number == 0)} if has_branches else {}))
        planning: dict[str, Any] = {"threads": 2, "cache_dir": folder / "cache"}
        if is_open:
            planning["shapes"] = {"x": (ROWS, SIZE)}
        devices = {PHONE: 100} if features & {"device", "shared rows"} else {}
        if "two devices" in features:
            devices = {PHONE: 30, OTHER: 60}
            planning["policy"] = "local-search"
        if devices:
            # Joules are those of the device itself, at its own speed beside a processor of so many FLOP/s.
            quick: list[tuple[str, dict[str, Any]]] = [(name, {"speed": factor}) for name, factor in devices.items()]
            if "energy" in features:
                planning["providers"] = [*((name, {"host_flops": 6e10}) for name in devices), CPU]
            else:
                planning |= {"providers": [*quick, CPU], "min_gain": 0.01}
        if "shared rows" in features:
            planning["policy"] = "shard-rows"
        if "energy" in features:
            planning["objective"] = "energy"
        running: dict[str, Any] = {}
        if "budget" in features:
            running["memory_budget"] = "256MiB"
        if "adapt" in features:
            running["adapt"] = True
        if "cache" in features:
            running["cache"] = True
        return cls(
            path=path,
            cache=folder / "cache",
            features=features,
            feeds=tuple(feeds),
            answers=tuple(stock.run(None, fed)[0] for fed in feeds),
            planning=planning,
            running=running,
        )

    def open(self) -> parallax.InferenceSession:
        """The session that the pair asks for."""
        if "bundle" not in self.features:
            return parallax.InferenceSession(self.path, **self.planning, **self.running)
        bundle = parallax.compile(self.path, self.path.with_suffix(".plx"), **self.planning)
        return parallax.InferenceSession(bundle, cache_dir=self.cache, **self.running)

    def check(self, number: int, answer: Any) -> None:
        np.testing.assert_allclose(answer, self.answers[number % len(self.feeds)], rtol=1e-4, atol=1e-4)


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene.of(frozenset(request.param), tmp_path)


@pytest.fixture
def session(scene: Scene) -> Iterator[parallax.InferenceSession]:
    with scene.open() as opened:
        yield opened


def works(pair: tuple[str, str]) -> bool:
    return pair not in NOT


@pytest.mark.parametrize("scene", list(filter(works, PAIRS)), ids=" and ".join, indirect=True)
def test_a_pair_goes_together(scene: Scene, session: parallax.InferenceSession) -> None:
    check_effects(scene, session)
    check_answers(scene, session)


@pytest.mark.parametrize("scene", list(OF_NO_EFFECT), ids=" and ".join, indirect=True)
def test_of_some_pairs_a_session_does_without_one_and_says_so(scene: Scene, session: parallax.InferenceSession) -> None:
    (reason,) = (OF_NO_EFFECT[pair] for pair in OF_NO_EFFECT if scene.features == set(pair))
    assert reason in session.plan.provenance.reason
    assert session.adaptation is not None
    assert reason in str(session.adaptation.ended)
    check_effects(scene, session)
    check_answers(scene, session)


@pytest.mark.parametrize("scene", list(REFUSED), ids=" and ".join, indirect=True)
def test_some_pairs_are_refused_with_what_to_do(scene: Scene) -> None:
    (reason,) = (REFUSED[pair] for pair in REFUSED if scene.features == set(pair))
    with pytest.raises(parallax.ConfigError, match=re.escape(reason)) as caught:
        scene.open()
    assert caught.value.fix


def check_effects(scene: Scene, session: parallax.InferenceSession) -> None:
    """Each of the pair is in force, so that what runs is what is named."""
    features, plan = scene.features, session.plan
    backends = {segment.backend for segment in plan.segments}
    usage = session.memory()
    if features & {"bundle", "cache"}:
        assert usage.weights_mapped_bytes
        assert usage.weights_private_bytes == 0
    if "cache" in features:
        assert list((scene.cache / "bundles").iterdir())
    if "budget" in features:
        assert usage.budget_bytes == 256 << 20
        assert usage.limit_bytes
    if "energy" in features:
        assert plan.provenance.source == "energy"
        assert 'objective="energy": ' in plan.provenance.reason
        return  # what joules leave to a device, and whether rows are shared, is theirs to say
    if features & {"device", "two devices", "shared rows"}:
        assert CPU_BACKEND in backends
        assert backends & {PHONE, OTHER}
    if "two devices" in features:
        assert session.get_providers() == [PHONE, OTHER, CPU]
        assert "shared rows" in features or backends == {PHONE, OTHER, CPU_BACKEND}
    is_kept = features & {"bundle", "cache"} and "open shapes" in features
    assert (plan.rows_permille is not None) is ("shared rows" in features and not is_kept)
    if "adapt" in features and ("shared rows" not in features and "cache" not in features):
        assert session.adaptation is not None
        assert session.adaptation.ended is None


def check_answers(scene: Scene, session: parallax.InferenceSession) -> None:
    """Eight threads, each with feeds of its own."""
    if "many callers" in scene.features:
        with session.batcher() as batcher:
            _ask(scene, lambda fed: batcher.submit(fed).result())
    else:
        _ask(scene, lambda fed: session.run(None, fed))


def _ask(scene: Scene, run: Any) -> None:
    def work(number: int) -> None:
        for step in range(2):
            which = (number + step) % len(scene.feeds)
            (answer,) = run(scene.feeds[which])
            scene.check(which, answer)

    in_threads(THREADS, work)


def test_the_page_says_the_same() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in lines[0]]
    assert head == ["", *FEATURES[1:]]
    told: dict[tuple[str, str], str] = {}
    for cells in lines[2 : 2 + len(FEATURES) - 1]:
        name, *answers = (cell.strip() for cell in cells)
        told |= {(name.strip("*"), other): answer for other, answer in zip(head[1:], answers, strict=True) if answer}
    assert list(told) == list(PAIRS)
    assert {pair for pair, answer in told.items() if answer == "yes"} == set(filter(works, PAIRS))
    plain = " ".join(text.split())
    for pair, said in NOT.items():
        number = re.fullmatch(r"no \((\d)\)", told[pair])
        assert number is not None
        reason = re.search(rf" {number[1]}\. (.*?)(?= \d\. | ## )", plain)
        assert reason is not None
        assert f'"{said}"' in reason[1]
