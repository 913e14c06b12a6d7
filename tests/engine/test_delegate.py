"""A delegate that fails: the CPU answers in its place, and after a while is not asked to wait for it any more."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.device import CompiledModel, open_backend
from parallax.engine import CPU_DEVICE, RuntimeOptions, compile_plan
from parallax.engine._delegate import PATIENCE, DelegatedSession
from parallax.engine._ort import load_session
from parallax.errors import BackendError, ConfigError, RunCancelled
from parallax.model import Model, load_model
from parallax.schedule import Plan
from parallax.session._planning import plan_whole_on

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def doubling() -> Model:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return load_model(model)


class Fragile:
    """A backend's compiled part, in front of which faults are injected."""

    def __init__(self, sound: CompiledModel, fault: Callable[[], Exception | None]) -> None:
        self.sound = sound
        self.fault = fault
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sound, name)

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        self.asked += 1
        error = self.fault()
        if error is not None:
            raise error
        return self.sound.run_with_ort_values(feeds, outputs, run_options)


def compiled() -> CompiledModel:
    return open_backend("cpu").compile(doubling().extract([0], ["x"], ["y"], name="s"), width=1)


def delegated(fault: Callable[[], Exception | None]) -> tuple[Fragile, DelegatedSession]:
    fragile = Fragile(compiled(), fault)
    described = load_session(doubling().extract([0], ["x"], ["y"], name="s").proto)
    return fragile, DelegatedSession(fragile, compiled, described=described, name="s on fragile")


def double(session: DelegatedSession, values: np.ndarray = X) -> np.ndarray:
    fed = C.OrtValue.ortvalue_from_numpy(values, CPU_DEVICE)
    result: np.ndarray = session.run_with_ort_values({"x": fed}, ["y"])[0].numpy()
    return result


def test_every_failure_is_answered_by_the_cpu_until_the_delegate_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    fragile, session = delegated(lambda: RuntimeError("device lost"))
    with caplog.at_level(logging.WARNING):
        for _ in range(PATIENCE + 5):
            np.testing.assert_array_equal(double(session), X + X)
    assert fragile.asked == PATIENCE
    assert session.is_set_aside
    assert [("device lost" in text, "set aside" in text) for text in caplog.messages] == [(True, False), (False, True)]


def test_failures_now_and_then_keep_the_delegate() -> None:
    faults = iter([RuntimeError("1"), None] * 20)
    fragile, session = delegated(lambda: next(faults))
    for _ in range(40):
        np.testing.assert_array_equal(double(session), X + X)
    assert fragile.asked == 40
    assert not session.is_set_aside


def test_random_failures_from_many_threads_never_give_a_wrong_answer() -> None:
    chance = random.Random(0)
    _, session = delegated(lambda: RuntimeError("now and then") if chance.random() < 0.3 else None)
    wrong: list[object] = []

    def work(number: int) -> None:
        values = X + number
        try:
            for _ in range(125):
                if not np.array_equal(double(session, values), values + values):
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_run_that_was_stopped_is_not_run_again() -> None:
    _, session = delegated(lambda: RunCancelled("stopped"))
    with pytest.raises(RunCancelled):
        double(session)
    assert not session.is_set_aside


def test_what_is_wrong_with_a_feed_is_said_by_the_runtime_and_costs_the_delegate_nothing() -> None:
    fragile, session = delegated(lambda: None)
    for _ in range(PATIENCE + 1):
        with pytest.raises(Exception, match="x"):
            double(session, np.zeros((5, 5), np.float32))
    np.testing.assert_array_equal(double(session), X + X)
    assert fragile.asked == PATIENCE + 2
    assert not session.is_set_aside


def test_a_plan_names_the_backend_that_runs_it() -> None:
    model = doubling()
    plan, obstacle = plan_whole_on("CPUExecutionProvider", model, cores=1)
    assert plan is not None, obstacle
    assert not plan.is_uncut
    plan = Plan.from_json(plan.to_json())
    assert plan.segments[0].backend == "CPUExecutionProvider"
    executor = compile_plan(model, plan, RuntimeOptions())
    (result,) = executor.run({"x": C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)}, ["y"])
    np.testing.assert_array_equal(result.numpy(), X + X)


def test_a_backend_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises((ConfigError, BackendError), match="nowhere"):
        plan_whole_on("nowhere", doubling(), cores=1)
