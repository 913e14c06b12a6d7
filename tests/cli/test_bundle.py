"""``parallax compile --output`` and ``parallax bundle``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import parallax
from tests.bundle._models import branching, expected, feeds, forge
from tests.cli._models import invoke


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return branching(tmp_path / "m.onnx")


def test_compile_writes_a_bundle_that_opens(model: Path, tmp_path: Path) -> None:
    result = invoke("compile", model, "--output", tmp_path / "m.plx", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["bundle"] == str(tmp_path / "m.plx")
    assert report["plan"]["uncut"]
    session = parallax.InferenceSession(tmp_path / "m.plx")
    np.testing.assert_array_equal(session.run(None, feeds())[0], expected(model, feeds()))


def test_compile_takes_the_options_of_a_bundle(model: Path, tmp_path: Path) -> None:
    options = ["--threads", 2, "--min-gain", 0, "--shape", "x=3,64", "--portable"]
    result = invoke("compile", model, "-o", tmp_path / "m.plx", *options)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "m.plx") in result.stdout
    info = json.loads(invoke("bundle", "info", tmp_path / "m.plx", "--json").stdout)
    assert info["options"] == {
        "threads": 2,
        "policy": "adaptive",
        "shapes": {"x": [3, 64]},
        "min_gain": "0.0",
        "tune": False,
        "memory_limit": None,
        "memory_budget": None,
        "margin": None,
        "slim": False,
        "objective": "latency",
        "padding": None,
        "split": "auto",
        "devices": [],
    }
    assert info["portable"]
    assert not info["plan"]["uncut"]


def test_compile_cuts_by_weight_what_does_not_fit_into_the_limit(tmp_path: Path) -> None:
    model = branching(tmp_path / "large.onnx", width=600)
    result = invoke("compile", model, "-o", tmp_path / "m.plx", "--memory-limit", "64 MiB", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert plan["source"] == "memory"
    assert not plan["uncut"]
    info = json.loads(invoke("bundle", "info", tmp_path / "m.plx", "--json").stdout)
    assert info["options"]["memory_limit"] == 64 << 20


def test_compile_remembers_the_budget_that_a_bundle_is_for(model: Path, tmp_path: Path) -> None:
    budget = ("--memory-budget", "64 MiB", "--margin", 0.2)
    assert invoke("compile", model, "-o", tmp_path / "m.plx", *budget).exit_code == 0
    info = json.loads(invoke("bundle", "info", tmp_path / "m.plx", "--json").stdout)
    assert (info["options"]["memory_budget"], info["options"]["margin"]) == (64 << 20, "0.2")
    assert f"--memory-budget {64 << 20} --margin 0.2" in info["rebuild"]


def test_compile_tunes_a_bundle_where_it_is_told_to(model: Path, tmp_path: Path) -> None:
    result = invoke("compile", model, "-o", tmp_path / "m.plx", "--tune", "--shape", "x=3,64", "--json")
    assert result.exit_code in (0, 3)  # others may use the cores meanwhile
    assert json.loads(result.stdout)["plan"]["source"] == "measured"


@pytest.mark.parametrize("how", [[], ["--min-gain", 0, "--threads", 2, "--shape", "x=3,64"]])
def test_a_bundle_runs_as_its_model_does(how: list[object], model: Path, tmp_path: Path) -> None:
    assert invoke("compile", model, "-o", tmp_path / "m.plx", *how).exit_code == 0
    same = ("--shape", "x=3,64", "--seed", 3, "--json")
    ours = invoke("run", tmp_path / "m.plx", *same, "--save", tmp_path / "ours.npz", "--trace", tmp_path / "t.json")
    assert ours.exit_code == 0, ours.output
    assert json.loads(ours.stdout)["plan"]["uncut"] == (not how)
    assert invoke("run", model, *same, "--save", tmp_path / "theirs.npz").exit_code == 0
    with np.load(tmp_path / "ours.npz") as mine, np.load(tmp_path / "theirs.npz") as other:
        assert mine.files == other.files
        for name in other.files:
            np.testing.assert_array_equal(mine[name], other[name])


def test_a_bundle_is_not_tuned_nor_taken_where_a_model_is_needed(model: Path, tmp_path: Path) -> None:
    assert invoke("compile", model, "-o", tmp_path / "m.plx").exit_code == 0
    for command, said in ((("run", "--tune"), "its plan is fixed"), (("tune",), "is a compiled model")):
        result = invoke(command[0], tmp_path / "m.plx", *command[1:])
        assert result.exit_code == 2
        assert said in result.stderr


@pytest.mark.parametrize(
    "option", ["--portable", "--policy=sequential", "--split=never", "--min-gain=0", "--memory-limit=1GiB"]
)
def test_options_of_bundles_need_a_bundle(option: str, model: Path) -> None:
    result = invoke("compile", model, option)
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_a_target_that_cannot_be_is_refused_before_the_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    for target in (tmp_path / "taken", tmp_path / "no" / "m.plx"):
        result = invoke("compile", model, "-o", target)
        assert result.exit_code == 2
        assert str(target) in result.stderr


def test_info_says_what_a_bundle_was_made_from_and_for(model: Path, tmp_path: Path) -> None:
    bundle = parallax.compile(model, tmp_path / "m.plx")
    text = invoke("bundle", "info", bundle).stdout
    assert str(model) in text
    assert "made for this machine" in text
    report = json.loads(invoke("bundle", "info", bundle, "--json").stdout)
    assert report["fits_here"]
    assert report["source"]["path"] == str(model)
    forge(bundle, lambda manifest: manifest.update(runtime_version="1.0.0"))
    result = invoke("bundle", "info", bundle)
    assert result.exit_code == 0
    assert "not made for here: ONNX Runtime: made for '1.0.0'" in result.stdout
    assert f"parallax compile {model} --output {bundle}" in result.stdout


def test_verify_tells_whole_from_damaged(model: Path, tmp_path: Path) -> None:
    bundle = parallax.compile(model, tmp_path / "m.plx", portable=True)
    assert "whole" in invoke("bundle", "verify", bundle).stdout
    assert json.loads(invoke("bundle", "verify", bundle, "--json").stdout)["whole"]
    portable = next(bundle.glob("g-*/portable/model.onnx"))
    portable.write_bytes(bytes(portable.stat().st_size))
    result = invoke("bundle", "verify", bundle)
    assert result.exit_code == 2
    assert str(portable) in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_bundle_is_refused_in_one_line(command: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.plx"):
        result = invoke("bundle", command, path)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert str(path) in result.stderr


def test_prune_removes_what_dead_writers_left(model: Path, tmp_path: Path) -> None:
    bundle = parallax.compile(model, tmp_path / "m.plx")
    stale = tmp_path / ".m.plx.00000000000000aa.tmp"
    for argument in (bundle, tmp_path):
        stale.mkdir()
        report = json.loads(invoke("bundle", "prune", argument, "--json").stdout)
        assert [entry["path"] for entry in report["removed"]] == [str(stale)]
        assert not stale.exists()
    assert "nothing to remove" in invoke("bundle", "prune", bundle).stdout
    assert invoke("bundle", "prune").exit_code == 0
    assert invoke("bundle", "prune", tmp_path / "missing").exit_code == 2
    parallax.InferenceSession(bundle)
