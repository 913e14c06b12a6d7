"""``--objective``: plans by joules from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli._models import invoke
from tests.planner.test_by_energy import transposes
from tests.session.test_devices import two_branches

PHONE = "emulated:pixel-6-gpu,host_flops=6e10"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "m.onnx"
    made.write_bytes(two_branches(batch=512))
    return made


@pytest.mark.parametrize("objective", ["energy", "edp"])
@pytest.mark.parametrize("devices", [[], ["--provider", PHONE]], ids=["CPU", "phone"])
def test_inspect_shows_the_plan_and_what_it_was_compared_with(path: Path, objective: str, devices: list[str]) -> None:
    arguments = ("inspect", path, "--threads", 2, "--objective", objective, *devices)
    session = json.loads(invoke(*arguments, "--json").stdout)["session"]
    assert session["objective"] == objective
    assert f'objective="{objective}": ' in session["reason"]
    assert len(session["compared"]) >= 2
    assert all("mJ" in entry["note"] for entry in session["compared"])
    shown = " ".join(invoke(*arguments).stdout.split())
    assert f"objective '{objective}'" in shown
    assert "whole model, 2 threads" in shown


def test_inspect_shows_no_plan_of_a_session_unasked(path: Path) -> None:
    assert "session" not in json.loads(invoke("inspect", path, "--json").stdout)


def test_compile_run_and_bench_plan_by_it(tmp_path: Path) -> None:
    path, bundle = tmp_path / "m.onnx", tmp_path / "m.plx"
    path.write_bytes(transposes())
    invoke("compile", path, "--threads", 2, "--objective", "energy", "--output", bundle)
    info: Any = json.loads(invoke("bundle", "info", bundle, "--json").stdout)
    assert info["options"]["objective"] == "energy"
    assert "--objective energy" in info["rebuild"]
    told = json.loads(invoke("run", path, "--threads", 2, "--objective", "energy", "--json").stdout)
    assert 'objective="energy": ' in json.dumps(told).replace('\\"', '"')
    arguments = ("--threads", 2, "--no-tune", "--runs", 2, "--max-time", 20, "--objective", "energy", "--json")
    benched = json.loads(invoke("bench", path, *arguments).stdout)
    assert 'objective="energy": ' in json.dumps(benched).replace('\\"', '"')


def test_it_is_not_for_bundles_and_zeros(tmp_path: Path, path: Path) -> None:
    bundle = tmp_path / "m.plx"
    invoke("compile", path, "--output", bundle)
    told = invoke("inspect", bundle, "--objective", "energy")
    assert told.exit_code != 0
    assert "--objective does not apply" in " ".join(told.stderr.split())
    told = invoke("inspect", path, "--sparsity", "--objective", "energy")
    assert told.exit_code != 0
    told = invoke("run", path, "--objective", "throughput")
    assert told.exit_code != 0
