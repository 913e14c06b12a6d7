"""A device whose speed a test sets while sessions run on it: an emulated one of a distribution that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallax.backends._registry import forget_backends
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._condition import Condition, ConditionStep
from parallax.backends.emulated._profiles import load_profile

STEERED = "steered"
"""The name to ask for."""

NAME = "emulated:pixel-6-gpu"
"""What plans call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand(Condition):
    """A condition that is what was set last."""

    now: list[float] = field(default_factory=lambda: [1.0])

    def at(self, seconds: float) -> ConditionStep:
        return ConditionStep(at_s=0.0, device=self.now[0])

    def set(self, device: float) -> None:
        """So many times as long as by the profile computing takes from now on."""
        self.now[0] = device


HAND = Hand()


def open_steered(device: str, options: Mapping[str, Any]) -> EmulatedBackend:
    """The factory that the entry point names. It is so fast that no load of this machine makes the CPU as fast."""
    return EmulatedBackend(load_profile("pixel-6-gpu"), speed=20.0, host_flops=250e9, condition=HAND)


@contextmanager
def installed(folder: Path) -> Iterator[Hand]:
    """The family ``steered`` is installed while the block runs."""
    distribution = folder / "steered_backends-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: steered-backends\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(f"[parallax.backends]\n{STEERED} = {__name__}:open_steered\n")
    sys.path.insert(0, str(folder))
    forget_backends()
    HAND.set(1.0)
    try:
        yield HAND
    finally:
        HAND.set(1.0)
        sys.path.remove(str(folder))
        forget_backends()
