"""Delegates that fail, through the engine: no wrong answer, no hang, no leak, one warning."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from parallax.backends import FaultPolicy
from parallax.backends.ort import CPU_DEVICE, RuntimeOptions
from parallax.engine import Executor, compile_plan, lane_pool
from parallax.machine import private_bytes
from parallax.model import load_model
from parallax.schedule import PLAN_FORMAT_VERSION, Plan, verify_plan
from tests.engine._faulty import RELEASED, calls, installed
from tests.engine._graphs import plan_of_nodes, proto

C = onnxruntime.capi.onnxruntime_pybind11_state

RUNGS = 4
THREADS = 4
ROWS, COLUMNS = 5, 32

POLICIES = {
    # What is tolerated is high and pauses are none, so that the delegate goes on being asked, and failing.
    "fails": FaultPolicy(tolerated=1_000_000),
    "random": FaultPolicy(tolerated=1_000_000),
    "nans": FaultPolicy(tolerated=1_000_000, checks_nan=True),
    "hangs": FaultPolicy(deadline_s=0.2),
    "refuses": FaultPolicy(),
}


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path):
        yield


def model() -> onnx.ModelProto:
    """Rungs of a chain for the device, one for the processor beside it, and a join on the device."""
    weights = np.random.default_rng(0).standard_normal((COLUMNS, COLUMNS), np.float32) / 8
    nodes, top = [], "x"
    for rung in range(RUNGS):
        nodes += [
            helper.make_node("MatMul", [top, "w"], [f"device_{rung}"]),
            helper.make_node("Sigmoid", [top], [f"cpu_{rung}"]),
            helper.make_node("Sub", [f"device_{rung}", f"cpu_{rung}"], [f"joint_{rung}"]),
        ]
        top = f"joint_{rung}"
    return proto(nodes, {"x": ["n", COLUMNS]}, [top], initializers=[onnx.numpy_helper.from_array(weights, "w")])


def plan_on(source: onnx.ModelProto, device: str, *, queue: bool) -> Plan:
    """Every node a segment; products and joins on the device, on a lane of its own if ``queue``."""
    plan = plan_of_nodes(load_model(source).graph, lanes=3)
    segments = []
    for segment in plan.segments:
        if segment.index % 3 != 1:
            place = {"width": 0, "lane": 2} if queue else {}
            segment = replace(segment, backend=f"faulty:{device}", **place)
        segments.append(segment)
    plan = replace(plan, segments=tuple(segments), format_version=PLAN_FORMAT_VERSION)
    verify_plan(plan)
    return plan


def footprint() -> tuple[int, int]:
    """Threads of this process beside its lanes, which are kept for later runs; and open files."""
    lanes = lane_pool().statistics().lanes
    if sys.platform != "linux":
        return threading.active_count() - lanes, 0
    return len(os.listdir("/proc/self/task")) - lanes, len(os.listdir("/proc/self/fd"))


def run_and_compare(executor: Executor, source: onnx.ModelProto, *, runs: int, seed: int) -> None:
    """From several threads, with other feeds in each run; each answer is compared with ONNX Runtime's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    reference = onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    failures: list[BaseException] = []
    (output,) = (entry.name for entry in reference.get_outputs())

    def work(number: int) -> None:
        random = np.random.default_rng((seed, number))
        try:
            for turn in range(runs // THREADS):
                x = random.standard_normal((1 + turn % ROWS, COLUMNS), np.float32)
                (made,) = executor.run({"x": C.OrtValue.ortvalue_from_numpy(x, CPU_DEVICE)}, [output])
                (expected,) = reference.run(None, {"x": x})
                np.testing.assert_allclose(made.numpy(), expected, rtol=1e-5, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def let_go() -> None:
    """End the calls that hang, and wait for their threads."""
    RELEASED.set()
    for thread in threading.enumerate():
        if thread.name.startswith("parallax-delegate"):
            thread.join(10)


def hold_to_onnxruntime(device: str, *, queue: bool, runs: int, caplog: pytest.LogCaptureFixture) -> None:
    source = model()
    with caplog.at_level(logging.WARNING):
        executor = compile_plan(
            load_model(source), plan_on(source, device, queue=queue), RuntimeOptions(), faults=POLICIES[device]
        )
        # Lanes, spare parts and buffers are made once.
        run_and_compare(executor, source, runs=10 * THREADS, seed=1)
        gc.collect()
        before, memory = footprint(), private_bytes()
        run_and_compare(executor, source, runs=runs, seed=2)
        let_go()
        gc.collect()
    threads, files = footprint()
    assert files == before[1]
    assert threads <= before[0]  # fewer where a call that hung in the first runs has come back
    after = private_bytes()
    if memory is not None and after is not None:
        assert after - memory < 8 << 20
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (warning,) = warnings
    assert f"faulty:{device}" in warning.message
    assert "leave" in warning.message  # the remedy
    if device == "hangs":
        # Each of the parts of the device hung at most once per thread that was in it at that moment, and never again.
        assert calls[device] < (runs + 10 * THREADS) * 2 * RUNGS
    elif device != "refuses":
        assert calls[device] == (runs + 10 * THREADS) * 2 * RUNGS


@pytest.mark.parametrize("queue", [False, True], ids=["lanes", "queue"])
@pytest.mark.parametrize("device", POLICIES)
def test_faults_change_no_answer(device: str, queue: bool, caplog: pytest.LogCaptureFixture) -> None:
    hold_to_onnxruntime(device, queue=queue, runs=80, caplog=caplog)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("queue", [False, True], ids=["lanes", "queue"])
@pytest.mark.parametrize("device", POLICIES)
def test_faults_change_no_answer_in_a_thousand_runs(device: str, queue: bool, caplog: pytest.LogCaptureFixture) -> None:
    hold_to_onnxruntime(device, queue=queue, runs=1000, caplog=caplog)


def test_a_delegate_that_always_fails_is_asked_three_times_per_part() -> None:
    source = model()
    executor = compile_plan(load_model(source), plan_on(source, "fails", queue=False), RuntimeOptions())
    run_and_compare(executor, source, runs=200, seed=3)
    # Threads that are in a part at the same moment may each fail there before it is set aside.
    assert 3 * 2 * RUNGS <= calls["fails"] <= (3 + THREADS - 1) * 2 * RUNGS
