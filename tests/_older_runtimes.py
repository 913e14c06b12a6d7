"""Tests that an older ONNX Runtime than the pinned one fails by itself are skipped there, by a committed list.

What is compared is what ours does with what ONNX Runtime does. Where an older version does otherwise, tests that state
what the pinned one does have nothing to say. `make test-runtimes` runs the others with the oldest that is allowed.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import pytest

OLDER = Path(__file__).with_name("older_runtimes.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Older:
    """Tests that older versions fail."""

    tests: str
    """A pattern of node ids, as `fnmatch` has them."""
    before: str
    """The first minor version that is known to pass."""
    does: str
    """What those before it do."""

    def covers(self, test: str, version: str) -> bool:
        """Whether this version is expected to fail this test."""
        return _minor(version) < _minor(self.before) and fnmatch.fnmatchcase(test, self.tests)


def read_older(path: Path = OLDER) -> tuple[Older, ...]:
    """Read the list. Raises: TypeError for an entry that lacks a field, or has another."""
    return tuple(Older(**entry) for entry in tomllib.loads(path.read_text("utf-8"))["older"])


def skip_older(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that the installed version fails by itself."""
    version = onnxruntime.__version__
    for entry in read_older():
        for item in items:
            if entry.covers(item.nodeid, version):
                item.add_marker(pytest.mark.skip(reason=f"ONNX Runtime {version} {entry.does}"))


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
