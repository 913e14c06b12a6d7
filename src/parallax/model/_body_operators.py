"""Which operators have graphs for attributes."""

from __future__ import annotations

import functools

BODY_OPERATORS = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""Operators of the ONNX domain with graphs for attributes."""

_BODILESS_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml"))


@functools.lru_cache(maxsize=1024)
def may_have_bodies(op_type: str, domain: str) -> bool:
    """Whether a node's attributes are worth searching for graphs, which takes a microsecond for each of them."""
    return op_type in BODY_OPERATORS or domain not in _BODILESS_DOMAINS
