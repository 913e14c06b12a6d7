"""Placers by name: those that come with Parallax, and those that other distributions register."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from parallax.errors import ConfigError
from parallax.schedule import Plan
from parallax.schedule.placement import PLACERS, Placer

ENTRY_POINTS: Final = "parallax.placers"
"""The entry point group in which other distributions register placers: something to call without arguments that makes
one, such as its class."""

LEARNED: Final = "learned"
"""The placer that runs a network: it needs a runtime and a file, which the pure ones do not."""

EXACT: Final = "exact"
"""The placer that asks a solver, in a process of its own."""

POLICIES: Final = ("adaptive", "sequential", Plan.SPAROA_POLICY)
"""Policies that are no placers: the first is several of them, one after the other, the second none."""


def placer_names() -> tuple[str, ...]:
    """Names that `open_placer` knows here: ours, and those of other distributions."""
    from importlib.metadata import entry_points

    others = sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))
    return tuple(dict.fromkeys((*PLACERS, LEARNED, EXACT, *others)))


def open_placer(policy: Any) -> Placer | None:
    """The placer that ``policy=`` names, or is; None for those of `POLICIES`, which are no placers.

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
    if name in PLACERS or name in (LEARNED, EXACT):
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
            fix="fix or uninstall that distribution, or choose another policy",
        ) from error
    return _checked(made, f"the placer {policy!r}")


def policy_name(policy: Any) -> str:
    """How a policy is told to people, and kept in keys: its name with those settings that are not the defaults.

    `open_placer` makes a placer of ours again from it. Of others it is the name of their class. A network is named with
    the digest of its file, so that a plan is not taken for that of another network in the same place.

    Raises: ConfigError if it names a network that cannot be read.
    """
    if isinstance(policy, str):
        if policy.partition(",")[0] != LEARNED:
            return "adaptive" if policy == Plan.SPAROA_POLICY else policy
        policy = open_placer(policy)
    for name, maker in _makers(policy).items():
        if maker is type(policy) and dataclasses.is_dataclass(policy):
            stated = [(field.name, getattr(policy, field.name), field.default) for field in dataclasses.fields(policy)]
            return ",".join([name, *(f"{key}={_shown(value)}" for key, value, default in stated if value != default)])
    return f"{type(policy).__module__}.{type(policy).__qualname__}"


def _maker(name: str) -> Callable[..., Placer]:
    if name == LEARNED:
        from parallax.planner._learned import Learned

        return Learned
    if name == EXACT:
        from parallax.planner._exact import Exact

        return Exact
    return PLACERS[name]


def _makers(policy: Any) -> Mapping[str, Callable[..., Placer]]:
    """Ours, by name; those with modules of their own only where the policy is of theirs, which is not loaded else."""
    module = type(policy).__module__.rpartition(".")[2]
    name = {"_learned": LEARNED, "_exact": EXACT}.get(module)
    return PLACERS if name is None else {name: _maker(name)}


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _made(name: str, given: list[str]) -> Placer:
    """One of ours with these settings, each "KEY=VALUE"."""
    maker = _maker(name)
    parameters = inspect.signature(maker).parameters
    known = tuple(parameters)
    settings: dict[str, int | float | bool | str | None] = {}
    for entry in given:
        key, found, text = entry.partition("=")
        key = key.strip()
        if not found or key not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{entry!r:.80} is no setting of the policy {name!r}", fix=f"write KEY=VALUE; {listed}")
        is_text = str(parameters[key].annotation).startswith("str")
        settings[key] = text.strip() if is_text else _value(key, text.strip(), name)
    lacking = [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in settings
    ]
    if lacking:
        raise ConfigError(
            f"the policy {name!r} needs {' and '.join(lacking)}",
            fix=f'write it after the name, as in policy="{name},{lacking[0]}=..."',
        )
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
