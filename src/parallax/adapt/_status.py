"""What a session that follows the machine knows and did, as a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from parallax.adapt._controller import Switch
from parallax.adapt._state import HardwareState

_LATEST: Final = 5
"""Switches that are shown to people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPlan:
    """A plan that could run at once."""

    label: str
    """How it was found."""
    summary: str
    """What runs where, in a line."""
    predicted_ms: float
    """What a run takes by it in the machine's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """What a session that follows the machine knows and did; see ``InferenceSession.adaptation``."""

    state: HardwareState
    """How slow each processor is, against what was predicted."""
    plans: tuple[KeptPlan, ...]
    """Those that are ready, the one that the session was opened with first; none before that one is priced."""
    current: int
    """Index of the one in force."""
    switches: tuple[Switch, ...]
    """The latest, oldest first."""
    runs: int
    """That were watched."""
    left_out: tuple[str, ...] = ()
    """Plans that are not kept ready, and why."""
    is_complete: bool = False
    """Whether all plans that are to be kept ready are so; until then more may come."""
    ended: str | None = None
    """Why the session does not follow the machine any more; None while it does."""

    def __str__(self) -> str:
        slow = [
            f"{name} takes {factor:.2f} times as long as predicted"
            for name, factor in sorted(self.state.slowdowns.items())
        ]
        lines = [f"state: {', '.join(slow) or 'nothing is known yet'} ({self.runs} runs watched)"]
        for index, plan in enumerate(self.plans):
            mark = "*" if index == self.current else " "
            lines.append(f"{mark} {plan.label}: {plan.predicted_ms:.2f} ms predicted ({plan.summary})")
        lines += [f"  not kept ready: {reason}" for reason in self.left_out]
        if not self.is_complete and self.ended is None:
            lines.append("  more plans are being made")
        lines += [f"switched to {switch.after}: {switch.reason}" for switch in self.switches[-_LATEST:]]
        if self.ended is not None:
            lines.append(f"the machine is followed no more: {self.ended}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as names, numbers, texts and lists; times in the units that the names say."""
        return {
            "slowdowns": dict(self.state.slowdowns),
            "plans": [
                {"label": plan.label, "summary": plan.summary, "predicted_ms": plan.predicted_ms} for plan in self.plans
            ],
            "current": self.current,
            "switches": [
                {
                    "at_s": switch.at_s,
                    "before": switch.before,
                    "after": switch.after,
                    "before_ms": switch.before_ns / 1e6,
                    "after_ms": switch.after_ns / 1e6,
                    "measured_ms": None if switch.measured_ns is None else [ns / 1e6 for ns in switch.measured_ns],
                    "slowdowns": dict(switch.state.slowdowns),
                    "reason": switch.reason,
                }
                for switch in self.switches
            ],
            "runs": self.runs,
            "left_out": list(self.left_out),
            "is_complete": self.is_complete,
            "ended": self.ended,
        }
