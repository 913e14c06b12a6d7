"""A scatter plot of operators as SVG: work against share of zeros, with both thresholds. Written by hand: the picture
is a dozen lines and circles, and a library for it would be the largest dependency."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

_WIDTH, _HEIGHT = 720, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 160, 32, 48
_SIZE: Final = 11
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""After Okabe and Ito: told apart by colour-blind readers too."""


def draw_scatter(title: str, operators: Sequence[Mapping[str, Any]], *, min_flops: float, max_zeros: float) -> str:
    """An SVG document: one circle per operator with work, coloured by its type.

    Args:
        title: shown above.
        operators: with "operator" (the type), "node", "flops" and "zeros" (0 to 1).
        min_flops: threshold of work, drawn as a line.
        max_zeros: threshold of zeros, likewise.
    """
    shown = [row for row in operators if row["flops"] > 0]
    decades = max((math.ceil(math.log10(row["flops"])) for row in shown), default=1) or 1
    work: dict[str, int] = {}
    for row in shown:
        work[row["operator"]] = work.get(row["operator"], 0) + row["flops"]
    ranked = sorted(work, key=lambda kind: (-work[kind], kind))
    colour = {kind: _COLOURS[min(place, len(_COLOURS) - 1)] for place, kind in enumerate(ranked)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="{_SIZE}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, _TOP - 12, title),
        *_axes(decades),
        _line(_x(0), _y(min_flops, decades), _x(1), _y(min_flops, decades)),
        _line(_x(max_zeros), _y(1, decades), _x(max_zeros), _y(10.0**decades, decades)),
    ]
    for row in shown:
        label = f"{row['node']} ({row['operator']}): {row['flops']:.3g} FLOPs, {row['zeros']:.1%} zeros"
        parts.append(
            f'<circle cx="{_x(row["zeros"]):.1f}" cy="{_y(row["flops"], decades):.1f}" r="4" '
            f'fill="{colour[row["operator"]]}" fill-opacity="0.6"><title>{_escaped(label)}</title></circle>'
        )
    for place, kind in enumerate(ranked[: len(_COLOURS)]):
        name = kind if place < len(_COLOURS) - 1 or len(ranked) == len(_COLOURS) else "others"
        y = _TOP + 16 * place
        parts.append(f'<circle cx="{_WIDTH - _RIGHT + 16}" cy="{y - 4}" r="4" fill="{colour[kind]}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 26, y, name))
    return "\n".join([*parts, "</svg>", ""])


def _axes(decades: int) -> list[str]:
    parts = []
    for tenth in range(0, 11, 2):
        parts.append(_text(_x(tenth / 10), _HEIGHT - _BOTTOM + 16, f"{tenth * 10}%", anchor="middle"))
    for decade in range(decades + 1):
        y = _y(10.0**decade, decades)
        parts.append(_line(_x(0), y, _x(1), y, colour="#dddddd", dashes="none"))
        parts.append(_text(_LEFT - 6, y + 4, f"1e{decade}", anchor="end"))
    middle = (_x(0) + _x(1)) / 2
    parts.append(_text(middle, _HEIGHT - 12, "multiplications with a zero (others: elements read)", anchor="middle"))
    parts.append(_text(8, _TOP - 12, "FLOPs"))
    return parts


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(flops: float, decades: int) -> float:
    share = min(max(math.log10(max(flops, 1)) / decades, 0), 1)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _line(x: float, y: float, to_x: float, to_y: float, *, colour: str = "#666666", dashes: str = "4 3") -> str:
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """As XML has it, which knows no control characters at all; names of nodes may hold some."""
    return html.escape("".join(letter if letter.isprintable() else "?" for letter in text))
