"""A ``providers=`` list: the accelerators that Parallax plans for, and what is left to ONNX Runtime.

Parallax plans for backends of its own names ("emulated:pixel-6-gpu", "webgpu", ...), and for ONNX Runtime's providers
where the session is tuned. Else those get the whole model, as they do without Parallax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from parallax.device import Backend, is_backend_name, open_backend
from parallax.errors import ConfigError
from parallax.schedule import CPU_BACKEND

CPU_PROVIDER: Final = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An accelerator that a session was given."""

    name: str
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Names it in caches."""
        return f"{self.name} {sorted((key, str(value)) for key, value in self.options.items())}"


def split_providers(
    providers: Sequence[Any] | None, provider_options: Sequence[Mapping[Any, Any]] | None, *, tunes: bool
) -> tuple[tuple[Device, ...], list[Any] | None, list[Mapping[Any, Any]] | None]:
    """The accelerators of a ``providers=`` list that Parallax plans for, and what is ONNX Runtime's own affair.

    Args:
        tunes: whether plans are measured, so that ONNX Runtime's own providers can be compared with.

    Raises: ConfigError for an entry that is neither a name nor a name with its options.
    """
    if not providers:
        return (), None if providers is None else list(providers), _listed(provider_options)
    devices: list[Device] = []
    left: list[Any] = []
    left_options: list[Mapping[Any, Any]] = []
    for position, entry in enumerate(providers):
        name, options = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
        if options is None:
            options = provider_options[position] if provider_options and position < len(provider_options) else {}
        ours = isinstance(name, str) and name not in (CPU_BACKEND, CPU_PROVIDER) and is_backend_name(name)
        if not ours and tunes and isinstance(name, str) and name.endswith("ExecutionProvider"):
            ours = name not in (CPU_PROVIDER, "AzureExecutionProvider")
        if not ours:
            left.append(CPU_PROVIDER if name == CPU_BACKEND else entry)
            left_options.append(options)
        elif not isinstance(options, Mapping):
            raise ConfigError(
                f"{entry!r} is no provider", fix="give a name, or a tuple of a name and a dict of options"
            )
        else:
            devices.append(Device(name=name, options=dict(options)))
    if not devices:
        return (), list(providers), _listed(provider_options)
    if not left:
        left, left_options = [CPU_PROVIDER], [{}]
    return tuple(devices), left, left_options if provider_options else None


def _listed(provider_options: Sequence[Mapping[Any, Any]] | None) -> list[Mapping[Any, Any]] | None:
    return None if provider_options is None else list(provider_options)


def open_devices(devices: Sequence[Device]) -> dict[str, Backend]:
    """By name, in order of preference. Raises: as `parallax.device.open_backend`."""
    return {device.name: open_backend(device.name, device.options) for device in devices}
