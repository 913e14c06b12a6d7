"""Placers by name: those that come with Parallax, and those that other distributions register."""

from __future__ import annotations

from typing import Any, Final

from parallax.errors import ConfigError
from parallax.schedule.placement import PLACERS, Placer

ENTRY_POINTS: Final = "parallax.placers"
"""The entry point group in which other distributions register placers: something to call without arguments that makes
one, such as its class."""

POLICIES: Final = ("adaptive", "sequential")
"""Policies that are no placers: the first is several of them, one after the other, the second none."""


def placer_names() -> tuple[str, ...]:
    """Names that `open_placer` knows here: ours, and those of other distributions."""
    from importlib.metadata import entry_points

    others = sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))
    return tuple(dict.fromkeys((*PLACERS, *others)))


def open_placer(policy: Any) -> Placer | None:
    """The placer that ``policy=`` names, or is; None for "adaptive" and "sequential", which are no placers.

    Ours come first: an installed distribution must not change what "heft" means.

    Raises: ConfigError if there is none of that name, or it cannot be loaded, or it proposes nothing.
    """
    if not isinstance(policy, str):
        return _checked(policy, f"policy={policy!r:.80}")
    if policy in POLICIES:
        return None
    if policy in PLACERS:
        return PLACERS[policy]()
    from importlib.metadata import entry_points

    entry = next(iter(entry_points(group=ENTRY_POINTS, name=policy)), None)
    if entry is None:
        known = ", ".join(f'"{name}"' for name in (*POLICIES, *placer_names()))
        raise ConfigError(
            f"unknown policy {policy!r:.80}", fix=f"choose one of {known}, or give an object that has propose(problem)"
        )
    try:
        made = entry.load()()
    except Exception as error:
        raise ConfigError(
            f"the placer {policy!r} cannot be loaded: {error!r:.200}",
            where=f"entry point {entry.name} = {entry.value}" + (f" of {entry.dist.name}" if entry.dist else ""),
            fix="mend or uninstall that distribution, or choose another policy",
        ) from error
    return _checked(made, f"the placer {policy!r}")


def policy_name(policy: Any) -> str:
    """How a policy is told to people, and kept in keys: its name, or that of its class."""
    return policy if isinstance(policy, str) else f"{type(policy).__module__}.{type(policy).__qualname__}"


def _checked(placer: Any, what: str) -> Placer:
    if isinstance(placer, type) or not callable(getattr(placer, "propose", None)):
        raise ConfigError(
            f"{what} is no placer",
            fix="give an object (not its class) that has propose(problem), see parallax.schedule.placement.Placer",
        )
    found: Placer = placer
    return found
