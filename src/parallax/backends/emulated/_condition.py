"""The condition of an emulated device: how it becomes slower and quicker while time passes.

A planner is not told. Prices stay those of the profile, and only what runs take changes: what follows the state of the
machine must notice by itself. A condition is a JSON file::

    {"format": 1, "steps": [{"at_s": 0, "device": 1, "launch": 1}, {"at_s": 10, "device": 4, "launch": 1}]}
"""

from __future__ import annotations

import bisect
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.backends.emulated._figures import read_fields
from parallax.errors import ConfigError

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionStep:
    """From a moment on, until the next step."""

    at_s: float
    """Seconds since the device was opened in this condition, by whoever was first of those who have it open."""
    device: float = 1.0
    """How many times as long as by the profile computing takes, dispatch included."""
    launch: float = 1.0
    """The same for the launch of a region. Transfers take what they did: their time is that of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Steps by their time; before the first, all is as the profile says."""

    steps: tuple[ConditionStep, ...] = ()

    def __post_init__(self) -> None:
        times = [step.at_s for step in self.steps]
        if any(low >= high for low, high in itertools.pairwise(times)):
            raise ConfigError("the steps of a condition are not in the order of their times", fix="sort them by at_s")

    def at(self, seconds: float) -> ConditionStep:
        """The step in force so long after the device was opened."""
        number = bisect.bisect_right(self.steps, seconds, key=lambda step: step.at_s)
        return self.steps[number - 1] if number else AS_PROFILED


AS_PROFILED: Final = ConditionStep(at_s=0.0)

STEADY: Final = Condition()
"""All is as the profile says, at any time."""


def load_condition(source: str | os.PathLike[str]) -> Condition:
    """Read a file. Raises: ConfigError naming the file, the field at fault and what is expected there."""
    fields = read_fields(Path(source), "device's condition")
    fields.require_format(FORMAT_VERSION)
    steps = []
    for item in fields.items("steps"):
        step = ConditionStep(
            at_s=item.number("at_s", positive=False), device=item.number("device"), launch=item.number("launch")
        )
        item.finish()
        steps.append(step)
    fields.finish()
    return Condition(steps=tuple(steps))
