"""Whoever watches a session, and fails, is let go of: the work goes on, and it is said once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.engine import SegmentSpan
from tests.bundle._models import branching, expected, feeds

SPLIT: dict[str, Any] = {"min_gain": 0, "threads": 2}


class BrokenSink:
    def __init__(self) -> None:
        self.calls = 0

    def record(self, span: SegmentSpan) -> None:
        self.calls += 1
        raise ValueError("the disk of the trace is full")

    def __repr__(self) -> str:
        raise ValueError("nor can it be shown")


@pytest.mark.parametrize("options", [{}, SPLIT, {"memory_budget": "1GiB"}], ids=["whole", "split", "budget"])
def test_a_trace_sink_that_raises_is_detached_and_every_run_is_answered(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = branching(tmp_path / "m.onnx")
    sink = BrokenSink()
    session = parallax.InferenceSession(model, trace=sink, **options)
    assert session.trace is sink
    assert (len(session.plan.segments) > 1) is (options is SPLIT)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            np.testing.assert_allclose(session.run(None, feeds())[0], expected(model, feeds()), rtol=1e-5, atol=1e-6)
    assert session.trace is None
    assert 1 <= sink.calls <= 2, "of two lanes each may have come to it before it was detached"
    assert [record.message for record in caplog.records] == [
        "the trace sink BrokenSink failed and is detached; the run goes on"
    ]


def test_a_progress_callback_that_raises_stops_neither_tuning_nor_compiling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = branching(tmp_path / "m.onnx")
    calls: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        raise ValueError("no terminal")

    with caplog.at_level(logging.ERROR):
        bundle = parallax.compile(model, tmp_path / "m.plx", progress=progress, tune=True, cache_dir=tmp_path / "c")
    assert len(calls) == 1
    assert [record.message for record in caplog.records] == [
        "the progress callback failed and is called no more; the work goes on"
    ]
    np.testing.assert_allclose(
        parallax.InferenceSession(bundle).run(None, feeds())[0], expected(model, feeds()), rtol=1e-5, atol=1e-6
    )


def test_an_interrupt_in_a_progress_callback_ends_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()

    def progress(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parallax.compile(model, tmp_path / "out" / "m.plx", progress=progress, cache_dir=tmp_path / "c")
    assert not list((tmp_path / "out").iterdir())
