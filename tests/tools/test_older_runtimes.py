"""The list of what older versions of ONNX Runtime do otherwise: it skips nothing with the pinned one."""

from __future__ import annotations

import re
from pathlib import Path

from tests._older_runtimes import read_older

ROOT = Path(__file__).parents[2]
PINNED = re.search(r"^onnxruntime==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_with_the_pinned_version_every_test_runs() -> None:
    assert PINNED is not None
    assert not [entry for entry in read_older() if entry.covers(_name(entry.tests), PINNED[1])]


def test_with_the_oldest_that_is_allowed_each_entry_is_of_use() -> None:
    allowed = re.search(r'"onnxruntime>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    makefile = re.search(r"^OLDEST := onnxruntime==(\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert allowed is not None
    assert makefile is not None
    assert makefile[1].startswith(f"{allowed[1]}.")
    for entry in read_older():
        assert entry.covers(_name(entry.tests), makefile[1]), entry
        assert entry.does


def test_each_entry_names_a_test_that_there_is() -> None:
    for entry in read_older():
        path, _, name = entry.tests.partition("::")
        function = re.match(r"\*?(\w*)", name)
        assert function is not None
        text = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {function[1]}(" in text or name.startswith("*"), entry


def _name(pattern: str) -> str:
    """A node id that a pattern covers."""
    return pattern.replace("[[]", "[").replace("*", "x")
