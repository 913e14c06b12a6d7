"""The version is written once, in the package (packaging reads it there); the changelog agrees with it."""

from __future__ import annotations

import re
from pathlib import Path

import parallax

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\S+))?$", re.MULTILINE)


def test_the_top_version_of_the_changelog_is_the_packages() -> None:
    headings = HEADING.finditer(CHANGELOG.read_text(encoding="utf-8"))
    versions = [match["version"] for match in headings if match["version"] != "Unreleased"]
    assert versions, "CHANGELOG.md has no heading of the form '## [1.2.3] - 2026-01-31'"
    assert versions[0] == parallax.__version__, "set __version__ in src/parallax/__init__.py, or add a changelog entry"


def test_every_release_in_the_changelog_has_a_date_or_is_in_preparation() -> None:
    for match in HEADING.finditer(CHANGELOG.read_text(encoding="utf-8")):
        if match["version"] != "Unreleased":
            assert match["date"] is not None, match[0]
            assert match["date"] == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", match["date"]), match[0]
