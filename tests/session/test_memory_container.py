"""A budget as a share of what is free, and pressure, in a real control group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20

SCRIPT = """
import os, sys, threading
open({procs!r}, "w").write(str(os.getpid()))
sys.path.insert(0, {root!r})
import numpy as np
import parallax
from tests.session._dropin import ForcedSplitSession, ramp
from tests.session.test_memory_budget import answer, wide_model

model, x = wide_model(256), ramp(256, 1024)
expected = answer(model, x)
session = ForcedSplitSession(model, memory_budget=0.5)
gate = session._memory.controller
before = gate.limit_bytes
free = parallax.machine.free_memory_bytes()
# Touched pages of the group's memory, until hardly any of it is free.
held = bytearray(b"x") * max(1, free - {left})
session._memory._monitor.interval_s = 0.0
right = [np.array_equal(session.run(None, {{"x": x}})[0], expected) for _ in range(3)]
print(session.memory().budget_bytes, before, gate.limit_bytes, all(right), len(session.plan.segments))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of v1 with a limit of 400 MiB, made below this process's own."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        (own,) = [path for _, controllers, path in (line.split(":", 2) for line in lines) if controllers == "memory"]
        base = Path("/sys/fs/cgroup/memory") / own.strip("/")
        made = (base if base.is_dir() else Path("/sys/fs/cgroup/memory")) / f"parallax-budget-{os.getpid()}"
        made.mkdir()
    except (OSError, ValueError):
        pytest.skip("no memory control group (v1) can be made here")
    try:
        (made / "memory.limit_in_bytes").write_text(str(400 * MIB))
        yield made
    finally:
        made.rmdir()


def test_a_share_is_of_what_the_container_has_and_filling_it_narrows_the_session(group, pytestconfig):
    script = SCRIPT.format(procs=str(group / "cgroup.procs"), root=str(pytestconfig.rootpath), left=16 * MIB)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    budget, before, after, right, segments = result.stdout.split()
    assert 60 * MIB < int(budget) < 200 * MIB, "half of what 400 MiB leave, whatever the machine has"
    assert int(after) < 20 * MIB < int(before), "no more than is left, now that hardly any is"
    assert right == "True"
    assert int(segments) > 1
