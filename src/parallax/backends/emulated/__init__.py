"""Devices that are not here: right answers from the processor, in the time that a profile says."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.backends.emulated._backend import PREFIX, EmulatedBackend, EmulatedModel, open_emulated
    from parallax.backends.emulated._coverage import Coverage, Gap, OperatorRule, Uncovered
    from parallax.backends.emulated._figures import Basis, Figure
    from parallax.backends.emulated._host_speed import host_gemm_flops
    from parallax.backends.emulated._profiles import CpuCluster, DeviceProfile, DeviceRates, load_profile, profile_names
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_backend": "PREFIX EmulatedBackend EmulatedModel open_emulated",
            "_coverage": "Coverage Gap OperatorRule Uncovered",
            "_figures": "Basis Figure",
            "_host_speed": "host_gemm_flops",
            "_profiles": "CpuCluster DeviceProfile DeviceRates load_profile profile_names",
        },
    )

__all__ = [
    "PREFIX",
    "Basis",
    "Coverage",
    "CpuCluster",
    "DeviceProfile",
    "DeviceRates",
    "EmulatedBackend",
    "EmulatedModel",
    "Figure",
    "Gap",
    "OperatorRule",
    "Uncovered",
    "host_gemm_flops",
    "load_profile",
    "open_emulated",
    "profile_names",
]
