"""Replicas of a model with many weights: the session goes over to a bundle, whose weights all of them map."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.bundle import settled, signature
from parallax.engine import CountedRunner, EventRecorder
from parallax.events import PlanSwapped
from parallax.serving import _many, _serving
from parallax.serving._serving import BatcherOptions
from tests.session._calling import (
    CPU,
    INPUTS,
    LIMIT_S,
    MODEL,
    calling,
    dense_chain,
    is_narrow,
    is_right,
    run_alone_until,
    wait_until,
)


def opened(tmp_path: Path, objective: str = "auto", **more: Any) -> Any:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    wait_until(lambda: settled(signature(path), time.time_ns()))  # before that, nothing is remembered of it
    return parallax.InferenceSession(path, threads=2, objective=objective, cache_dir=tmp_path / "cache", **more)


@pytest.mark.parametrize("objective", ["auto", "throughput"])
@pytest.mark.parametrize("more", [{}, {"idle_trim_s": 60}, {"split": "never"}, {"slim": True}])
def test_the_session_and_its_replica_map_the_same_weights_and_no_answer_is_wrong(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], objective: str, more: dict[str, Any]
) -> None:
    sharing_decided(narrow=True, idle_s=0.3)
    recorder = EventRecorder()
    session = opened(tmp_path, objective, observers=[recorder], **more)
    with calling(session, wanted, least=100) as callers:
        wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        assert session.memory().weights_private_bytes == 0
        assert session.memory().weights_mapped_bytes > 0
        narrow, wide = session.runners.current, session._opened.runner
        assert isinstance(narrow, CountedRunner)
        assert narrow.calls is wide.calls
    assert min(callers.ran) >= 100
    run_alone_until(session, wanted, lambda: not is_narrow(session))
    assert session.plan.segments[0].width == 2
    assert session.runners.current is session._opened.runner
    swaps = [event for event in recorder.take() if isinstance(event, PlanSwapped)]
    assert swaps[0].reason == "the model's weights are mapped, to be shared"
    assert swaps[0].previous == swaps[0].plan
    # What the session tells of the model is what it told before.
    stock = onnxruntime.InferenceSession(MODEL, providers=[CPU])
    for mine, theirs in zip(
        [*session.get_inputs(), *session.get_outputs()], [*stock.get_inputs(), *stock.get_outputs()], strict=True
    ):
        assert (mine.name, mine.type, mine.shape) == (theirs.name, theirs.type, theirs.shape)
    assert session.get_providers() == [CPU]


def test_a_bundle_that_was_removed_is_made_anew(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None]
) -> None:
    sharing_decided(narrow=True, idle_s=0.1)
    session = opened(tmp_path)
    for _ in range(2):
        with calling(session, wanted):
            wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        run_alone_until(session, wanted, lambda: session._callers._narrow is None)
        # What is mapped takes no memory: from now on it is the bundle alone that lacks.
        session._callers._rules = replace(session._callers._rules, most_growth=100.0)
        shutil.rmtree(tmp_path / "cache")


def test_another_model_at_the_path_is_not_taken_for_it(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None]
) -> None:
    sharing_decided(narrow=True)
    session = opened(tmp_path)
    other = tmp_path / "other.onnx"
    other.write_bytes(dense_chain(depth=3))
    os.replace(other, tmp_path / "model.onnx")
    with calling(session, wanted):
        wait_until(lambda: "callers share all threads" in session.plan.provenance.reason)
        assert "other files lie at its path by now" in session.plan.provenance.reason
        assert not is_narrow(session)


def test_a_model_that_was_given_as_bytes_is_copied_where_that_is_allowed(
    wanted: list[Any], sharing_decided: Callable[..., None]
) -> None:
    sharing_decided(narrow=True)
    for objective, is_served in (("auto", False), ("throughput", True)):
        session = parallax.InferenceSession(MODEL, threads=2, objective=objective)
        with calling(session, wanted):
            if is_served:
                wait_until(lambda session=session: is_narrow(session))
            else:
                wait_until(lambda session=session: "callers share all threads" in session.plan.provenance.reason)
                assert "the model was given as bytes" in session.plan.provenance.reason


def test_a_session_whose_weights_are_shared_does_all_that_it_did(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None]
) -> None:
    sharing_decided(narrow=True)
    session = opened(tmp_path)
    split = parallax.InferenceSession(MODEL, threads=2, split="always").plan
    old = session.io_binding()
    old.bind_cpu_input("x", INPUTS[1])
    old.bind_output("y")
    with calling(session, wanted):
        wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        session.run_with_iobinding(old)
        assert is_right(old.copy_outputs_to_cpu()[0], wanted[1])
        binding = session.io_binding()
        binding.bind_cpu_input("x", INPUTS[2])
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        assert is_right(binding.copy_outputs_to_cpu()[0], wanted[2])
        value = onnxruntime.OrtValue.ortvalue_from_numpy(INPUTS[3])
        assert is_right(session.run_with_ort_values(None, {"x": value})[0].numpy(), wanted[3])
        copy = pickle.loads(pickle.dumps(session))
        assert is_right(copy.run(None, {"x": INPUTS[2]})[0], wanted[2])
        answers = session.run_many({"x": x} for x in INPUTS)
        assert all(is_right(answer[0], want) for answer, want in zip(answers, wanted, strict=True))
        session.trim()
        session.swap_plan(split, reason="to see it")
        assert len(session.plan.segments) == len(split.segments)
    session.set_providers([CPU])
    np.testing.assert_allclose(session.run(None, {"x": INPUTS[0]})[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert session._opened.shared_bundle is None
    session.close()


# -- batchers, and many requests of one caller -------------------------------------------------------------------------


def narrow_way(batcher: Any) -> Any:
    """The session on one thread that a batcher measured, whether it was kept or not."""
    return next(way.alone for way in batcher if way.threads == 1)


@pytest.fixture
def measured_ways(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ways that batchers have measured, which on a busy machine may be dropped then."""
    ways: list[Any] = []
    measure = _serving._Preparation._measure

    def noted(self: Any, way: Any, *rest: Any, **named: Any) -> Any:
        ways.append(way)
        return measure(self, way, *rest, **named)

    monkeypatch.setattr(_serving._Preparation, "_measure", noted)
    return ways


@pytest.mark.parametrize("slim", [False, True])
def test_a_batcher_shares_the_weights_of_a_bundle_that_is_there(
    tmp_path: Path, wanted: list[Any], measured_ways: list[Any], slim: bool
) -> None:
    session = opened(tmp_path, "latency", slim=slim)
    made = session.sharing().bundle().compile_here()
    with session.batcher() as batcher:
        narrow = narrow_way(measured_ways)
        assert narrow._opened_bundle.path == made.path
        assert narrow.plan.segments[0].width == 1
        assert narrow.memory().weights_private_bytes == 0
        for x, want in zip(INPUTS, wanted, strict=True):
            assert is_right(narrow.run(None, {"x": x})[0], want)
        answers = [batcher.submit({"x": x}) for x in INPUTS * 4]
        assert all(is_right(one.result()[0], want) for one, want in zip(answers, wanted * 4, strict=True))


def test_a_batcher_shares_the_weights_of_its_session(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], measured_ways: list[Any]
) -> None:
    sharing_decided(narrow=True)
    session = opened(tmp_path)
    with calling(session, wanted):
        wait_until(lambda: session._opened.shared_bundle is not None)
    shutil.move(tmp_path / "model.onnx", tmp_path / "elsewhere.onnx")
    with session.batcher() as batcher:
        assert narrow_way(measured_ways)._opened_bundle.path == str(session._opened.shared_bundle.path)
        assert is_right(batcher.submit({"x": INPUTS[1]}).result()[0], wanted[1])


@pytest.mark.parametrize("obstacle", ["nothing cached", "another model", "damaged", "session options", "bytes"])
def test_a_batcher_that_finds_no_bundle_opens_the_model_as_before(
    tmp_path: Path, wanted: list[Any], measured_ways: list[Any], obstacle: str
) -> None:
    session = opened(tmp_path, "latency")
    if obstacle == "bytes":
        session = parallax.InferenceSession(MODEL, threads=2, cache_dir=tmp_path / "cache")
    elif obstacle == "session options":
        given = onnxruntime.SessionOptions()
        session = parallax.InferenceSession(tmp_path / "model.onnx", given, threads=2, cache_dir=tmp_path / "cache")
    if obstacle not in ("nothing cached", "bytes", "session options"):
        made = Path(session.sharing().bundle().compile_here().path)
        if obstacle == "damaged":
            (made / "manifest.json").write_text("{}")
        else:
            other = tmp_path / "other.onnx"
            other.write_bytes(dense_chain(depth=3))
            os.replace(other, tmp_path / "model.onnx")
    with session.batcher() as batcher:
        assert narrow_way(measured_ways)._opened_bundle is None
        answers = [batcher.submit({"x": x}) for x in INPUTS * 4]
        assert all(is_right(one.result()[0], want) for one, want in zip(answers, wanted * 4, strict=True))


@pytest.mark.parametrize("objective", ["auto", "throughput"])
def test_a_batcher_has_a_bundle_made_meanwhile_and_goes_over_to_it(
    tmp_path: Path,
    wanted: list[Any],
    sharing_decided: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    sharing_decided(narrow=True)
    monkeypatch.setattr(_serving, "LEAST_GAIN", -100.0)  # side by side, whatever is measured here
    session = opened(tmp_path, objective)
    with session.batcher() as batcher:
        (narrow,) = [way for way in batcher._core._runner._ways if way.lanes > 1]
        own = weakref.ref(narrow.alone)
        assert narrow.alone._opened.mapped_bundle is None or session._opened.shared_bundle is not None
        answered = 0
        while own() is not None and own() is narrow.alone:
            answers = [batcher.submit({"x": x}) for x in INPUTS]
            assert all(is_right(one.result(LIMIT_S)[0], want) for one, want in zip(answers, wanted, strict=True))
            answered += len(answers)
        assert answered
        assert session._opened.shared_bundle is not None
        assert narrow.alone.memory().weights_private_bytes == session.memory().weights_private_bytes == 0
        answers = [batcher.submit({"x": x}) for x in INPUTS * 8]
        assert all(is_right(one.result(LIMIT_S)[0], want) for one, want in zip(answers, wanted * 8, strict=True))
        gc.collect()
        wait_until(lambda: own() is None)
    session.close()


@pytest.mark.parametrize("why", ["latency", "small", "run_many"])
def test_no_bundle_is_made_for_a_batcher_that_was_not_to_have_one(
    tmp_path: Path,
    wanted: list[Any],
    sharing_decided: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    if why == "run_many":
        sharing_decided(narrow=True)
    monkeypatch.setattr(_serving, "LEAST_GAIN", -100.0)
    session = opened(tmp_path, "latency" if why == "latency" else "auto")
    wishes: list[Any] = []
    if session._callers is not None:
        grant = session._callers._grant
        monkeypatch.setattr(session._callers, "_grant", lambda: wishes.append(session._callers._wish) or grant())
    if why == "run_many":
        answers = _many.run_in_order(
            ({"x": x} for x in INPUTS * 4),
            run=lambda fed: session.run(None, fed),
            open_batcher=lambda: _serving.make_batcher(session, BatcherOptions(is_to_stay=False)),
            patience_s=0.0,
        )
        assert all(is_right(answer[0], want) for answer, want in zip(answers, wanted * 4, strict=True))
        assert not any(wishes)
    else:
        with session.batcher() as batcher:
            assert is_right(batcher.submit({"x": INPUTS[0]}).result()[0], wanted[0])
            if why == "small":
                wait_until(lambda: any(wishes))
                wait_until(lambda: session._callers._wish is None)
    if session._callers is not None:
        session._callers.stop("the test ends")
        session._callers.join(LIMIT_S)
    assert session._opened.shared_bundle is None
    assert not (tmp_path / "cache" / "bundles").exists()


def test_a_batcher_that_is_closed_is_forgotten_while_its_bundle_is_made(
    tmp_path: Path, sharing_decided: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing_decided(narrow=True)
    monkeypatch.setattr(_serving, "LEAST_GAIN", -100.0)
    session = opened(tmp_path)
    batcher = session.batcher()
    runner = weakref.ref(batcher._core._runner)
    batcher.close()
    del batcher
    gc.collect()
    assert runner() is None
    session.close()
