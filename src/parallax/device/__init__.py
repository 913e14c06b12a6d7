"""Where a model can run: what this machine lets the process use."""

from parallax.device._cores import available_cores
from parallax.device._heap import trim_heap
from parallax.device._load import DISTURBED_SHARE, LoadMeter
from parallax.device._memory import free_memory_bytes, memory_limit_bytes, private_bytes
from parallax.device._pressure import PressureMonitor, PressureReading, read_pressure

__all__ = [
    "DISTURBED_SHARE",
    "LoadMeter",
    "PressureMonitor",
    "PressureReading",
    "available_cores",
    "free_memory_bytes",
    "memory_limit_bytes",
    "private_bytes",
    "read_pressure",
    "trim_heap",
]
