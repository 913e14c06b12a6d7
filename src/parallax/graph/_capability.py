"""Which nodes of a graph a backend takes, and why it leaves the others."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Refusal(enum.Enum):
    """Why a backend leaves a node to others."""

    OPERATOR = "operator"
    """It has no kernel for the operator."""
    DTYPE = "dtype"
    """It has one, but not for these element types."""
    PRECISION = "precision"
    """It would compute with less precision than the model asks for."""
    DYNAMIC_SHAPE = "dynamic shape"
    """It needs shapes that are known when the model is loaded."""
    FORM = "form"
    """It has the operator, but not with this rank, these attributes, or an operand that is not constant."""
    CONTROL_FLOW = "control flow"
    """The node holds bodies, which are planned as graphs of their own."""
    OTHER = "other"
    """Its own reasons: an attribute, a dynamic shape, or that it holds the node cheaper on the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedNode:
    """A node that a backend does not take."""

    node: int
    """Index into ``OpGraph.nodes``."""
    reason: Refusal
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A backend's answer for a whole graph. Each node is in exactly one of ``taken`` and ``refused``."""

    backend: str
    taken: tuple[int, ...]
    """Ascending."""
    refused: tuple[RefusedNode, ...]
    """Ascending in node."""
