"""The name of an emulated device with its options, read: ``emulated:NAME?condition=FILE.json&float16=1``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._condition import STEADY, load_condition
from parallax.backends.emulated._profiles import load_profile, profile_names
from parallax.backends.emulated._queue import since_first_opened
from parallax.errors import ConfigError

_OPTIONS: Final = frozenset({"speed", "host_flops", "condition", "float16"})
_IN_NAME: Final = frozenset({"condition", "float16"})

_SWITCHES: Final[Mapping[str, bool]] = {"1": True, "true": True, "0": False, "false": False}


def open_emulated(device: str, options: Mapping[str, Any]) -> EmulatedBackend:
    """The backend ``emulated:device``: a profile's name, or the path of one.

    Options: ``speed``, a factor on the device's own speed, or "host" (the default, see `EmulatedBackend`);
    ``host_flops``, FLOP/s of this machine's processor, which is measured by default; ``condition``, a file that says
    how it becomes slower and quicker (see `load_condition`); ``float16``, 1 where it is to compute in half precision
    what a model has in float32, else 0. The last two may also stand in the name:
    ``emulated:NAME?condition=FILE.json&float16=1``.

    Raises: ConfigError for an unknown device or option, or a profile or condition that cannot be read.
    """
    device, _, query = device.partition("?")
    if query:
        options = {**options, **_read_query(query, options)}
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise ConfigError(
            f"emulated devices have no option {unknown[0]!r}",
            fix="there are speed, a factor or 'host', host_flops, condition, a file, and float16, 0 or 1",
        )
    if not device:
        raise ConfigError(
            "which device is to be emulated?",
            fix=f"write emulated:NAME with one of {', '.join(profile_names())}, or emulated:FILE.json",
        )
    given = options.get("speed", "host")
    speed = None if given == "host" else _number("speed", given, fix="give a factor, or 'host'")
    flops = options.get("host_flops")
    host_flops = None if flops is None else _number("host_flops", flops, fix="give FLOP/s, such as 50e9")
    condition = options.get("condition")
    profile = load_profile(device)
    return EmulatedBackend(
        profile,
        speed=speed,
        host_flops=host_flops,
        condition=STEADY if condition is None else load_condition(condition),
        since=None if condition is None else since_first_opened(profile.name, condition),
        float16=_switch("float16", options.get("float16", False)),
    )


def _read_query(query: str, options: Mapping[str, Any]) -> dict[str, str]:
    """What stands after the "?" of a name. Raises: ConfigError for what may not, or stands elsewhere too."""
    found: dict[str, str] = {}
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key not in _IN_NAME or not value or key in options or key in found:
            raise ConfigError(
                f"{part!r} after the name of an emulated device",
                fix="write emulated:NAME?condition=FILE.json, emulated:NAME?float16=1, or both with & between, each "
                "once",
            )
        found[key] = value
    return found


def _number(option: str, given: Any, *, fix: str) -> float:
    try:
        return float(given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{option}={given!r}", fix=fix) from error


def _switch(option: str, given: Any) -> bool:
    found = _SWITCHES.get(str(given).lower())
    if found is None:
        raise ConfigError(f"{option}={given!r}", fix="give 1 or 0")
    return found
