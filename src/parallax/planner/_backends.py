"""Which backends beside ONNX Runtime's CPU kernels a session may use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

UNASKED: Final = {"openvino": "openvino"}
"""Backends that compute on the CPU as precisely as the model asks for: tried unasked where their distribution (the
value) is installed. Others are tried where they are named."""


def installed_backends() -> tuple[str, ...]:
    """Those of `UNASKED` that are installed; nothing is imported."""
    return tuple(name for name, distribution in UNASKED.items() if _version(distribution) is not None)


def wanted_backends(backends: tuple[str, ...] | None) -> tuple[str, ...]:
    """Those that a session may use: the installed ones where its options name none."""
    return installed_backends() if backends is None else backends


def backend_versions(backends: Sequence[str]) -> str:
    """Names and versions: what a measured plan depends on. Imports none of `UNASKED`.

    Raises: as `open_backend`, for others.
    """
    from parallax.backends import open_backend

    return ", ".join(
        f"{name} {_version(UNASKED[name]) if name in UNASKED else open_backend(name).info.version}" for name in backends
    )


def backend_tables(names: Sequence[str]) -> str:
    """What the choice of nodes for these backends and providers follows from, beside their versions: of OpenVINO, the
    table of what it computes right. Empty where none of them has one."""
    if all(name.partition(":")[0] != "openvino" for name in names):
        return ""
    from parallax.backends.openvino import openvino_table_digest

    return f"openvino {_version('openvino')} {openvino_table_digest()}"


@functools.cache
def _version(distribution: str) -> str | None:
    import importlib.metadata  # takes as long as opening a small bundle

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
