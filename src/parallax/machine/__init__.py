"""This machine as the process may use it: cores, memory, pressure, load, energy, and which thread is on which core."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.machine._affinity import (
        CoreBinding,
        bind_here,
        cores_of_pool,
        every_core,
        move_to_first_of,
        own_this_thread,
        unbind,
    )
    from parallax.machine._cores import available_cores, current_core, move_to_first_core
    from parallax.machine._energy import Counts, EnergyMeter, FoundMeter, MeterInfo, find_meters
    from parallax.machine._energy_sampling import EnergyRecorder, EnergySum, MeteredEnergy
    from parallax.machine._heap import trim_heap
    from parallax.machine._load import AWAIT_S, NOISY_SHARE, CoreMeter, LoadMeter
    from parallax.machine._memory import free_memory_bytes, memory_limit_bytes, private_bytes
    from parallax.machine._pressure import PressureMonitor, PressureReading
    from parallax.machine._slices import ask_for_short_slices
    from parallax.machine._topology import physical_cores
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_affinity": "CoreBinding bind_here cores_of_pool every_core move_to_first_of own_this_thread unbind",
            "_cores": "available_cores current_core move_to_first_core",
            "_energy": "Counts EnergyMeter FoundMeter MeterInfo find_meters",
            "_energy_sampling": "EnergyRecorder EnergySum MeteredEnergy",
            "_heap": "trim_heap",
            "_load": "AWAIT_S NOISY_SHARE CoreMeter LoadMeter",
            "_memory": "free_memory_bytes memory_limit_bytes private_bytes",
            "_pressure": "PressureMonitor PressureReading",
            "_slices": "ask_for_short_slices",
            "_topology": "physical_cores",
        },
    )

__all__ = [
    "AWAIT_S",
    "NOISY_SHARE",
    "CoreBinding",
    "CoreMeter",
    "Counts",
    "EnergyMeter",
    "EnergyRecorder",
    "EnergySum",
    "FoundMeter",
    "LoadMeter",
    "MeterInfo",
    "MeteredEnergy",
    "PressureMonitor",
    "PressureReading",
    "ask_for_short_slices",
    "available_cores",
    "bind_here",
    "cores_of_pool",
    "current_core",
    "every_core",
    "find_meters",
    "free_memory_bytes",
    "memory_limit_bytes",
    "move_to_first_core",
    "move_to_first_of",
    "own_this_thread",
    "physical_cores",
    "private_bytes",
    "trim_heap",
    "unbind",
]
