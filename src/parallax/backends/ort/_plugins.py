"""Libraries of execution providers that are not built into ONNX Runtime."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime

from parallax.backends.ort._failures import RUNTIME_EXCEPTIONS
from parallax.errors import BackendError, ConfigError, MissingExtraError

_lock: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin's Python package, which says where its library is."""

    provider: str
    module: str
    """With the functions ``get_library_path`` and ``get_ep_name``, as ONNX Runtime's plugin packages have them."""
    distribution: str
    extra: str
    hint: str
    """What to look at where the library is there, but offers no device."""


WEBGPU: Final = Plugin(
    provider="WebGpuExecutionProvider",
    module="onnxruntime_ep_webgpu",
    distribution="onnxruntime-ep-webgpu",
    extra="webgpu",
    hint="it needs a GPU with a driver for Vulkan, Metal or Direct3D 12; without one, tools/install_swiftshader.py "
    "installs a software adapter for tests",
)
PLUGINS: Final = {WEBGPU.provider: WEBGPU}
"""Plugins we know by name. Others can be registered with ``onnxruntime.register_execution_provider_library``."""


def plugin_devices(provider: str) -> tuple[Any, ...]:
    """The ``OrtEpDevice`` entries of a provider whose library is registered; none for a built-in one."""
    if provider == "CPUExecutionProvider":  # listed as a device too, but not a plugin
        return ()
    return tuple(device for device in onnxruntime.get_ep_devices() if device.ep_name == provider)


def load_plugin(plugin: Plugin) -> tuple[Any, ...]:
    """Register a plugin's library with ONNX Runtime, once per process; returns its devices, at least one.

    Raises:
        MissingExtraError: its package is not installed.
        BackendError: the library cannot be loaded.
        ConfigError: it finds no device here.
    """
    with _lock:
        devices = plugin_devices(plugin.provider)
        if not devices:
            _register(plugin)
            devices = plugin_devices(plugin.provider)
            if not devices:
                _unregister(plugin)  # a driver may be there the next time somebody asks
    if not devices:
        raise ConfigError(f"{plugin.provider} finds no device on this machine", fix=plugin.hint)
    return devices


def unload_plugin(plugin: Plugin) -> None:
    """Take a library that `load_plugin` registered out again. No session and no device of it may be in use any more."""
    with _lock:
        _unregister(plugin)


_registered: Final[set[str]] = set()
"""Providers whose libraries are registered by us (lock)."""


def _unregister(plugin: Plugin) -> None:
    if plugin.provider in _registered:
        onnxruntime.unregister_execution_provider_library(plugin.provider)
        _registered.discard(plugin.provider)


def _register(plugin: Plugin) -> None:
    if plugin.provider in _registered:
        return
    try:
        package = importlib.import_module(plugin.module)
    except ModuleNotFoundError as error:
        if error.name != plugin.module:
            raise
        raise MissingExtraError(
            f"{plugin.provider} needs the package {plugin.distribution}, which is not installed",
            fix=f"pip install 'parallax-runtime[{plugin.extra}]'",
        ) from error
    path = str(package.get_library_path())
    try:
        onnxruntime.register_execution_provider_library(plugin.provider, path)
    except RUNTIME_EXCEPTIONS as error:
        raise BackendError(
            f"the library of {plugin.provider} cannot be loaded: {error}",
            where=path,
            fix=f"install a version of {plugin.distribution} that fits onnxruntime {onnxruntime.__version__}",
        ) from error
    _registered.add(plugin.provider)
