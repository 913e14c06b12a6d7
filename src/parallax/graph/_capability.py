"""Which nodes of a graph a backend takes, and why it leaves the others."""

from __future__ import annotations

from dataclasses import dataclass

from parallax.graph._verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedNode:
    """A node that a backend does not take."""

    node: int
    """Index into ``OpGraph.nodes``."""
    reason: Verdict
    """One that `Verdict.is_refusal`."""
    detail: str
    """What exactly, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A backend's answer for a whole graph. Each node is in exactly one of ``taken`` and ``refused``."""

    backend: str
    taken: tuple[int, ...]
    """Ascending."""
    refused: tuple[RefusedNode, ...]
    """Ascending in node."""
