"""The slow suites in turn: a run takes as many of the slow tests as its time allows, and says which.

The slow tests are put in an order that does not follow their files (by a digest of their names, so that a new one takes
part without being registered anywhere), and begin at a place that follows from the commit (or, without one, the day).
None begins after the given number of minutes; those left over are skipped for `LEFT_OVER`, and another commit begins
with them.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

LEFT_OVER = "left to the run of another commit: this one's time for slow tests is used up"
_LIMIT_S = 600
"""For a slow test that sets no limit itself."""
_DEADLINE = "PARALLAX_SLOW_DEADLINE"
_TURN = "PARALLAX_SLOW_TURN"
"""The environment tells worker processes when no more are begun, and with which to begin."""


def add_options(parser: pytest.Parser) -> None:
    """Add ``--slow-minutes``."""
    parser.addoption(
        "--slow-minutes",
        type=float,
        metavar="N",
        help="take the slow tests in turn, from a place that the commit determines; begin none after N minutes",
    )


def turn_of(folder: Path, now_s: float) -> tuple[int, str]:
    """The number that determines where to begin, and what it was made from."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
        return int(found[:12], 16), f"commit {found[:12]}"
    except (OSError, ValueError, subprocess.SubprocessError):
        day = int(now_s // 86400)
        return day, f"day {day}"


def in_turn(names: list[str], turn: int) -> list[int]:
    """The places of ``names``, in the order in which they are to be run in this turn."""
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(names[place].encode()).digest())
    start = turn % max(1, len(order))
    return order[start:] + order[:start]


class Rotation:
    """The hooks, for the process that starts the run and for its workers."""

    def __init__(self, config: pytest.Config, minutes: float) -> None:
        if not hasattr(config, "workerinput"):
            now = time.time()
            turn, self._origin = turn_of(config.rootpath, now)
            os.environ[_TURN], os.environ[_DEADLINE] = str(turn), str(now + 60 * minutes)
            config.add_cleanup(lambda: [os.environ.pop(name, None) for name in (_TURN, _DEADLINE)])
        self._minutes = minutes

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        slow = [item for item in items if item.get_closest_marker("slow")]
        for item in slow:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_LIMIT_S))
        order = in_turn([item.nodeid for item in slow], int(os.environ[_TURN]))
        items[:] = [item for item in items if item.get_closest_marker("slow") is None] + [slow[at] for at in order]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("slow") and time.time() > float(os.environ[_DEADLINE]):
            pytest.skip(LEFT_OVER)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ran, all_of_them = Counter[str](), Counter[str]()
        for outcome in ("passed", "failed", "error", "skipped"):
            for report in terminalreporter.stats.get(outcome, ()):
                if "slow" in report.keywords:
                    name = report.nodeid.partition("[")[0]
                    all_of_them[name] += 1
                    ran[name] += LEFT_OVER not in str(report.longrepr)
        terminalreporter.section("slow suites")
        terminalreporter.line(
            f"{ran.total()} of {all_of_them.total()} slow tests ran in this turn ({self._origin}), "
            f"none begun after {self._minutes:g} minutes"
        )
        for name, count in sorted(all_of_them.items()):
            terminalreporter.line(f"{ran[name]:5} of {count:<5} {name}")
