"""`tune` and `compile`: what is remembered, what is written, and what is said where nothing could be concluded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import parallax
from parallax.cli._console import Screen
from parallax.cli._tune import concluded
from parallax.planner import _measuring
from parallax.schedule import Plan
from tests.cli._models import affine, affine_of, branching, invoke


def tuned(*arguments: object) -> dict:
    """The report of `tune`; its exit status is that of its conclusion, which other programs may prevent."""
    result = invoke("tune", *arguments, "--json")
    assert result.exit_code in (0, 3), result.output
    report = json.loads(result.stdout)
    assert report["concluded"] is (result.exit_code == 0)
    return report


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs use all cores while plans are measured."""

    class Busy:
        def cores_taken(self, cores: int) -> float:
            return float(cores)

    monkeypatch.setattr(_measuring, "LoadMeter", Busy)


def test_tune_remembers_a_plan_that_later_sessions_open_with(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    report = tuned(path, "--shape", "x=4,8", "--threads", 2)
    plan = report["plan"]
    assert plan["source"] == "measured"
    assert plan["candidates"]
    assert plan["uncut_ms"] > 0
    if report["concluded"]:
        later = parallax.InferenceSession(path, threads=2, shapes={"x": (4, 8)}).plan
        assert later.provenance.source == "measured"
        assert later.provenance.reason == plan["reason"]
        answer = json.loads(invoke("inspect", path, "--shape", "x=4,8", "--threads", 2, "--json").stdout)["answers"]
        assert answer["worth_it"]["basis"] == "measured"
        assert answer["worth_it"]["answer"] == ("no" if plan["uncut"] else "yes")


def test_tune_shows_what_was_compared(tmp_path: Path) -> None:
    shown = invoke("tune", branching(tmp_path / "m.onnx"), "--shape", "x=5,8", "--threads", 2).stdout
    assert "candidates:" in shown
    assert "whole model, 1 thread" in shown
    assert "machine: " in shown


def test_a_cache_folder_of_ones_own_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = branching(tmp_path / "m.onnx")
    folder = tmp_path / "kept"
    assert tuned(path, "--shape", "x=3,8", "--threads", 2, "--cache-dir", folder)
    assert list(folder.glob("*.json"))
    monkeypatch.setenv("PARALLAX_CACHE_DIR", str(tmp_path / "named"))
    tuned(path, "--shape", "x=3,8", "--threads", 2)
    assert list((tmp_path / "named").glob("*.json"))


@pytest.mark.usefixtures("busy")
def test_a_busy_machine_is_an_exit_status_of_its_own_and_one_line(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    result = invoke("tune", path, "--shape", "x=6,8", "--threads", 2, "--cache-dir", tmp_path / "kept", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["concluded"] is False
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("inconclusive: other processes kept ")
    assert "--wait" in line


@pytest.mark.usefixtures("busy")
def test_a_bundle_that_was_tuned_on_a_busy_machine_is_whole_and_the_status_says_so(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    given = ("-o", tmp_path / "m.plx", "--tune", "--threads", 2, "-i", "x=2", "--cache-dir", tmp_path / "kept")
    result = invoke("compile", path, *given)
    assert result.exit_code == 3
    assert "wrote " in result.stdout
    session = parallax.InferenceSession(tmp_path / "m.plx", threads=2)
    x = np.full((2, 3), 2, np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], affine_of(x))


def test_compile_without_a_target_tunes_and_says_what_it_is_called_now(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    result = invoke("compile", path, "--shape", "x=7,8", "--threads", 2, "--json")
    assert result.exit_code in (0, 3), result.output
    assert "note: to measure and remember is `parallax tune` now" in result.stderr
    assert json.loads(result.stdout)["plan"]["source"] == "measured"


def plans(path: Path, script: Sequence[bool]) -> tuple[Callable[[], Plan], list[Plan]]:
    """What returns one plan after the other, which are noisy where the script says so."""
    plan = parallax.InferenceSession(path).plan
    made: list[Plan] = []

    def tuned_once() -> Plan:
        provenance = replace(plan.provenance, is_noisy=script[len(made)], reason="others were there")
        made.append(replace(plan, provenance=provenance))
        return made[-1]

    return tuned_once, made


@pytest.mark.parametrize(
    ("script", "wait_s", "times"),
    [((True, True, False), 600.0, 3), ((False,), 600.0, 1), ((True,), 0.0, 1)],
)
def test_waiting_measures_again_until_there_is_a_conclusion(
    script: tuple[bool, ...], wait_s: float, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parallax.cli import _tune

    monkeypatch.setattr(_tune, "await_idle_cores", lambda *rest, **named: 0.0)
    once, made = plans(affine(tmp_path / "m.onnx"), script)
    plan = concluded(once, cores=1, wait_s=wait_s, screen=Screen(), progress=lambda *step: None)
    assert len(made) == times
    assert plan is made[-1]
    assert plan.provenance.is_noisy is script[-1]
