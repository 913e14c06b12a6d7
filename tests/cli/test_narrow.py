"""Tables on a narrow screen: no line is wider than it, no number is broken, and what is left out is named."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import parallax
from parallax.cli import app
from parallax.cli._console import make_table, print_table
from tests.cli._models import affine, branching, choosing

NARROW = 60


def shown(*arguments: object, columns: int = NARROW) -> str:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert result.exit_code in (0, 3), result.output
    return result.stdout


def tables(text: str) -> list[str]:
    """Lines in columns: with two blanks or more between words. (Sentences are lines of any length, which terminals
    wrap.)"""
    return [line for line in text.splitlines() if re.search(r"\S {2,}\S", line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("narrow")
    branching(path / "m.onnx")
    affine(path / "small.onnx")
    choosing(path / "choosing.onnx")
    parallax.compile(path / "m.onnx", path / "m.plx", min_gain=0, threads=2, shapes={"x": (4, 8)})
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "{folder}/m.onnx", "--shape", "x=16,8"),
        ("inspect", "{folder}/choosing.onnx"),
        ("inspect", "{folder}/choosing.onnx", "--provider", "emulated:pixel-6-gpu"),
        ("inspect", "zoo:mobilenetv3-s", "--provider", "emulated:pixel-6-gpu", "--policy", "adaptive"),
        ("inspect", "{folder}/m.plx", "--threads", 2),
        ("run", "{folder}/m.onnx", "--shape", "x=4,8"),
        ("bench", "{folder}/small.onnx", "-n", 1, "-t", 2, "--no-tune", "--max-time", 20, "-i", "x=2"),
        ("bench", "{folder}/small.onnx", "--callers", 2, "--duration", 0.1, "-t", 2, "--no-tune", "-i", "x=2"),
        ("tune", "{folder}/m.onnx", "--shape", "x=4,8", "-t", 2),
        ("compile", "{folder}/m.onnx", "-o", "{folder}/made.plx", "--min-gain", 0, "--shape", "x=4,8", "-t", 2),
        ("bundle", "info", "{folder}/m.plx"),
        ("zoo", "list"),
        ("devices",),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_tables_fit_sixty_columns(words: tuple[object, ...], folder: Path) -> None:
    text = shown(*(str(word).format(folder=folder) for word in words))
    found = tables(text)
    assert found
    assert [line for line in found if len(line.rstrip()) > NARROW] == []


def test_a_wide_screen_leaves_nothing_out(folder: Path) -> None:
    assert "no room for" not in shown("zoo", "list", columns=200)
    assert "(no room for: inputs" in shown("zoo", "list")


def test_columns_go_in_the_order_that_is_given_and_numbers_stay_whole() -> None:
    table = make_table("name", "one", "two", "three")
    for row in range(3):
        table.add_row(f"row {row} with a long name that may wrap", *("123456789",) * 3)
    for width, kept in ((80, ["one", "two", "three"]), (60, ["one", "three"]), (30, ["three"])):
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        print_table(console, table, optional=("two", "one"))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        head = text.splitlines()[0].split()
        assert [name for name in head if name != "name"] == kept
        assert text.count("123456789") == 3 * len(kept)
        assert all(len(line.rstrip()) <= width for line in text.splitlines() if not line.startswith("(no room for"))
