"""Placers by name: those that come with Parallax, and those that other distributions register."""

from __future__ import annotations

import dataclasses
import inspect
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

    A name may be followed by settings, as in "greedy,partitions=3". Ours come first: an installed distribution must not
    change what "heft" means.

    Raises: ConfigError if there is none of that name, or it cannot be loaded, or it proposes nothing, or it has no such
        setting.
    """
    if not isinstance(policy, str):
        return _checked(policy, f"policy={policy!r:.80}")
    if policy in POLICIES:
        return None
    name, *given = policy.split(",")
    if name in PLACERS:
        return _made(name, given)
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
    """How a policy is told to people, and kept in keys: its name with those settings that are not the defaults.

    `open_placer` makes a placer of ours again from it. Of others it is the name of their class.
    """
    if isinstance(policy, str):
        return policy
    for name, maker in PLACERS.items():
        if maker is type(policy) and dataclasses.is_dataclass(policy):
            stated = [(field.name, getattr(policy, field.name), field.default) for field in dataclasses.fields(policy)]
            return ",".join([name, *(f"{key}={value!r}" for key, value, default in stated if value != default)])
    return f"{type(policy).__module__}.{type(policy).__qualname__}"


def _made(name: str, given: list[str]) -> Placer:
    """One of ours with these settings, each "KEY=VALUE"."""
    maker = PLACERS[name]
    known = tuple(inspect.signature(maker).parameters)
    settings = {}
    for entry in given:
        key, found, text = entry.partition("=")
        key = key.strip()
        if not found or key not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{entry!r:.80} is no setting of the policy {name!r}", fix=f"write KEY=VALUE; {listed}")
        settings[key] = _value(key, text.strip(), name)
    return maker(**settings)


def _value(key: str, text: str, name: str) -> int | float | bool | None:
    words = {"None": None, "True": True, "False": False, "true": True, "false": False}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ConfigError(f"{key}={text!r:.40} of the policy {name!r} is no number", fix="write a number, True or False")


def _checked(placer: Any, what: str) -> Placer:
    if isinstance(placer, type) or not callable(getattr(placer, "propose", None)):
        raise ConfigError(
            f"{what} is no placer",
            fix="give an object (not its class) that has propose(problem), see parallax.schedule.placement.Placer",
        )
    found: Placer = placer
    return found
