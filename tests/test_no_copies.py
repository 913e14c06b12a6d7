"""No ten lines of source stand in two places, names and numbers aside."""

from __future__ import annotations

import ast
import keyword
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import parallax

SOURCE = Path(parallax.__file__).parent
WINDOW = 10
LEAST_FORMS = 4
"""Ten lines of fewer forms than these are a list (of accessors, or of entries of a table), which is no copy."""

_TOKEN = re.compile(
    r"""(?P<text>[rbfu]*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"))|(?P<comment>\#.*)|(?P<name>[^\W\d]\w*)|(?P<number>\d[\w.]*)|\s+""",
    re.IGNORECASE,
)


def form_of(line: str) -> str:
    """The line with each name and number replaced by a placeholder, without blanks and comments."""

    def replaced(token: re.Match[str]) -> str:
        if token["text"]:
            return token["text"]
        if token["name"]:
            return f" {token['name']} " if keyword.iskeyword(token["name"]) else "N"
        return "0" if token["number"] else ""

    return _TOKEN.sub(replaced, line)


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements(getattr(statement, field, ()))


def declaring_lines(tree: ast.Module) -> set[int]:
    """Lines that compute nothing: imports, docstrings, fields, public names, parameters one below the other."""
    lines: set[int] = set()
    for statement in statements(tree.body):
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.AnnAssign(value=None) | ast.Expr(value=ast.Constant()):
                lines.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
            case ast.FunctionDef() | ast.AsyncFunctionDef() if statement.body[0].lineno > statement.lineno:
                lines.update(range(statement.lineno + 1, statement.body[0].lineno))
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                lines.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return lines


def code_lines(text: str) -> list[tuple[int, str]]:
    """The number and the form of each line that computes something."""
    apart = declaring_lines(ast.parse(text))
    forms = ((number, form_of(line)) for number, line in enumerate(text.splitlines(), 1) if number not in apart)
    return [(number, form) for number, form in forms if form]


def copies(texts: dict[str, str]) -> list[str]:
    """Where ten lines stand that stand elsewhere too, one entry per pair of places."""
    places: defaultdict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, text in texts.items():
        lines = code_lines(text)
        for start in range(len(lines) - WINDOW + 1):
            window = tuple(form for _, form in lines[start : start + WINDOW])
            places[window].append((name, lines[start][0]))
    return [
        " = ".join(f"{name}:{line}" for name, line in found)
        for window, found in places.items()
        if len(found) > 1 and len(set(window)) >= LEAST_FORMS
    ]


def test_a_copy_with_other_names_and_numbers_is_found() -> None:
    lines = ["total = 0", "for item in items:", "    total += item", "if total > 10:", "    total = 10", "del items"]
    block = [*lines, "while total:", "    total -= 1", "print('done', total)", "assert total == 0"]
    other = [line.replace("total", "rest").replace("10", "2_000") for line in block]
    function = ["def f(", "    items,", "):", '    """Text."""', *(f"    {line}  # why" for line in other)]
    assert copies({"one": "\n".join(["import a", "", *block]), "two": "\n".join(function)}) == ["one:3 = two:5"]
    assert copies({"one": "\n".join(block), "two": "\n".join(other).replace("'done'", "'gone'")}) == []
    assert copies({"one": "\n".join(block), "two": "\n".join(other[1:])}) == []


def test_no_ten_lines_stand_in_two_places() -> None:
    paths = sorted(SOURCE.rglob("*.py"))
    assert copies({str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in paths}) == []
