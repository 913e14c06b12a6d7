"""Devices that are not here: right answers from the processor, in the time that a profile says."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.backends.emulated._backend import PREFIX, EmulatedBackend
    from parallax.backends.emulated._opening import open_emulated
    from parallax.backends.emulated._power import FigureBand
    from parallax.backends.emulated._profiles import DeviceProfile, load_profile, profile_names
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_backend": "PREFIX EmulatedBackend",
            "_opening": "open_emulated",
            "_power": "FigureBand",
            "_profiles": "DeviceProfile load_profile profile_names",
        },
    )

__all__ = [
    "PREFIX",
    "DeviceProfile",
    "EmulatedBackend",
    "FigureBand",
    "load_profile",
    "open_emulated",
    "profile_names",
]
