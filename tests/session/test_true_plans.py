"""What a plan says is so: compared with what was opened, for every kind of session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.backends import open_backend
from parallax.engine import EventRecorder
from parallax.events import SegmentEnded
from parallax.machine import physical_cores
from parallax.opening._what_runs import plan_that_runs
from parallax.options._providers import AskedProviders, given_to
from parallax.schedule import CPU_BACKEND, verify_plan
from tests.backends._backends import hide_package
from tests.schedule.test_plan_json import make_plan, make_segment
from tests.session._dropin import branches_answer, branches_model, ramp

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PHONE = "emulated:pixel-6-gpu"
MODEL = branches_model().SerializeToString()
X = ramp(2, 4)
SHAPES = {"x": (2, 4)}

KINDS: dict[str, Mapping[str, Any]] = {
    "default": {},
    "threads": {"threads": 1},
    "split": {"split": "always", "threads": 2},
    "never": {"split": "never"},
    "sequential": {"policy": "sequential", "threads": 2},
    "budget": {"memory_budget": "256MiB", "split": "always", "threads": 2},
    "small budget": {"memory_budget": "16MiB", "split": "always", "threads": 2},
    "device": {"providers": [PHONE, CPU], "shapes": SHAPES, "threads": 2},
    "device forced": {"providers": [PHONE, CPU], "shapes": SHAPES, "split": "always", "threads": 2},
    "device by a placer": {"providers": [PHONE, CPU], "shapes": SHAPES, "policy": "heft", "threads": 2},
    "CUDA": {"providers": [CUDA]},
    "CUDA or CPU": {"providers": [CUDA, CPU]},
    "CUDA with options": {"providers": [(CUDA, {"device_id": 0}), CPU]},
    "CUDA, split": {"providers": [CUDA, CPU], "split": "always", "threads": 2},
    "CUDA, tuned": {"providers": [CUDA], "tune": True, "threads": 2},
    "unknown": {"providers": ["NoSuchExecutionProvider"]},
    "unknown and device": {"providers": [CUDA, PHONE, CPU], "shapes": SHAPES, "split": "always", "threads": 2},
    "cache": {"cache": True, "threads": 2},
    "cache, CUDA": {"cache": True, "threads": 2, "providers": [CUDA]},
}
BUNDLES = {
    "bundle": ({"threads": 2}, {}),
    "split bundle": ({"split": "always", "threads": 2}, {"threads": 2}),
    "bundle, one thread": ({"threads": 2}, {"threads": 1}),
    "bundle, CUDA": ({"threads": 2}, {"providers": [CUDA]}),
    "split bundle, CUDA": ({"split": "always", "threads": 2}, {"threads": 2, "providers": [CUDA, CPU]}),
    "bundle, budget": ({"threads": 2, "shapes": SHAPES}, {"memory_budget": "64MiB"}),
}


def _check(session: parallax.InferenceSession, asked: Mapping[str, Any], events: EventRecorder) -> None:
    """Every sentence of the plan against what the session has and does."""
    plan, running = session.plan, session.get_providers()
    verify_plan(plan)
    reason = plan.provenance.reason
    named = [entry[0] if isinstance(entry, tuple) else entry for entry in asked.get("providers", ())]
    for name in named:
        if name not in running:
            assert f"fell back to {', '.join(running)}" in reason
            assert name in reason
            assert given_to(name) not in reason
    if all(name in running for name in named):
        assert "fell back" not in reason
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-5, atol=1e-5)
    ended = [event for event in events.take() if isinstance(event, SegmentEnded)]
    assert {event.name: event.backend for event in ended} == {
        segment.name: segment.backend for segment in plan.segments
    }
    assert {event.backend for event in ended} - {CPU_BACKEND} <= set(running)
    if plan.is_whole:
        stated = session.get_session_options().intra_op_num_threads
        assert plan.segments[0].width == (stated or physical_cores())
    lanes = {event.lane for event in ended}
    assert len(lanes) <= plan.lanes


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_says_what_was_opened(kind: str, tmp_path: Path) -> None:
    source: Any = MODEL
    if KINDS[kind].get("cache"):
        source = tmp_path / "model.onnx"
        source.write_bytes(MODEL)
    events = EventRecorder()
    session = parallax.InferenceSession(source, cache_dir=tmp_path, observers=[events], **KINDS[kind])
    _check(session, KINDS[kind], events)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("kind", BUNDLES)
def test_a_bundles_plan_says_what_was_opened(kind: str, tmp_path: Path) -> None:
    compiled, asked = BUNDLES[kind]
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", **compiled)
    events = EventRecorder()
    _check(parallax.InferenceSession(bundle, observers=[events], **asked), asked, events)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_callers_own_number_of_threads_is_what_the_plan_says(threads: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = parallax.InferenceSession(MODEL, options, threads=2)
    assert session.plan.segments[0].width == threads


COUNT = """
import os, sys
import parallax
model, threads = sys.argv[1], int(sys.argv[2])
parallax.InferenceSession(model, threads=1)  # the runtime has threads of its own, beside any session
before = len(os.listdir("/proc/self/task"))
session = parallax.InferenceSession(model, **({"threads": threads} if threads else {}))
after = len(os.listdir("/proc/self/task"))
print(after - before, session.plan.segments[0].width)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_the_width_of_a_whole_model_is_the_number_of_its_threads(threads: int, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    command = [sys.executable, "-c", COUNT, tmp_path / "model.onnx", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    started, width = map(int, done.stdout.split())
    assert width == 1 + started, "the caller's thread and those of the pool"


def test_a_backend_that_is_not_installed_is_fallen_back_from(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package("openvino", monkeypatch)
    with pytest.warns(UserWarning, match="needs the package openvino"):
        session = parallax.InferenceSession(MODEL, providers=["openvino"])
    assert session.plan.provenance.reason.startswith(f"fell back to {CPU}: ")
    assert "pip install" in session.plan.provenance.reason


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_other_providers_begin_anew() -> None:
    session = parallax.InferenceSession(MODEL, providers=[CUDA])
    assert "fell back" in session.plan.provenance.reason
    session.set_providers([CPU])
    assert "fell back" not in session.plan.provenance.reason
    session.set_providers([CUDA])
    assert f"fell back to {CPU}: {CUDA} is not in this installation" in session.plan.provenance.reason


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_what_onnxruntime_refused_is_told_with_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    session = parallax.InferenceSession(MODEL, providers=["NoSuchExecutionProvider"])
    assert "EP Error" in capsys.readouterr().out
    reason = session.plan.provenance.reason
    assert reason.startswith(f"fell back to {CPU}: ONNX Runtime failed with providers=['NoSuchExecutionProvider']: ")
    assert "Unknown Provider Type" in reason


# -- what cannot be had here, on made-up values -----------------------------------------------------------------------


def _asked(*names: str) -> AskedProviders:
    asked = AskedProviders()
    asked.note(names, names, "", is_fallback=False)
    return asked


def _whole(reason: str) -> parallax.Plan:
    plan = make_plan((make_segment(0, width=2),), cores=2, lanes=1)
    return replace(plan, provenance=replace(plan.provenance, reason=reason))


def test_a_provider_that_took_the_model_is_what_the_plan_says() -> None:
    plan = plan_that_runs(_whole(given_to(CUDA)), _asked(CUDA), providers=[CUDA, CPU], threads=2)
    assert plan.segments[0].backend == CUDA
    assert plan.provenance.reason == given_to(CUDA)
    assert plan.summary.startswith(f"whole model on {CUDA}")


def test_a_provider_that_was_left_out_while_opening_is_not() -> None:
    plan = plan_that_runs(_whole(given_to(CPU)), _asked(CPU, "AzureExecutionProvider"), providers=[CPU], threads=2)
    assert plan.segments[0].backend == CPU_BACKEND
    assert "AzureExecutionProvider" in plan.provenance.reason
    plan = plan_that_runs(_whole(given_to(CUDA)), _asked(CUDA), providers=[CPU], threads=2)
    assert plan.segments[0].backend == CPU_BACKEND
    assert given_to(CUDA) not in plan.provenance.reason
    assert plan.segments[0].reason == plan.provenance.reason


class Refusing:
    """A backend that takes nodes, and then does not compile them."""

    def __init__(self) -> None:
        self._inner: Any = open_backend(PHONE, {"speed": 1000})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def with_speed(self, *arguments: Any, **options: Any) -> Any:
        return self

    def compile(self, *arguments: Any, **options: Any) -> Any:
        raise parallax.BackendError("it does not compile today")


def test_segments_that_a_backend_does_not_compile_run_on_the_cpu_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: Callable[..., Any] = open_backend
    monkeypatch.setattr(
        "parallax.backends.open_backend",
        lambda name, options=None: Refusing() if name == PHONE else opened(name, options),
    )
    session = parallax.InferenceSession(MODEL, providers=[PHONE, CPU], shapes=SHAPES, split="always", threads=2)
    assert {segment.backend for segment in session.plan.segments} == {CPU_BACKEND}
    assert any("does not compile it, so the CPU runs it" in segment.reason for segment in session.plan.segments)
    verify_plan(session.plan)
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-5, atol=1e-5)
