"""Memory on the command line: budgets, and what is shown of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from parallax.bundle import read_bundle
from tests.cli._models import affine, affine_of, branching, invoke

MIB = 1 << 20


def test_run_shows_what_is_held_and_stays_within_the_budget(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    result = invoke("run", path, "-i", "x=2", "--memory-budget", "16MiB", "--json")
    report = json.loads(result.stdout)
    memory = report["memory"]
    assert memory["budget_bytes"] == 16 * MIB
    assert 0 < memory["admitted_peak_bytes"] <= memory["limit_bytes"] < memory["budget_bytes"]
    assert report["outputs"][0]["max"] == affine_of(np.float32(2))
    shown = invoke("run", path, "-i", "x=2", "--memory-budget", "16MiB").stdout
    assert re.search(r"memory: a run holds 54 B at most; .*; budget 16.0 MiB, of which 2.24 MiB would do", shown)


@pytest.mark.parametrize("command", [("run",), ("bench", "--no-tune", "--runs", 2)])
def test_a_margin_says_how_much_of_the_budget_stays_free(command: tuple[object, ...], tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    limits = []
    for given in ((), ("--margin", "0.1"), ("--margin", "0"), ("--margin", "0.5")):
        result = invoke(*command, path, "-i", "x=2", "--memory-budget", "16MiB", *given, "--json")
        limits.append(json.loads(result.stdout)["memory"]["limit_bytes"])
    by_default, tenth, none, half = limits
    assert by_default == tenth
    assert half < tenth < none
    assert none - half == 8 * MIB


def test_compile_and_tune_go_by_the_margin(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    for command in (("compile", "-o", tmp_path / "m.plx"), ("tune", "--cache-dir", tmp_path / "cache")):
        given = (*command, path, "--memory-budget", "4MiB")
        assert invoke(*given, "--margin", "0.3").exit_code in (0, 3)  # tuning may be noisy
        result = invoke(*given, "--margin", "0.9")
        assert result.exit_code == 2
        assert "give at least memory_budget=" in result.stderr


def test_without_a_budget_there_is_none_to_show(tmp_path: Path) -> None:
    report = json.loads(invoke("run", affine(tmp_path / "m.onnx"), "-i", "x=2", "--json").stdout)
    assert report["memory"]["budget_bytes"] is None
    assert report["memory"]["run_peak_bytes"] > 0


@pytest.mark.parametrize("command", ["run", "bench", "compile"])
def test_a_budget_too_small_ends_with_the_number_that_would_do(command: str, tmp_path: Path) -> None:
    result = invoke(command, affine(tmp_path / "m.onnx"), "-i", "x=2", "--memory-budget", "1kB")
    assert result.exit_code == 2
    found = re.search(r"give at least memory_budget=(\d+)", result.stderr)
    assert found is not None
    assert invoke("run", tmp_path / "m.onnx", "-i", "x=2", "--memory-budget", found[1]).exit_code == 0


@pytest.mark.parametrize("value", ["much", "0", "150%", "5 XB"])
def test_what_is_no_amount_of_memory_is_said_in_one_line(value: str, tmp_path: Path) -> None:
    result = invoke("run", affine(tmp_path / "m.onnx"), "--memory-budget", value)
    assert result.exit_code == 2
    assert "256MiB" in result.stderr


def test_bench_compares_within_a_budget(tmp_path: Path) -> None:
    result = invoke(
        "bench", affine(tmp_path / "m.onnx"), "-i", "x=2", "--no-tune", "-n", 2, "--memory-budget", "32MiB", "--json"
    )
    report = json.loads(result.stdout)
    assert report["memory"]["budget_bytes"] == 32 * MIB


def test_compile_chooses_a_plan_for_a_budget_and_notes_its_peaks(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    arguments = ("compile", path, "-o", tmp_path / "m.plx", "--shape", "x=512,8", "--min-gain", 0, "--threads", 2)
    refused = invoke(*arguments, "--memory-budget", "2MiB")
    assert refused.exit_code == 2
    result = invoke(*arguments, "--memory-budget", "64MiB", "--json")
    assert result.exit_code == 0
    segments = json.loads(result.stdout)["plan"]["segments"]
    assert all(segment["peak_bytes"] for segment in segments)
    assert len(read_bundle(tmp_path / "m.plx", verify="full").plan.segments) == len(segments)


def test_inspect_tells_the_budgets_that_would_do(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    open_sizes = json.loads(invoke("inspect", path, "--json").stdout)["memory"]
    assert set(open_sizes.values()) == {None}
    known = json.loads(invoke("inspect", path, "--shape", "x=4096,8", "--json").stdout)["memory"]
    assert known["run_peak_bytes"] >= 2 * 4096 * 8 * 4
    assert known["least_budget_of_bundle_bytes"] <= known["least_budget_bytes"]
    assert "would do" in invoke("inspect", path, "--shape", "x=4096,8").stdout
    assert "--shape" in invoke("inspect", path).stdout
