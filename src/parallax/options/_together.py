"""Options that exclude each other: what both ask for cannot be had, and none is to be passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from parallax.errors import ConfigError
from parallax.schedule import PAPER_POLICY


class PlannedAs(Protocol):
    """The part of `parallax.Options` that says how a model is planned."""

    @property
    def policy(self) -> Any:
        """Names the way in which work is placed, or is a placer."""
        ...

    @property
    def split(self) -> str:
        """Is "auto", "never" or "always"."""
        ...

    @property
    def min_gain(self) -> float | None:
        """The part of the latency that a split must be predicted to save, or None."""
        ...

    @property
    def tune(self) -> bool:
        """Whether plans are measured."""
        ...


def check_together(options: PlannedAs) -> None:
    """Raises: ConfigError if two options exclude each other."""
    is_placer = False
    if options.policy not in ("adaptive", "sequential"):
        from parallax.planner import is_yardstick, open_placer  # few sessions name another

        if is_yardstick(options.policy):
            _check_yardstick(options)
            return
        is_placer = open_placer(options.policy) is not None
    is_forced = options.split == "always" or options.min_gain == 0
    if options.split == "auto" and not is_forced:
        return
    asked = "min_gain=0" if options.split == "auto" else f'split="{options.split}"'
    _refuse(
        asked,
        {
            "tune=True": options.tune,
            f"min_gain={options.min_gain}": options.split != "auto"
            and options.min_gain is not None
            and (options.split == "never" or options.min_gain > 0),
            f"policy={_shown(options.policy)}": is_placer or (is_forced and options.policy == "sequential"),
        },
        fix=f"leave one of them out: {{other}} says something else about splitting than {asked}",
    )


def _check_yardstick(options: PlannedAs) -> None:
    """Raises: ConfigError where something else is said of planning: a yardstick runs as it is."""
    _refuse(
        f'policy="{PAPER_POLICY}"',
        {
            "tune=True": options.tune,
            f"min_gain={options.min_gain}": options.min_gain is not None,
            f'split="{options.split}"': options.split != "auto",
        },
        fix="leave one of them out: this policy is a yardstick, whose plan is run whatever it gains",
    )


def _refuse(asked: str, others: Mapping[str, bool], *, fix: str) -> None:
    """Raises: ConfigError for the first of the others that is given. ``fix``: with a place for its name."""
    for other, is_given in others.items():
        if is_given:
            raise ConfigError(f"{asked} and {other} exclude each other", fix=fix.format(other=other))


def _shown(policy: Any) -> str:
    return f'"{policy}"' if isinstance(policy, str) else type(policy).__name__
