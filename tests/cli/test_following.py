"""``--adapt``: a session that follows the machine is run and benched like any, and what it knew is shown."""

from __future__ import annotations

import json
from pathlib import Path

import parallax
from tests.cli._models import affine, choosing, invoke


def test_run_shows_what_the_session_knew_of_the_machine(tmp_path: Path) -> None:
    model = affine(tmp_path / "m.onnx")
    asked = ("run", model, "--threads", 2, "--runs", 3, "--adapt")
    report = json.loads(invoke(*asked, "--json").stdout)["adaptation"]
    assert report["ended"] is None
    assert report["summary"].startswith("state: ")
    shown = invoke(*asked).stdout
    assert "state: " in shown
    assert "runs watched)" in " ".join(shown.split())
    assert json.loads(invoke("run", model, "--threads", 2, "--json").stdout)["adaptation"] is None


def test_bench_times_a_session_that_follows_the_machine(tmp_path: Path) -> None:
    asked = ("bench", affine(tmp_path / "m.onnx"), "--threads", 2, "--runs", 2, "--no-tune", "--adapt")
    report = json.loads(invoke(*asked, "--json").stdout)
    assert report["adaptation"]["ended"] is None
    assert "state: " in invoke(*asked).stdout


def test_where_it_is_of_no_effect_that_is_shown(tmp_path: Path) -> None:
    result = invoke("run", affine(tmp_path / "m.onnx"), "--threads", 1, "--adapt")
    assert result.exit_code == 0
    assert "adapt=True is of no effect: there is one core, and no device" in " ".join(result.stdout.split())


def test_a_bundle_holds_one_plan(tmp_path: Path) -> None:
    bundle = parallax.compile(choosing(tmp_path / "m.onnx"), tmp_path / "m.plx", threads=1)
    for command in ("run", "bench"):
        result = invoke(command, bundle, "--threads", 1, "--adapt")
        assert result.exit_code == 2
        assert "adapt= is decided when a bundle is compiled" in " ".join(result.stderr.split())
