"""Figures for people: durations, sizes and counts, three significant digits."""

from __future__ import annotations


def milliseconds(ns: float) -> str:
    """A duration in ms: ``0.0123``, ``1.23``, ``123``."""
    return significant(ns / 1e6)


def significant(value: float) -> str:
    """``value`` with three significant digits, never in exponent form."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}".rstrip("0").rstrip(".")


def count(value: float) -> str:
    """A count with a decimal suffix: ``950``, ``1.20 k``, ``8.74 G``."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {suffix}"
    return f"{value:g}"


def size(bytes_: float) -> str:
    """A size with a binary suffix: ``12 B``, ``1.50 KiB``."""
    for factor, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(bytes_) >= factor:
            return f"{significant(bytes_ / factor)} {suffix}"
    return f"{bytes_:.0f} B"
