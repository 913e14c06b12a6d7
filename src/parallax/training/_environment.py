"""Placing a model branch by branch, as a Gymnasium environment for agents that learn from rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import gymnasium
import numpy as np

from parallax.errors import ConfigError
from parallax.schedule.placement import OBSERVATION_SIZE, BranchFeatures, Episode
from parallax.training._arrays import Floats

REWARD_SCALE: Final = 10.0
"""What a reward is multiplied by, so that returns are of the order of ten."""

_LARGEST: Final = 10.0
"""Observations are clipped to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One problem to place, with what a proposer says of it."""

    features: BranchFeatures
    advice: tuple[float, ...] | None = None
    thresholds: tuple[float, float] | None = None

    def begin(self) -> Episode:
        """A new placement of it."""
        return Episode(self.features, self.advice, self.thresholds)


class PlacementEnvironment(gymnasium.Env[Floats, Floats]):  # type: ignore[misc]  # not installed where types are checked
    """One episode places one problem; one step decides on one branch.

    An observation is what `Episode.observe` sees. An action is one number from -1 to 1, snapped at 0: above, the device
    runs the branch. The reward is ``10 (H_t - H_t+1) / T_ref``, with H of `Episode.bound_ns` and T_ref the time of the
    better side alone; so rewards of an episode add up to what its makespan is above the first H, negative. Transfers
    are part of the makespan, and have no term of their own.

    Args:
        courses: to place, drawn evenly by the environment's generator.

    Raises: ConfigError if there is none in which anything can be decided.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, courses: Sequence[Course]) -> None:
        self._courses = [course for course in courses if any(course.features.movable)]
        if not self._courses:
            raise ConfigError(
                "no problem to place of which a device takes anything", fix="name other models or devices"
            )
        self.observation_space = gymnasium.spaces.Box(-_LARGEST, _LARGEST, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.episode = self._courses[0].begin()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin with another problem. ``options``: {"course": its number}, in place of a drawn one."""
        super().reset(seed=seed)
        number = (options or {}).get("course")
        if number is None:
            number = int(self.np_random.integers(len(self._courses)))
        self.episode = self._courses[number].begin()
        return self.episode.observe(), {"course": number}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Decide on a branch."""
        episode = self.episode
        raised_ns = episode.step(bool(action[0] > 0))
        reward = -REWARD_SCALE * raised_ns / episode.reference_ns
        if episode.is_done:
            nothing: Floats = np.zeros(OBSERVATION_SIZE, np.float32)
            return nothing, reward, True, False, {"makespan_ns": episode.bound_ns}
        return episode.observe(), reward, False, False, {}
