"""Devices of bundles: what a caller names against what a bundle was compiled for, and both against what is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parallax import _lazy
from parallax.backends import open_backend
from parallax.bundle import AskedDevice, device_differences, is_safe_to_open
from parallax.errors import ConfigError, ParallaxError
from parallax.opening._state import BundleDevices
from parallax.options import Device

if TYPE_CHECKING:
    from parallax.backends import Backend
    from parallax.bundle import Bundle

logger = _lazy.logger(__name__)


def asked_device(device: Device) -> AskedDevice:
    """A device as a bundle records it: switches are numbers, as ``--provider`` takes them."""
    options = tuple(sorted((key, _text(value)) for key, value in device.options.items()))
    return AskedDevice(name=device.name, options=options, memory_bytes=device.memory_bytes)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def open_devices_of(bundle: Bundle, given: tuple[Device, ...] | None) -> tuple[BundleDevices, tuple[str, ...]]:
    """The devices that a bundle needs, opened; and in which ways they are not those that it was made for.

    Args:
        given: those of ``providers=``; None where it was not given.

    Raises: ConfigError where these are others than the bundle was compiled for, or have other options; and where a
        device may not be opened on a bundle's word alone.
    """
    manifest = bundle.manifest
    _check_given(bundle, given)
    stated = {device.name: device for device in given or ()}
    asked = {device.name: device for device in manifest.options.devices}
    backends: dict[str, Backend] = {}
    devices, lacking = [], []
    for record in manifest.devices:
        device = _device(bundle, asked[record.name], stated)
        devices.append(device)
        try:
            backends[record.name] = open_backend(device.name, {**device.options, **dict(record.opening_options)})
        except ParallaxError as error:
            lacking.append(f"{record.name} cannot be used here: {error.what}")
    shown = tuple(devices) if given is None else given
    return BundleDevices(shown=shown, backends=backends), (*lacking, *device_differences(manifest, backends))


def devices_of_rebuilt(bundle: Bundle, given: tuple[Device, ...] | None) -> BundleDevices:
    """Likewise, of a bundle that was made anew for the devices that there are here."""
    asked = {device.name for device in bundle.manifest.options.devices}
    left = None if given is None else tuple(device for device in given if device.name in asked)
    return open_devices_of(bundle, left)[0]


def devices_here(bundle: Bundle, given: tuple[Device, ...] | None) -> tuple[Device, ...]:
    """Those that a bundle was compiled for, as far as they can be opened here. Raises: as `open_devices_of`."""
    stated = {device.name: device for device in given or ()}
    found = []
    for asked in bundle.manifest.options.devices:
        device = _device(bundle, asked, stated)
        try:
            open_backend(device.name, device.options)
        except ParallaxError as error:
            logger.warning("%s is made anew without %s: %s", bundle.folder, device.name, error.what)
        else:
            found.append(device)
    return tuple(found)


def changed_devices(bundle: Bundle, devices: tuple[Device, ...]) -> tuple[str, ...]:
    """In which ways the devices of a bundle are others by now. Raises: as `parallax.backends.open_backend`."""
    needed = {record.name: record for record in bundle.manifest.devices}
    backends = {
        device.name: open_backend(device.name, {**device.options, **dict(needed[device.name].opening_options)})
        for device in devices
        if device.name in needed
    }
    return device_differences(bundle.manifest, backends)


def _check_given(bundle: Bundle, given: tuple[Device, ...] | None) -> None:
    if given is None:
        return
    manifest = bundle.manifest
    asked = {device.name: device for device in manifest.options.devices}
    for device in given:
        recorded = asked.get(device.name)
        if recorded is None:
            raise ConfigError(
                f"this bundle cannot be run so: it is compiled for {' and '.join(asked) or 'the CPU'}, "
                f"not for {device.name}",
                where=bundle.folder,
                fix=f"leave {device.name} out, or compile a bundle with providers=[{device.name!r}]",
            )
        if _is_stated(device) and asked_device(device) != recorded:
            raise ConfigError(
                f"the options of {device.name} are decided when a bundle is compiled: {_shown(recorded)}",
                where=bundle.folder,
                fix="give these, or none, or compile a bundle with others",
            )
    names = {device.name for device in given}
    for record in manifest.devices:
        if record.name not in names:
            raise ConfigError(
                f"this bundle runs a part of its model on {record.name}, which providers= does not name",
                where=bundle.folder,
                fix="leave providers= out, or name it there, or open the model itself",
            )


def _device(bundle: Bundle, asked: AskedDevice, stated: Mapping[str, Device]) -> Device:
    """A device as it is to be opened. Raises: ConfigError where only the caller may say so."""
    own = stated.get(asked.name)
    if own is not None and _is_stated(own):
        return own
    if (own is None or asked.options) and not is_safe_to_open(asked):
        raise ConfigError(
            f"this bundle needs {asked.name} with {_shown(asked)}; that may lead to a file or a library, and a "
            "bundle's word is not enough to open one",
            where=bundle.folder,
            fix=f"name it yourself: providers=[({asked.name!r}, {dict(asked.options)}), 'CPUExecutionProvider']",
        )
    return Device(name=asked.name, options=dict(asked.options), memory_bytes=asked.memory_bytes)


def _is_stated(device: Device) -> bool:
    """Whether a caller gave options with a device. Without, it is meant as the bundle has it."""
    return bool(device.options) or device.memory_bytes is not None


def _shown(device: AskedDevice) -> str:
    shown: dict[str, object] = dict(device.options)
    if device.memory_bytes is not None:
        shown["memory_budget"] = device.memory_bytes
    return str(shown) if shown else "no options"
