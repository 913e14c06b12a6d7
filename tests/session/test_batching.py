"""Batchers of sessions, and runs of many feeds: answers are those of single runs, whatever the session is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import parallax
from parallax import zoo
from parallax.errors import ConfigError, InputError
from parallax.serving import Batcher
from parallax.serving._serving import BatcherOptions, prepare
from tests.bundle._models import branching, compiled
from tests.bundle._models import feeds as branching_feeds

PATIENCE_S = 60.0
WIDTH = 64


def parse(text: str) -> bytes:
    made: bytes = parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text).SerializeToString()
    return made


def texts(batch: int | str = "batch") -> bytes:
    """Token ids and a mask to states and their mean over tokens: small products, whose weights are read each time."""
    width, rng = 256, np.random.default_rng(0)
    weights = {"table": rng.standard_normal((64, width)) / 8}
    weights |= {f"w{step}": rng.standard_normal((width, width)) / 16 for step in range(6)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h0"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"]),
    ]
    for step in range(6):
        nodes.append(helper.make_node("MatMul", [f"h{step}", f"w{step}"], [f"p{step}"]))
        nodes.append(helper.make_node("Tanh", [f"p{step}"], [f"h{step + 1}"]))
    nodes += [
        helper.make_node("Mul", ["h6", "m3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["m3", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Identity", ["h6"], ["states"]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants += [numpy_helper.from_array(np.array([at], np.int64), name) for name, at in (("last", -1), ("one", 1))]
    graph = helper.make_graph(
        nodes,
        "texts",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, "length"]) for name in ("ids", "mask")],
        [
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, [batch, width]),
            helper.make_tensor_value_info("states", TensorProto.FLOAT, [batch, "length", width]),
        ],
        constants,
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    return made


def text(number: int, length: int = 12) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(number).integers(0, 64, (1, length))
    return {"ids": ids, "mask": np.ones_like(ids)}


def assert_same(found: list[Any], want: list[Any]) -> None:
    for one, other in zip(found, want, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def assert_serves(
    session: parallax.InferenceSession, feeds: Callable[[int], Mapping[str, Any]], *, count: int = 40, **options: Any
) -> parallax.serving.BatcherStats:
    """Four threads submit at once; each request has its own answer."""
    wanted = [session.run(None, feeds(number)) for number in range(count)]
    errors: list[BaseException] = []

    def caller(first: int, batcher: Batcher) -> None:
        try:
            futures = [(number, batcher.submit(feeds(number), client=first)) for number in range(first, count, 4)]
            for number, future in futures:
                assert_same(future.result(PATIENCE_S), wanted[number])
        except BaseException as error:
            errors.append(error)

    with session.batcher(**options) as batcher:
        threads = [threading.Thread(target=caller, args=(first, batcher)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        stats = batcher.stats()
    assert not errors, errors
    assert (stats.completed, stats.failed, stats.waiting) == (count, 0, 0)
    return stats


@pytest.fixture(scope="module")
def text_session() -> parallax.InferenceSession:
    return parallax.InferenceSession(texts())


def test_requests_with_an_open_axis(text_session: parallax.InferenceSession) -> None:
    stats = assert_serves(text_session, text)
    assert stats.settings[0].threads == text_session.plan.cores


def test_requests_of_unlike_lengths_are_grouped(text_session: parallax.InferenceSession) -> None:
    assert_serves(text_session, lambda number: text(number, 5 + number % 3))


def test_requests_of_unlike_lengths_are_filled_up(text_session: parallax.InferenceSession) -> None:
    # States of what is filled up are cut away, and the mean does not count it.
    assert_serves(text_session, lambda number: text(number, 9 + number % 7), pad={"ids": 0, "mask": 0})


def test_filling_up_what_is_not_masked_is_refused(text_session: parallax.InferenceSession) -> None:
    with pytest.raises(ConfigError, match=r"pad= changes answers: .* output 0 differs"):
        text_session.batcher(pad={"ids": 0, "mask": 1})
    with pytest.raises(ConfigError, match="'mask' has the open size"):
        text_session.batcher(pad={"ids": 0})


@pytest.mark.parametrize("batch", [1, "batch"])
def test_a_batch_axis_of_one_is_opened(batch: int | str) -> None:
    session = parallax.InferenceSession(texts(batch))
    runner, reader = prepare(session, BatcherOptions(max_batch=8))
    try:
        # A text gains by a batch or not, as it is measured; that it may run in one is certain.
        assert not runner.reason or "takes no less time" in runner.reason
        if not runner.reason:
            requests = [reader.read(text(number)).arrays for number in range(5)]
            setting = next(place for place, way in enumerate(runner.settings) if way.sizes != (1,))
            for fed, answer in zip(requests, runner.run_together(setting, requests), strict=True):
                assert_same(answer, session.run(None, fed))
    finally:
        runner.close()
    assert_serves(session, text, count=20)


def test_a_model_that_mixes_requests_runs_them_one_by_one_and_says_why() -> None:
    session = parallax.InferenceSession(parse("agraph (float[n, 4] x) => (float[n, 4] y) { y = Softmax <axis=0> (x) }"))
    stats = assert_serves(session, lambda number: {"x": np.full((1, 4), number, np.float32)}, count=8)
    assert "Softmax" in stats.reason
    assert stats.largest_batch == 1


def test_a_model_with_control_flow_runs_requests_one_by_one() -> None:
    session = parallax.InferenceSession(zoo.load("lstm-if-loop"))
    stats = assert_serves(session, lambda number: zoo.example_inputs("lstm-if-loop", seed=number, frames=20), count=8)
    assert "node" in stats.reason


def test_a_model_that_made_up_requests_do_not_fit_says_so_and_learns_from_what_comes() -> None:
    # Reshape of 16 elements, the plausible length, to rows of 5 fails.
    source = parse("agraph (float[1, length] x) => (float[5, m] y) <int64[2] s = {5, -1}> { y = Reshape (x, s) }")
    session = parallax.InferenceSession(source)
    feeds = lambda number: {"x": np.full((1, 10), number, np.float32)}  # noqa: E731
    stats = assert_serves(session, feeds, slo_ms=2000)
    assert "does not run on made-up requests" in stats.reason
    assert assert_serves(session, feeds, examples=[feeds(1), feeds(2)]).reason != stats.reason


def test_strings_run_one_by_one() -> None:
    source = parse("agraph (string[n] x) => (string[n] y) { y = Identity (x) }")
    session = parallax.InferenceSession(source)
    with session.batcher() as batcher:
        for word in ("a", "b"):
            answer = batcher.submit({"x": np.array([word], dtype=object)}).result(PATIENCE_S)
            assert answer[0].tolist() == [word]
        assert batcher.stats().reason


def test_a_request_of_several_rows_keeps_them(text_session: parallax.InferenceSession) -> None:
    def rows(number: int) -> dict[str, np.ndarray]:
        ids = np.random.default_rng(number).integers(0, 64, (1 + number % 3, 8))
        return {"ids": ids, "mask": np.ones_like(ids)}

    assert_serves(text_session, rows, max_batch=4)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("portable", [False, True], ids=["sealed", "portable"])
def test_bundles(tmp_path: Path, cut: bool, portable: bool) -> None:
    bundle = compiled(tmp_path, cut=cut, portable=portable)
    session = parallax.InferenceSession(bundle, threads=2)
    stats = assert_serves(session, lambda number: {"x": branching_feeds(1)["x"] + number}, count=16)
    if not portable:
        assert "does not keep the model" in stats.reason


def test_split_models(tmp_path: Path) -> None:
    session = parallax.InferenceSession(branching(tmp_path / "model.onnx"), split="always", threads=2)
    assert not session.plan.is_whole
    assert_serves(session, lambda number: {"x": branching_feeds(1)["x"] + number})


def test_a_session_with_a_budget_opens_no_others(tmp_path: Path) -> None:
    session = parallax.InferenceSession(texts(1), memory_budget="64MiB", threads=2)
    stats = assert_serves(session, text, count=16)
    assert "memory budget" in stats.reason
    assert len(stats.settings) == 1
    open_one = parallax.InferenceSession(texts(), memory_budget="64MiB", threads=2)
    assert len(assert_serves(open_one, text, count=16).settings) == 1


def test_an_observed_session_shows_all_of_its_runs() -> None:
    seen: list[Any] = []
    session = parallax.InferenceSession(texts(1), observers=[seen.append])
    stats = assert_serves(session, text, count=8)
    assert "observed" in stats.reason
    # Eight runs to compare with, some to measure, and eight of requests.
    assert sum(type(event).__name__ == "RunAdmitted" for event in seen) >= 16


def test_on_an_emulated_device_requests_run_together() -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 256])],
        [numpy_helper.from_array(rng.standard_normal((256, 256)).astype(np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = parallax.InferenceSession(
        proto.SerializeToString(), providers=["emulated:pixel-6-gpu", "CPUExecutionProvider"], split="always"
    )
    assert any(segment.backend != "cpu" for segment in session.plan.segments)
    feeds = lambda number: {"x": np.full((1, 256), number / 8, np.float32)}  # noqa: E731
    assert_serves(session, feeds, count=12, max_batch=4)


def test_session_options_whose_content_cannot_be_seen() -> None:
    options = onnxruntime.SessionOptions()
    proto = onnx.ModelProto.FromString(texts())
    weight = numpy_helper.to_array(next(tensor for tensor in proto.graph.initializer if tensor.name == "w0"))
    value = onnxruntime.OrtValue.ortvalue_from_numpy(weight * 2)
    options.add_initializer("w0", value)
    session = parallax.InferenceSession(texts(), options)
    stats = assert_serves(session, text, count=8)
    assert "no further session can be opened" in stats.reason


def test_options_are_checked(text_session: parallax.InferenceSession) -> None:
    for name, value in (("slo_ms", -1), ("max_batch", 0), ("max_queue", 0)):
        with pytest.raises(ConfigError, match=f"{name}="):
            text_session.batcher(**{name: value})
    with pytest.raises(TypeError):
        text_session.batcher(slo=5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="fewer than two"):
        text_session.batcher(examples=[text(1)])
    with pytest.raises(ConfigError, match="unlike shapes"):
        text_session.batcher(examples=[text(1), text(2, 5)])
    with pytest.raises(InputError):
        text_session.batcher(examples=[{"ids": text(1)["ids"]}] * 2)


def test_nothing_is_left_behind(text_session: parallax.InferenceSession) -> None:
    before = threading.active_count()
    for _ in range(2):
        with text_session.batcher() as batcher:
            batcher.submit(text(1)).result(PATIENCE_S)
    assert threading.active_count() == before


def test_run_many_answers_in_order(text_session: parallax.InferenceSession) -> None:
    wanted = [text_session.run(None, text(number)) for number in range(30)]
    for feeds in ([text(number) for number in range(30)], (text(number) for number in range(30))):
        for found, want in zip(text_session.run_many(feeds), wanted, strict=True):
            assert_same(found, want)
    assert text_session.run_many([]) == []
    with pytest.raises(InputError):
        text_session.run_many([text(1), {}])


@pytest.mark.slow
def test_run_many_that_takes_long_answers_in_order_too() -> None:
    session = parallax.InferenceSession(zoo.load("distilbert"))
    feeds = [zoo.example_inputs("distilbert", seed=number, sequence=16) for number in range(300)]
    for number, answer in enumerate(session.run_many(iter(feeds))):
        assert_same(answer, session.run(None, feeds[number]))


def test_a_closed_session_has_no_batcher() -> None:
    session = parallax.InferenceSession(texts())
    batcher = session.batcher()
    session.close()
    with pytest.raises(parallax.SessionClosedError):
        batcher.submit(text(1))
    batcher.close()
    with pytest.raises(parallax.SessionClosedError):
        session.batcher()
    with pytest.raises(parallax.SessionClosedError):
        session.run_many([text(1)])
