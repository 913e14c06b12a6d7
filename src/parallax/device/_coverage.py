"""Why a device does not take a node: the kinds of refusal that every backend answers in."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RefusalKind(enum.Enum):
    """What it is about a node that a device refuses."""

    OPERATOR = "the device has no such operator"
    ELEMENT_TYPE = "the device does not compute in this element type"
    DYNAMIC_SHAPE = "the device needs shapes that are known when the model is loaded"
    FORM = "the device has this operator, but not in this form"
    """Rank, attributes, or an operand that would have to be constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A device's answer for a node that it does not take."""

    kind: RefusalKind
    detail: str
    """What exactly, for people: the type, tensor or attribute at fault."""
