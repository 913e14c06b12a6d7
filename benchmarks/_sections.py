"""Reports of several tables in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import dump_figures, figure_lines, markdown_table, say
from _figures import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table, with what was measured and what to make of it."""

    title: str
    method: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Mapping[str, Any]
    figures: Sequence[Figure] = field(default=())
    remarks: Sequence[str] = field(default=())

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.method, "", *markdown_table(self.columns, self.rows), ""]
        lines += [f"* {remark}" for remark in self.remarks]
        return "\n".join(lines).rstrip() + "\n"


def publish_sections(
    title: str, sections: Mapping[str, Section], output: Path, machine: Mapping[str, Any], *, json_copy: Path | None
) -> None:
    """Print the tables; write ``output`` (Markdown) and its JSON beside it, and a copy of that to ``json_copy``."""
    facts = "\n".join(f"* {key.replace('_', ' ')}: {value}" for key, value in machine.items())
    figures = [figure for section in sections.values() for figure in section.figures]
    text = "\n".join([f"# {title}", "", *figure_lines(figures, machine), ""])
    text += "\n".join(section.markdown() for section in sections.values())
    text += f"\n## Machine\n\n{facts}\n"
    document: dict[str, Any] = {"title": title, "machine": dict(machine), "figures": dump_figures(figures, machine)}
    document |= {name: dict(section.data) for name, section in sections.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    for path in (output.with_suffix(".json"), json_copy):
        if path is not None:
            path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(text)
    say(f"wrote {output} and {output.with_suffix('.json').name}")
