"""Limits that keep the source readable: a thin session, few public names, each of which has a user."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import parallax

SOURCE = Path(parallax.__file__).parent
LONGEST_SESSION = 1_500
LONGEST_FILE = 500
MOST_NAMES = 25

FOR_BACKENDS_FROM_OUTSIDE = {"BackendFactory", "BackendInfo", "Interface", "MemoryDomain", "UnfitFeedsError"}
"""What a backend that another distribution registers is made of, beside what packages here use (docs/backends.md)."""


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_session_is_the_surface_and_no_more() -> None:
    assert sum(map(lines_of, (SOURCE / "session").glob("*.py"))) <= LONGEST_SESSION


def public_names(package: str) -> set[str]:
    for statement in ast.parse((SOURCE / package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return set(ast.literal_eval(statement.value))
    raise AssertionError(f"{package} states no __all__")


def imported_from(package: str) -> Iterator[str]:
    """Names that other packages import from the face of this one."""
    module = f"parallax.{package.replace('/', '.')}"
    for path in SOURCE.rglob("*.py"):
        if path.is_relative_to(SOURCE / package):
            continue
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(found, ast.ImportFrom) and found.module == module:
                yield from (alias.name for alias in found.names)


@pytest.mark.parametrize(
    "package",
    ["partition", "partition/candidates", "partition/padding", "partition/regions", "backends", "memory", "schedule"],
)
def test_public_names_are_few_and_each_has_a_user(package: str) -> None:
    names = public_names(package)
    assert len(names) <= MOST_NAMES
    assert names - set(imported_from(package)) - FOR_BACKENDS_FROM_OUTSIDE == set()


def test_those_for_backends_from_outside_are_told_to_their_authors() -> None:
    page = (SOURCE.parents[1] / "docs" / "backends.md").read_text(encoding="utf-8")
    assert {name for name in FOR_BACKENDS_FROM_OUTSIDE if not re.search(rf"\b{name}\b", page)} == set()


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_too_long_to_be_read_at_once(path: Path) -> None:
    assert lines_of(path) <= LONGEST_FILE
