"""Devices on the command line: read from ``--provider``, and refused where they are not there to run anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallax.backends import has_provider, is_backend_name, missing_extra, open_backend
from parallax.errors import BackendError, ConfigError

_PROVIDER = "ExecutionProvider"


def parse_providers(texts: Sequence[str]) -> list[tuple[str, dict[str, str]]] | None:
    """Each device with its options, for ``providers=``; None where none is named. Raises: as `parse_provider`."""
    return [parse_provider(text) for text in texts] or None


def parse_provider(text: str) -> tuple[str, dict[str, str]]:
    """A device with its options: "NAME" or "NAME,KEY=VALUE,...".

    What is not there is refused. (A session goes on without a provider that ONNX Runtime lacks, and warns of it, as
    ONNX Runtime does: its caller wants an answer. Whoever names one on a command line wants that device.)

    Raises:
        ConfigError: for an option without a value, and for a name that is none here; it says what to install.
        MissingExtraError: for a device whose package is not installed.
    """
    name, *given = text.split(",")
    name = name.strip()
    check_provider(name)
    options = {}
    for entry in given:
        key, found, value = entry.partition("=")
        if not (found and key.strip() and value.strip()):
            raise ConfigError(
                f"{entry!r} is no option of {name!r}",
                fix="write --provider NAME,KEY=VALUE, for example emulated:pixel-6-gpu,memory_budget=64MiB",
            )
        options[key.strip()] = value.strip()
    return name, options


def check_provider(name: str) -> None:
    """Raises: as `parse_provider`, if nothing of that name can run a model here."""
    missing = missing_extra(name)
    if missing is not None:
        raise missing
    if is_backend_name(name) or has_provider(name):
        return
    open_backend(name)  # which says what is missing and what to install, or what may have been meant


def check_fallback(texts: Sequence[str], session: Any) -> None:
    """Refuse a session that does without a provider it was opened for, since the library of that could not be loaded.

    Args:
        texts: what ``--provider`` was given.
        session: opened with it.

    Raises: BackendError naming the provider.
    """
    got = {*session.get_providers(), *(segment.backend for segment in session.plan.segments)}
    if not session.plan.is_whole or session.plan.provenance.candidates:
        return  # a plan was made with the devices, and says what they get
    for text in texts:
        name = text.partition(",")[0].strip()
        if name.endswith(_PROVIDER) and name not in got:
            raise BackendError(
                f"{name} is part of this ONNX Runtime, but could not be used: the model would run on the CPU",
                fix="a driver or a library that it needs is missing; `parallax devices` has more; or leave it out",
            )
