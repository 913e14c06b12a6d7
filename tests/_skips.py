"""Skipped tests fail in continuous integration, except those that a committed list allows.

A test that is skipped proves nothing, and a run of skipped tests is green. On a developer's machine that is meant: not
every one has every backend. Where ``CI`` is set, a skip is a failure unless `allowed_skips.toml` names test and reason.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedSkip:
    """Tests that may be skipped, for one reason."""

    tests: str
    """A pattern of node ids, as `fnmatch` has them, but that square brackets stand for themselves."""
    reason: str
    """A regular expression for the whole of the reason."""
    why: str

    def covers(self, test: str, reason: str) -> bool:
        """Whether this allows it."""
        pattern = self.tests.replace("[", "[[]")
        return fnmatch.fnmatchcase(test, pattern) and re.fullmatch(self.reason, reason, re.DOTALL) is not None


def read_allowed(path: Path = ALLOWED) -> tuple[AllowedSkip, ...]:
    """Read the list. Raises: TypeError for an entry that lacks a field, or has another."""
    return tuple(AllowedSkip(**entry) for entry in tomllib.loads(path.read_text("utf-8"))["skip"])


class SkipsAreFailures:
    """The hooks: a skip that is not allowed is reported as the failure of its test (or of its module)."""

    def __init__(self, allowed: Sequence[AllowedSkip]) -> None:
        self._allowed = allowed

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._judge(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        self._judge(report)
        return report

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = reason_of(report)
        if any(entry.covers(report.nodeid, reason) for entry in self._allowed):
            return
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped: {reason}\n"
            f"In continuous integration (CI is set) a test may be skipped only for a reason in tests/{ALLOWED.name}. "
            "Install or mend what it lacks; or, if no machine of that kind can have it, add it to the list and say why."
        )


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or module was skipped, as it said."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
