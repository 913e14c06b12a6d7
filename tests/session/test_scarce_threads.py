"""A process that may start no more threads: a run has its caller's, and needs no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.backends import FaultPolicy
from parallax.engine import lane_pool
from tests._threads import needs_stack_limits, no_new_threads
from tests.bundle._models import branching, compiled, expected, feeds
from tests.session.test_devices import PHONE, on, two_branches
from tests.session.test_devices import expected as device_expected
from tests.session.test_devices import feeds as device_feeds

pytestmark = needs_stack_limits

SPLIT: dict[str, Any] = {"min_gain": 0, "threads": 2}

OPENINGS: dict[str, Callable[[Path], parallax.InferenceSession]] = {
    "whole": lambda folder: parallax.InferenceSession(branching(folder / "model.onnx")),
    "split": lambda folder: parallax.InferenceSession(branching(folder / "model.onnx"), min_gain=0, threads=2),
    "budget": lambda folder: parallax.InferenceSession(
        branching(folder / "model.onnx"), min_gain=0, threads=2, memory_budget="1GiB"
    ),
    "bundle": lambda folder: parallax.InferenceSession(compiled(folder, cut=True), threads=2),
}


@pytest.mark.parametrize("name", OPENINGS)
def test_runs_are_answered_without_new_threads_and_no_core_is_lost(name: str, tmp_path: Path) -> None:
    session = OPENINGS[name](tmp_path)
    want = expected(tmp_path / "model.onnx", feeds())
    free = lane_pool().statistics().free_cores
    with no_new_threads():
        got = [session.run(None, feeds())[0] for _ in range(3)]
    assert lane_pool().statistics().free_cores == free
    got.append(session.run(None, feeds())[0])
    for answer in got:
        np.testing.assert_allclose(answer, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("faults", [FaultPolicy(), FaultPolicy(deadline_s=60.0)], ids=["plain", "deadline"])
def test_a_device_is_served_without_new_threads(faults: FaultPolicy) -> None:
    model, fed = two_branches(), device_feeds()
    session = parallax.InferenceSession(model, providers=[PHONE, "CPUExecutionProvider"], faults=faults, **SPLIT)
    assert on(session, PHONE)
    with no_new_threads():
        got = [session.run(None, fed) for _ in range(2)]
    got.append(session.run(None, fed))
    for answers in got:
        for answer, want in zip(answers, device_expected(model, fed), strict=True):
            np.testing.assert_allclose(answer, want, rtol=1e-4, atol=1e-5)


def test_a_run_in_the_background_is_done_once_by_whoever_can(tmp_path: Path) -> None:
    session = OPENINGS["split"](tmp_path)
    want = expected(tmp_path / "model.onnx", feeds())
    told: list[tuple[list[Any], str]] = []
    ended = threading.Semaphore(0)

    def callback(results: list[Any], user_data: Any, error: str) -> None:
        told.append((results, error))
        ended.release()

    with no_new_threads():
        for _ in range(3):
            session.run_async(None, feeds(), callback, None)
        for _ in range(3):
            assert ended.acquire(timeout=60)
    session.run_async(None, feeds(), callback, None)
    assert ended.acquire(timeout=60)
    assert [error for _, error in told] == [""] * 4
    for results, _ in told:
        np.testing.assert_allclose(results[0], want, rtol=1e-5, atol=1e-6)


def test_tuning_goes_on_without_new_threads(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    with no_new_threads():
        session = parallax.InferenceSession(model, tune=True, cache_dir=tmp_path / "c")
        got = session.run(None, feeds())[0]
    np.testing.assert_allclose(got, expected(model, feeds()), rtol=1e-4, atol=1e-5)
