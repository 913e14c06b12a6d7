"""`bench` while other programs use all cores: it ends in its time, and says what it does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from parallax import zoo

SPIN = "while True: pass"
LOAD = 8
MODEL = "mobilenetv2"
"""Takes some 5 ms."""


@pytest.fixture
def busy() -> Iterator[None]:
    zoo.load(MODEL)
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(LOAD)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
@pytest.mark.skipif((os.cpu_count() or 1) > LOAD, reason="there are more cores than busy programs")
@pytest.mark.parametrize("how", [[], ["--callers", "4"]])
def test_a_bench_on_a_busy_machine_ends_in_time_and_concludes_nothing(how: list[str]) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "parallax", "bench", f"zoo:{MODEL}", "--max-time", "25", "--json", *how],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # The promise itself; a second is for this process, which has to wait for a core like the other one.
    assert time.monotonic() - began <= 25 + 1
    report = json.loads(done.stdout)
    assert report["elapsed_s"] <= report["max_time_s"] == 25
    assert report["verdict"]["outcome"] == "inconclusive"
    if report["runs"]:
        assert done.returncode == 0, done.stderr
        assert "other programs used up to" in report["verdict"]["why"]
    else:
        assert done.returncode == 3, done.stderr
        assert "this process got" in report["verdict"]["why"]
    assert all(row["outputs"]["relative_difference"] <= 1e-4 for row in report["timings"][1:])
