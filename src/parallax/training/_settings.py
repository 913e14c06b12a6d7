"""What is trained, with what and for how long; and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from parallax.errors import ConfigError
from parallax.training._judging import Judged
from parallax.training._problems import TrainingModel

CHECKPOINT_NAME: Final = "checkpoint.pt"
SETTINGS_NAME: Final = "settings.json"
_FORMAT: Final = 1

LEAST_STEPS: Final = 100

ProgressCallback = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """All that networks follow from, beside versions of libraries and the processor's arithmetic.

    Raises: ConfigError for fewer steps than `LEAST_STEPS`, a negative seed, or models without devices.
    """

    steps: int = 40_000
    """Steps of the scheduler in its environment; all other budgets are in proportion to it."""
    seed: int = 0
    models: tuple[TrainingModel, ...] = ()
    """Learned from, beside random ones."""
    devices: tuple[str, ...] = ()
    """Names of profiles, on which the models are placed."""
    judged_models: tuple[TrainingModel, ...] = ()
    """Judged by, not learned from."""
    judged_devices: tuple[str, ...] = ()
    ablations: bool = False
    """Whether schedulers are trained by rewards alone, too, to be compared with. Nothing else follows from it."""

    def __post_init__(self) -> None:
        if self.steps < LEAST_STEPS:
            raise ConfigError(f"{self.steps} steps of training", fix=f"give at least {LEAST_STEPS}")
        if self.seed < 0:
            raise ConfigError(f"a seed of {self.seed}", fix="give a whole number of at least 0")
        if bool(self.models) != bool(self.devices) or bool(self.judged_models) != bool(self.judged_devices):
            raise ConfigError("models without devices, or devices without models", fix="name both, or neither")

    @property
    def random_problems(self) -> int:
        """Random problems to learn from."""
        return min(6_000, max(24, self.steps // 20))

    @property
    def states_per_model(self) -> int:
        """States of the machine in which each model is placed on each device."""
        return min(12, max(1, self.steps // 8_000))

    @property
    def evaluations(self) -> int:
        """Placements that are predicted for each label."""
        return min(800, max(60, self.steps // 50))

    @property
    def imitation_steps(self) -> int:
        """Gradient steps of each network by examples, in all."""
        return max(30, self.steps // 6)

    @property
    def judged_states(self) -> int:
        """States in which networks are judged, per model and device."""
        return 1 if self.steps < 5_000 else 4

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types; models by their labels."""
        return {
            "format": _FORMAT,
            "steps": self.steps,
            "seed": self.seed,
            "models": [model.label for model in self.models],
            "devices": list(self.devices),
            "judged_models": [model.label for model in self.judged_models],
            "judged_devices": list(self.judged_devices),
            "ablations": self.ablations,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNetworks:
    """Files that training wrote, and what they are worth."""

    proposer: Path
    scheduler: Path
    compared: Mapping[str, Path]
    """Schedulers that were trained otherwise, by the names of their rows in `judged`."""
    digest: str
    """Of both, as `policy="learned,network=...,scheduler=..."` has it."""
    judged: tuple[Judged, ...]
    """On problems that they were not trained on, beside untrained networks and others; () where there were none."""
    history: tuple[Mapping[str, Any], ...]
    """What each part of training came to."""


def read_settings(folder: Path) -> Mapping[str, Any]:
    """The settings, as `TrainingSettings.to_json` has them, of a training that was begun in a folder.

    Raises: ConfigError if there was none, or its settings cannot be read.
    """
    path = folder / SETTINGS_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no training was begun in {str(folder)!r}: {error!s:.200}", fix="name the folder that --output named"
        ) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ConfigError(f"{str(path)!r} is of another version", fix="train anew in another folder")
    return found
