"""What a caller's choices mean for planning: whether the model is kept whole, split anyway, or left to the policy."""

from __future__ import annotations

from typing import Protocol

from parallax.schedule import PAPER_POLICY, Plan


class PlanChoices(Protocol):
    """The part of a session's options, and of a `PlanRequest`, that says whether to split. See ``parallax.Options``."""

    @property
    def policy(self) -> object:
        """Names the way in which work is placed, or is a placer."""
        ...

    @property
    def split(self) -> str:
        """Is "auto", "never" or "always"."""
        ...

    @property
    def min_gain(self) -> float | None:
        """The part of the latency that a split must be predicted to save; None: the default policy's."""
        ...

    @property
    def tune(self) -> bool:
        """Whether plans are measured."""
        ...

    @property
    def objective(self) -> str:
        """Is one of `Plan.ENERGY_OBJECTIVES`, or leaves the choice of plans to time."""
        ...


def is_split_forced(choices: PlanChoices) -> bool:
    """Whether the model is split wherever it can be, whether it gains or not."""
    return choices.split == "always" or choices.min_gain == 0


def is_kept_whole(choices: PlanChoices) -> bool:
    """Whether a model that runs on the CPU alone is not to be split."""
    return choices.split == "never" or choices.policy == "sequential"


def is_unasked(choices: PlanChoices) -> bool:
    """Whether it is left to the default policy to split the model: nothing was said of gains or measuring."""
    return (
        not is_kept_whole(choices)
        and not is_split_forced(choices)
        and not is_yardstick(choices.policy)
        and choices.min_gain is None
        and not choices.tune
        and choices.objective not in Plan.ENERGY_OBJECTIVES
    )


def is_yardstick(policy: object) -> bool:
    """Whether a policy is one whose plan runs whatever it gains, so that others can be compared with it."""
    if isinstance(policy, str):
        return policy.partition(",")[0] == PAPER_POLICY
    return bool(getattr(policy, "is_yardstick", False))
