"""`bench` while other programs use all cores: it ends in its time, and says what it does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    done = subprocess.run(
        [sys.executable, "-m", "parallax", "bench", f"zoo:{MODEL}", "--max-time", "25", "--json", *how],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    # The promise itself, of which a second is for what ends after the last round.
    assert report["elapsed_s"] <= report["max_time_s"] + 1 == 26
    assert "note: other programs use" in done.stderr
    assert "waiting up to" in done.stderr
    assert report["runs"] >= 1
    assert report["verdict"]["outcome"] == "inconclusive"
    assert "other programs used up to" in report["verdict"]["why"]
    assert all(row["outputs"]["relative_difference"] <= 1e-4 for row in report["timings"][1:])
