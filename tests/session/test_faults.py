"""Accelerators that fail, in sessions: whatever they do, the answers are ONNX Runtime's."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.backends import FaultPolicy
from parallax.machine import private_bytes
from tests.engine._faulty import installed
from tests.engine.test_faults import COLUMNS, POLICIES, RUNGS, THREADS, footprint, let_go, model

SHAPE = (3, COLUMNS)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path):
        yield


def open_on(device: str, faults: FaultPolicy | None) -> parallax.InferenceSession:
    session = parallax.InferenceSession(
        model().SerializeToString(),
        providers=[f"faulty:{device}", "CPUExecutionProvider"],
        shapes={"x": SHAPE},
        min_gain=0,
        threads=2,
        faults=faults,
    )
    name = f"faulty:{device}"
    # A plan says what runs: a segment that its backend does not compile is the CPU's, with that reason.
    planned = [part for part in session.plan.segments if name in (part.backend, part.reason.partition(" does not ")[0])]
    assert len(planned) >= RUNGS
    assert len(session.plan.segments) - len(planned) >= RUNGS
    return session


def run_and_compare(session: parallax.InferenceSession, *, runs: int, seed: int) -> None:
    """From several threads; now and then with feeds that it must refuse."""
    reference = onnxruntime.InferenceSession(model().SerializeToString(), providers=["CPUExecutionProvider"])
    failures: list[BaseException] = []

    def work(number: int) -> None:
        random = np.random.default_rng((seed, number))
        try:
            for turn in range(runs // THREADS):
                x = random.standard_normal(SHAPE, np.float32)
                (made,), (expected,) = session.run(None, {"x": x}), reference.run(None, {"x": x})
                np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
                if turn % 10 == 9:
                    with pytest.raises(parallax.ParallaxError):
                        session.run(None, {"x": x[:, 1:]})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def hold_to_onnxruntime(device: str, *, runs: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        session = open_on(device, POLICIES[device])
        run_and_compare(session, runs=10 * THREADS, seed=1)
        gc.collect()
        before, memory = footprint(), private_bytes()
        run_and_compare(session, runs=runs, seed=2)
        let_go()
        gc.collect()
    after = footprint()
    assert after[0] <= before[0]
    assert after[1] == before[1]
    grown = private_bytes()
    if memory is not None and grown is not None:
        assert grown - memory < 16 << 20
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1, warned
    assert f"faulty:{device}" in warned[0]


@pytest.mark.parametrize("device", POLICIES)
def test_faults_change_no_answer_of_a_session(device: str, caplog: pytest.LogCaptureFixture) -> None:
    hold_to_onnxruntime(device, runs=80, caplog=caplog)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("device", POLICIES)
def test_faults_change_no_answer_of_a_session_in_a_thousand_runs(device: str, caplog: pytest.LogCaptureFixture) -> None:
    hold_to_onnxruntime(device, runs=1000, caplog=caplog)


def test_a_device_that_is_broken_costs_no_answer_by_default() -> None:
    run_and_compare(open_on("fails", None), runs=40, seed=3)
