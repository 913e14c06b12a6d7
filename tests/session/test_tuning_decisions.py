"""What tuning concludes from what it measures: wrong answers are out, and what wins once must win again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends import open_backend
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._profiles import load_profile
from parallax.backends.ort import CPU_DEVICE
from parallax.model import load_model
from parallax.planner import PlanDevice, PlanRequest, may_be_remembered, remembered_plan, whole_plan
from parallax.planner import _tuning as tuning
from parallax.planner._kept import remember_plan
from parallax.planner._measuring import Variant
from parallax.schedule import CPU_BACKEND, Plan
from tests.session.test_devices import PHONE, two_branches

GREEDY = f"greedy on {PHONE}"
ROUNDS = 25


class OffByALittle:
    """A part whose answers are computed well, and then moved by a share of their magnitude."""

    def __init__(self, inner: Any, share: float) -> None:
        self._inner, self._share = inner, share
        self._kept: list[Any] = []
        """What values of the runtime's are made of must live as long as they."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run_with_ort_values(self, *arguments: Any) -> Sequence[Any]:
        arrays = [value.numpy() for value in self._inner.run_with_ort_values(*arguments)]
        moved = [array + np.float32(self._share) * np.abs(array).max() for array in arrays]
        self._kept += moved
        return [C.OrtValue.ortvalue_from_numpy(array, CPU_DEVICE) for array in moved]


class Wrong:
    """A backend that takes everything and computes something else."""

    def __init__(self, share: float) -> None:
        self._inner, self._share = open_backend("cpu"), share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def compile(self, *arguments: Any, **options: Any) -> Any:
        return OffByALittle(self._inner.compile(*arguments, **options), self._share)


class Measured:
    """Stands in for the clock: what each measurement finds, by label, as times of the default's 100; else 200."""

    def __init__(self, *found: Mapping[str, int], others: float = 0.0) -> None:
        self._found, self._others = list(found), others
        self.asked: list[tuple[list[str], int]] = []

    def __call__(
        self, variants: Sequence[Variant], *, cores: int, progress: Any, rounds: int = ROUNDS
    ) -> tuple[list[list[int]], float]:
        self.asked.append(([variant.label for variant in variants], rounds))
        times = self._found.pop(0)
        series = [[100 if at == 0 else times.get(variant.label, 200)] * rounds for at, variant in enumerate(variants)]
        return series, self._others


def tuned(folder: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured, *, wrong: float | None = None) -> Plan:
    """The plan that tuning finds for a model that the phone takes a branch of."""
    monkeypatch.setattr(tuning, "measure_again_if_noisy", measured)
    phone = EmulatedBackend(load_profile("pixel-6-gpu"), speed=1000, processor=None if wrong is None else Wrong(wrong))
    devices = {PHONE: PlanDevice(backend=phone)}
    request = PlanRequest(model=load_model(two_branches()), cores=2, tune=True, cache_dir=folder, devices=devices)
    return tuning.tune(request)


def test_what_wins_twice_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured({GREEDY: 50}, {GREEDY: 60})
    plan = tuned(tmp_path, monkeypatch, measured)
    assert {segment.backend for segment in plan.segments} == {PHONE, CPU_BACKEND}
    assert plan.provenance.reason == f"{GREEDY}: took 0.50 of the whole model's time"
    (first, _), again = measured.asked
    assert GREEDY in first
    assert again == ([first[0], GREEDY], ROUNDS), "against the default alone"


@pytest.mark.parametrize("second", [96, 100, 150])
def test_what_wins_once_and_not_again_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: int) -> None:
    measured = Measured({GREEDY: 50}, {GREEDY: second})
    plan = tuned(tmp_path, monkeypatch, measured)
    assert plan.is_whole
    assert plan.segments[0].backend == CPU_BACKEND
    assert len(measured.asked) == 2
    by_label = {candidate.label: candidate.measured_ns for candidate in plan.provenance.candidates}
    assert by_label[GREEDY] == 50, "what was measured first is told all the same"


def test_what_does_not_win_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured({GREEDY: 96})
    plan = tuned(tmp_path, monkeypatch, measured)
    assert plan.is_whole
    assert len(measured.asked) == 1
    assert "nothing beat the whole model" in plan.provenance.reason


def test_nothing_is_concluded_while_others_keep_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tuned(tmp_path, monkeypatch, Measured({GREEDY: 50}, others=1.0))
    assert plan.is_whole
    assert plan.provenance.is_noisy
    assert not plan.provenance.is_conclusive
    assert "other processes kept 1.0 cores busy" in plan.provenance.reason


def test_what_a_busy_machine_spoiled_is_not_kept_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = tuned(tmp_path, monkeypatch, Measured({GREEDY: 50}, others=1.0))
    assert not may_be_remembered(spoiled.structure_digest, tmp_path)
    again = Measured({GREEDY: 50}, {GREEDY: 60})
    plan = tuned(tmp_path, monkeypatch, again)
    assert len(again.asked) == 2
    assert plan.provenance.is_conclusive
    assert not plan.is_whole
    unmeasured = Measured()
    assert tuned(tmp_path, monkeypatch, unmeasured) == plan, "what was concluded is kept"


def test_what_an_earlier_version_kept_of_a_busy_machine_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(two_branches())
    request = PlanRequest(model=model, cores=2, cache_dir=tmp_path, backends=())
    busy = whole_plan(model, "other processes kept the cores busy", cores=2)
    remember_plan(request, replace(busy, provenance=replace(busy.provenance, source="measured", is_noisy=True)))
    assert remembered_plan(request) is None
    remember_plan(request, replace(busy, provenance=replace(busy.provenance, source="measured")))
    assert remembered_plan(request) is not None


def test_a_plan_with_wrong_answers_is_not_even_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured({GREEDY: 1})
    plan = tuned(tmp_path, monkeypatch, measured, wrong=1e-3)
    assert plan.is_whole
    ((labels, _),) = measured.asked
    assert not [label for label in labels if PHONE in label]
    notes = {candidate.label: candidate.note for candidate in plan.provenance.candidates}
    assert notes[GREEDY] == "output 0 differs beyond 0.0001 of its scale"


def test_answers_of_other_kernels_may_differ_within_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured({GREEDY: 50}, {GREEDY: 50})
    plan = tuned(tmp_path, monkeypatch, measured, wrong=1e-6)
    assert not plan.is_whole, plan.provenance.candidates
