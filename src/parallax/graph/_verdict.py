"""Why a node runs where it runs: one enumeration for backends, for planning and for who explains it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """What becomes of a node, and why.

    Backends answer with those that are a refusal of theirs (`is_refusal`); the others are decided when a plan is made.
    """

    TAKEN = "taken", "runs on the device"
    FOLDED = "constant", "a constant: computed once, when the model is loaded"
    UNSUPPORTED_OPERATOR = (
        "unsupported operator",
        "the device has no such operator",
        "replace the operator by ones the device has",
    )
    UNSUPPORTED_TYPE = (
        "unsupported type",
        "the device does not compute in this element type",
        "compute in an element type the device has",
    )
    LOWER_PRECISION = (
        "lower precision",
        "the device would compute with less precision than the model asks for",
        "allow lower precision",
    )
    DYNAMIC_SHAPE = (
        "dynamic shape",
        "the device needs shapes that are known when the model is loaded",
        "fix the shapes (shapes=)",
    )
    CONTROL_FLOW = (
        "control flow",
        "holds bodies, which are graphs of their own",
        "unroll the loop or choose the branch before export",
    )
    UNSUPPORTED_FORM = (  # rank, attributes, operands; and reasons of the backend's own
        "unsupported form",
        "the device has this operator, but does not take it in this form",
        "rewrite the operator in the form the device takes",
    )
    OUT_OF_MEMORY = (  # detail: what is allowed
        "out of memory",
        "the device's memory has no room for it",
        "allow the device more memory (memory_budget)",
    )
    FUSED_WITH_UNSUPPORTED = "fused with declined", "cannot be separated from a node that the device declines"
    GAINS_NOTHING = (
        "too small to pay",
        "too small to pay: the device would take longer, launch and transfers included",
    )
    CHEAPER_ON_CPU = "cheaper on the CPU", "left out of a region beside it, which is faster without it"
    TOO_FEW_NODES = "too few nodes", "its fragment has too few nodes"  # N, least allowed
    TOO_LITTLE_WORK = "too little work", "its fragment has too little work"  # MACs, least allowed
    BALANCED_TO_CPU = "left to the CPU", "left to the CPU, which has time for it beside the device"
    TOO_MUCH_TRAFFIC = (  # bytes per MAC, most allowed
        "too much traffic",
        "its fragment moves too many bytes for its work",
    )

    def __init__(self, label: str, meaning: str, remedy: str = "") -> None:
        self.label = label
        """For tables."""
        self.meaning = meaning
        """For sentences."""
        self.remedy = remedy
        """What to change so that the device takes the node; only refusals have one."""

    @property
    def is_refusal(self) -> bool:
        """Whether the device itself does not take the node, whatever it costs."""
        return self.remedy != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A device's answer for a node that it does not take."""

    verdict: Verdict
    """One that `Verdict.is_refusal`."""
    detail: str
    """What exactly, for people: the type, tensor or attribute at fault."""
