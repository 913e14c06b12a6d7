"""What came of random models, in a form that processes can hand to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class Kind(StrEnum):
    """The kinds of fault."""

    WRONG = "wrong answer"
    """Other values, or other declared inputs and outputs, than ONNX Runtime's."""
    FOREIGN = "foreign exception"
    """An exception that is neither Parallax's nor ONNX Runtime's."""
    REFUSED = "refusal"
    """An error of Parallax's or ONNX Runtime's for a model that ONNX Runtime runs."""
    DIED = "crash or hang"
    """The process ended or had to be ended, and ONNX Runtime alone does not do that with this model."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault."""

    seed: int
    mode: str
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.mode}: {self.kind}: {self.text}"


@dataclass
class Counts:
    """What came of some models."""

    models: int = 0
    """That were tried to the end, invalid ones included."""
    invalid: list[int] = field(default_factory=list)
    """Seeds whose model ONNX Runtime refuses: the generator's fault."""
    excluded: list[int] = field(default_factory=list)
    """Seeds with whose model ONNX Runtime, alone in a process, crashes or hangs."""
    opened: Counter[str] = field(default_factory=Counter)
    """By mode, sessions."""
    runs: Counter[str] = field(default_factory=Counter)
    """By mode, runs whose outputs were compared."""
    split: Counter[str] = field(default_factory=Counter)
    """By mode, sessions of more than one segment."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def valid(self) -> int:
        return self.models - len(self.invalid)

    def of(self, kind: Kind) -> int:
        """How many faults there are of a kind."""
        return sum(fault.kind is kind for fault in self.faults)

    def add(self, other: Counts) -> None:
        """Take in what came of other models."""
        self.models += other.models
        self.invalid += other.invalid
        self.excluded += other.excluded
        self.opened += other.opened
        self.runs += other.runs
        self.split += other.split
        self.faults += other.faults

    def to_json(self) -> dict[str, Any]:
        return {
            "models": self.models,
            "invalid": self.invalid,
            "excluded": self.excluded,
            "opened": dict(self.opened),
            "runs": dict(self.runs),
            "split": dict(self.split),
            "faults": [
                {"seed": fault.seed, "mode": fault.mode, "kind": str(fault.kind), "text": fault.text}
                for fault in self.faults
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(
            models=document["models"],
            invalid=list(document["invalid"]),
            excluded=list(document["excluded"]),
            opened=Counter(document["opened"]),
            runs=Counter(document["runs"]),
            split=Counter(document["split"]),
            faults=[Fault(**fault | {"kind": Kind(fault["kind"])}) for fault in document["faults"]],
        )

    def summary(self) -> str:
        """One line for a report."""
        kinds = ", ".join(f"{self.of(kind)} of {kind}" for kind in Kind)
        return (
            f"{self.models} models, {self.valid} of them valid; {sum(self.runs.values())} runs of "
            f"{sum(self.opened.values())} sessions compared, {sum(self.split.values())} sessions in several segments; "
            f"faults: {kinds}; ONNX Runtime itself dies of seeds: {self.excluded or 'none'}"
        )
