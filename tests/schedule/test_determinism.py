"""Schedules and simulated runs do not depend on the process that computes them."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
from parallax.schedule import AdaptivePolicy, Task, simulate
from tests.schedule._policies import SequentialPolicy

state = 12345
def draw(bound):
    global state
    state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
    return (state >> 33) % bound

tasks = []
for index in range(60):
    predecessors = {draw(index) for _ in range(draw(3))} if index else set()
    cost = 1 + draw(1000)
    costs = ((1, cost), (2, 1 + cost * 6 // 10), (4, 1 + cost * 4 // 10))
    tasks.append(
        Task(index=index, predecessors=tuple(sorted(predecessors)), cost_ns=costs, peak_bytes=draw(50))
    )
for policy in (SequentialPolicy(), AdaptivePolicy(handover_ns=30, segment_overhead_ns=10)):
    schedule = policy.assign(tasks, cores=4, lanes=3)
    print(schedule)
    print(simulate(tasks, schedule, handover_ns=30, contention=1.3, budget_bytes=120))
"""


def test_another_hash_seed_gives_the_same_schedules_and_runs() -> None:
    outputs = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert outputs.pop().count("Span(") == 120
