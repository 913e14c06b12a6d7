"""The pages in ``docs/`` name files and definitions that exist, link to pages that exist, and have short lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "parallax"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINE_LIMIT = 120

# `package/_module.py`, and where one is named after it, a definition: `package/_module.py`: `function`
MODULE = re.compile(r"`(?:src/parallax/)?((?:[a-z]+/)*_[a-z_]+\.py)`(?:: `(\w+)`)?")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, named)}


def _modules(page: Path) -> list[tuple[str, str]]:
    return [
        (found[1], found[2] or "") for found in MODULE.finditer(page.read_text(encoding="utf-8")) if "/" in found[1]
    ]


def test_there_are_pages_and_they_name_modules() -> None:
    assert len(PAGES) > 10
    assert sum(len(_modules(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_module_that_a_page_names_exists_and_defines_what_is_named(page: Path) -> None:
    for module, name in _modules(page):
        path = SOURCE / module
        assert path.is_file(), f"{page.name} names {module}"
        assert not name or name in _definitions(path), f"{page.name} names {name} in {module}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > LINE_LIMIT and not line.startswith("|")]
    assert not long, f"{page.name}: lines {long} have more than {LINE_LIMIT} characters"


def _questions() -> dict[str, list[tuple[str, str]]]:
    """What architecture.md answers under "Where is it?", with the modules and definitions of each answer."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## Where is it?\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| Wh")]
    answers = {row[0].strip(): [(found[1], found[2] or "") for found in MODULE.finditer(row[1])] for row in rows}
    assert len(answers) == len(rows), "a question stands there twice"
    return answers


def test_each_question_is_answered_with_files_and_definitions_in_them() -> None:
    for question, answers in _questions().items():
        assert answers, f"{question} has no file for an answer"
        for module, name in answers:
            assert name in _definitions(SOURCE / module), f"{question}: {module} does not define {name!r}"


@pytest.mark.parametrize(
    "question",
    [
        "Where is a region priced?",
        "Where is a plan built?",
        "Where does a segment start?",
        "Where does a budget refuse a model?",
    ],
)
def test_what_newcomers_look_for_first_lies_in_one_file_each(question: str) -> None:
    assert len(_questions()[question]) == 1
