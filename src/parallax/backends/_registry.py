"""Backends by name: those we know, those that other distributions register, and ONNX Runtime's providers.

A name is ``family`` or ``family:device``: "cpu", "webgpu", "openvino", "openvino:GPU", "emulated:pixel-6-gpu", or the
name of an execution provider, such as "CUDAExecutionProvider". Other distributions add families through the entry point
group ``parallax.backends``; an entry point's value is a `BackendFactory`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime

from parallax.backends._protocol import Backend, BackendInfo
from parallax.backends.emulated import PREFIX as EMULATED
from parallax.backends.emulated import open_emulated, profile_names
from parallax.backends.ort import CPU_PROVIDER, PLUGINS, WEBGPU, OnnxRuntimeBackend, Plugin, load_plugin, plugin_devices
from parallax.errors import BackendError, ConfigError, MissingExtraError, ParallaxError

logger = logging.getLogger(__name__)

ENTRY_POINTS: Final = "parallax.backends"
"""The entry point group in which other distributions register families of backends."""

BackendFactory = Callable[[str, Mapping[str, Any]], Backend]
"""Makes a backend of one family. Called with what stands after the colon of its name ("" if nothing) and options.

Raises: MissingExtraError where a package is missing, ConfigError where there is no such device.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBackend:
    """A backend that could be meant, and whether it can be used here."""

    name: str
    info: BackendInfo | None
    """None where it cannot be used."""
    obstacle: str | None
    """Why not."""
    remedy: str | None = None
    """What would help, where that is known."""


def is_backend_name(name: str) -> bool:
    """Whether a name is of a family of backends, ours or one that another distribution registers.

    Execution providers' own names are not: those are ONNX Runtime's.
    """
    family = name.partition(":")[0]
    return family in _BUILT_IN or family in _factories()


def open_backend(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """The backend of that name.

    Args:
        name: see the top of this module.
        options: the family's own; for an execution provider, its provider options.

    Raises:
        MissingExtraError: the package it needs is not installed; the message has the command.
        ConfigError: no such backend, or no such device here; the message names those there are.
        BackendError: it is installed, but broken.
    """
    family, _, device = name.partition(":")
    # Ours are found without a look at what is installed.
    factory = _BUILT_IN.get(family) or _factories().get(family)
    if factory is not None:
        return factory(device, options or {})
    if family.endswith("ExecutionProvider") and not device:
        return _open_provider(family, options or {})
    raise _unknown(name)


def missing_extra(name: str) -> MissingExtraError | None:
    """What `open_backend` raises where the package that a backend of ours needs is not installed, or None.

    Imports nothing where it is installed.
    """
    module = _PACKAGES.get(name.partition(":")[0])
    if module is None or _is_installed(module):
        return None
    try:
        open_backend(name)
    except MissingExtraError as error:
        return error
    return None


def has_provider(name: str) -> bool:
    """Whether this is an execution provider that can be used here: built in, or a plugin that finds a device.

    May load the library of a plugin that we know. An unknown name is none.
    """
    if name in onnxruntime.get_available_providers() or plugin_devices(name):
        return True
    if name not in PLUGINS:
        return False
    try:
        return bool(load_plugin(PLUGINS[name]))
    except ParallaxError as error:
        logger.info("%s cannot be used: %s", name, error)
        return False


def find_backends() -> tuple[FoundBackend, ...]:
    """What could run models here: each family once, each emulated device, each provider of this build of ONNX Runtime.

    Loads the libraries that are installed, and so may take a second. An obstacle is an answer, not an error.
    """
    emulated = [f"{EMULATED}:{profile}" for profile in profile_names()]
    families = [name for family in _factories() for name in (emulated if family == EMULATED else (family,))]
    names = [*families, *(name for name in onnxruntime.get_available_providers() if name not in _NOT_FOR_MODELS)]
    found: dict[str, FoundBackend] = {}
    for name in names:
        try:
            info = open_backend(name).info
        except ParallaxError as error:
            obstacle = error.what if error.where is None else f"{error.what} (at {error.where})"
            found.setdefault(name, FoundBackend(name=name, info=None, obstacle=obstacle, remedy=error.fix))
        else:
            # A family and a provider may be two names of one backend.
            found.setdefault(info.name, FoundBackend(name=info.name, info=info, obstacle=None))
    return tuple(found.values())


def _unknown(name: str) -> ConfigError:
    """Of that name there is nothing, neither here nor in other builds of ONNX Runtime."""
    import difflib  # for a message

    families = [family for family in _factories() if family != EMULATED]
    providers = [provider for provider in onnxruntime.get_available_providers() if provider not in _NOT_FOR_MODELS]
    known = [*families, *(f"{EMULATED}:{profile}" for profile in profile_names()), *providers]
    close = difflib.get_close_matches(name, {*known, *onnxruntime.get_all_providers()}, n=1, cutoff=_ALIKE)
    guess = f"did you mean {close[0]}? " if close else ""
    if name.endswith("ExecutionProvider"):
        what = f"ONNX Runtime knows no provider {name!r}"
        return ConfigError(what, fix=f"{guess}register its library first, {_REGISTER}")
    what = f"there is no backend {name!r}"
    return ConfigError(what, fix=f"{guess}choose among {', '.join(known)}; or name a provider of ONNX Runtime")


_ALIKE: Final = 0.85
"""Names of providers end alike, so that little must differ for another one to be meant."""

_REGISTER: Final = "with onnxruntime.register_execution_provider_library"


def forget_backends() -> None:
    """Look for entry points again: after a distribution was installed into a running process."""
    _factories.cache_clear()


_NOT_FOR_MODELS: Final = frozenset({"AzureExecutionProvider"})
"""It calls remote services through operators of its own."""


def _open_provider(provider: str, options: Mapping[str, Any]) -> Backend:
    devices = plugin_devices(provider)
    if not devices and provider in PLUGINS:
        devices = load_plugin(PLUGINS[provider])
    if devices or provider in onnxruntime.get_available_providers():
        return OnnxRuntimeBackend(provider, provider_options=options, devices=devices)
    if provider == "OpenVINOExecutionProvider":
        raise ConfigError(
            f"this build of onnxruntime has no {provider}", fix='use the backend "openvino", which needs no such build'
        )
    if provider in onnxruntime.get_all_providers():
        raise ConfigError(
            f"this build of onnxruntime has no {provider}; it has {', '.join(onnxruntime.get_available_providers())}",
            fix=_how_to_install(provider),
        )
    raise _unknown(provider)


_DISTRIBUTIONS: Final[Mapping[str, str]] = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml",
    "QNNExecutionProvider": "onnxruntime-qnn",
    "CANNExecutionProvider": "onnxruntime-cann",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "ROCMExecutionProvider": "onnxruntime-rocm",
}
"""Provider -> the distribution on PyPI that is built with it."""


def _how_to_install(provider: str) -> str:
    distribution = _DISTRIBUTIONS.get(provider)
    if distribution is None:
        return "install a build of onnxruntime that has it"
    return (
        f"install the build of onnxruntime that has it, in place of this one: pip uninstall onnxruntime; pip install "
        f"{distribution}"
    )


def _cpu(device: str, options: Mapping[str, Any]) -> Backend:
    _refuse_device("cpu", device)
    return OnnxRuntimeBackend(CPU_PROVIDER, provider_options=options)


def _plugin(plugin: Plugin, device: str, options: Mapping[str, Any]) -> Backend:
    _refuse_device(plugin.extra, device)
    return OnnxRuntimeBackend(plugin.provider, provider_options=options, devices=load_plugin(plugin))


def _openvino(device: str, options: Mapping[str, Any]) -> Backend:
    from parallax.backends.openvino import OpenVinoBackend  # it loads `onnx`

    return OpenVinoBackend(device or "CPU", options=options)


def _refuse_device(family: str, device: str) -> None:
    if device:
        raise ConfigError(f"the backend {family} has no devices to choose from, such as {device!r}")


_BUILT_IN: Final[Mapping[str, BackendFactory]] = {
    "cpu": _cpu,
    "webgpu": functools.partial(_plugin, WEBGPU),
    "openvino": _openvino,
    EMULATED: open_emulated,
}


def _is_installed(module: str) -> bool:
    if sys.modules.get(module) is not None:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a finder that keeps it from this program
        return False


_PACKAGES: Final[Mapping[str, str]] = {"openvino": "openvino", "webgpu": WEBGPU.module}
"""Family -> the module of an extra that it needs."""


@functools.cache
def _factories() -> Mapping[str, BackendFactory]:
    """By family. Ours come first: an installed package must not change what "cpu" means."""
    found: dict[str, BackendFactory] = dict(_BUILT_IN)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(entry.name, functools.partial(_from_entry_point, entry))
    return found


def _from_entry_point(entry: importlib.metadata.EntryPoint, device: str, options: Mapping[str, Any]) -> Backend:
    try:
        factory: BackendFactory = entry.load()
    except Exception as error:
        raise BackendError(
            f"the backend {entry.name} cannot be loaded: {error}",
            where=f"entry point {entry.name} = {entry.value}" + (f" of {entry.dist.name}" if entry.dist else ""),
            fix="fix or uninstall that distribution",
        ) from error
    return factory(device, options)
