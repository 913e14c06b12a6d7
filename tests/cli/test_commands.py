"""Commands as processes, and what holds for all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import parallax
from parallax import zoo
from parallax.cli._exits import guarded
from parallax.errors import InternalError
from tests.cli._models import counting, invoke

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_module_runs_as_a_program_and_pipes_plain_text() -> None:
    command = [sys.executable, "-m", "parallax", "zoo", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "resnet18" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_ctrl_c_stops_a_run_with_one_line_and_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "parallax", "run", str(counting(tmp_path / "m.onnx"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "was not given" in process.stderr.readline()  # from here on it opens the model and runs it
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert out == ""


def test_the_zoo_is_listed_with_its_sizes() -> None:
    report = json.loads(invoke("zoo", "list", "--json").stdout)
    assert [model["name"] for model in report["models"]] == list(zoo.names())
    assert all(model["file_bytes"] > 0 and model["nodes"] > 0 for model in report["models"])
    table = invoke("zoo", "list").stdout
    assert all(name in table for name in zoo.names())


def test_the_version_is_the_packages() -> None:
    assert invoke("--version").stdout == f"parallax {parallax.__version__}\n"


@pytest.mark.parametrize(
    "command", [["inspect"], ["run"], ["bench"], ["tune"], ["compile"], ["train"], ["zoo", "list"], ["zoo", "export"]]
)
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert f"parallax {' '.join(command)}" in result.stdout
    assert "Example" in result.stdout
    assert "--json" in result.stdout


def test_a_bug_keeps_its_traceback_and_a_known_error_does_not() -> None:
    @guarded
    def buggy() -> None:
        raise KeyError("a bug")

    @guarded
    def refusing() -> None:
        raise InternalError("a known error")

    with pytest.raises(KeyError):
        buggy()
    with pytest.raises(Exception) as caught:
        refusing()
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]  # typer.Exit


@pytest.mark.parametrize(
    "script", sorted(path.name for path in BENCHMARKS.glob("*.py") if not path.name.startswith("_"))
)
def test_every_benchmark_starts_and_explains_itself(script: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "--output" in done.stdout
