"""Energy meters that this machine has, each behind one protocol.

Linux tells energy in several places: RAPL counters of the processor (the powercap interface, also on AMD), INA3221
power monitors of Jetson boards (hwmon), batteries (power_supply), and NVIDIA GPUs by their driver's library, NVML. A
meter says what it covers; figures of meters that cover each other do not add up.

Sources: the kernel's ``Documentation/power/powercap/powercap.rst``, ``Documentation/hwmon/ina3221.rst`` and
``Documentation/ABI/testing/sysfs-class-power``; NVIDIA's Jetson Linux guide for the names of rails; the NVML reference,
``nvmlDeviceGetTotalEnergyConsumption``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from parallax.errors import BackendError
from parallax.machine._cgroups import read_text

_MICRO: Final = 1e-6
_MILLI: Final = 1e-3

_RAPL_DOMAINS: Final[Mapping[str, str]] = {
    "package": "the processor: cores, caches, memory controller and a built-in GPU",
    "core": "the processor's cores",
    "uncore": "the processor's built-in GPU",
    "dram": "memory",
    "psys": "the whole board, as its maker wired it",
}

_TOTAL_RAILS: Final = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")
"""Names that Jetson boards give the rail that feeds all others."""


class Counts(Enum):
    """What a meter can read."""

    ENERGY = "energy"
    """A counter: the difference of two readings is what was used between them."""
    POWER = "power"
    """What is drawn at the moment, to be read often and added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterInfo:
    """What a meter measures."""

    name: str
    """Tells meters apart: "rapl:package-0", "ina3221:VDD_IN", "battery:BAT0", "nvml:0"."""
    covers: str
    """What uses the energy that it counts, in words."""
    counts: Counts


class EnergyMeter(Protocol):
    """Reads the energy or power of one part of the machine. Any thread may call it."""

    @property
    def info(self) -> MeterInfo:
        """What it measures."""
        ...

    @property
    def range_joules(self) -> float | None:
        """Where a counter begins anew at 0; None where it does not, and for power."""
        ...

    def read(self) -> float:
        """Joules since some moment, or watts now.

        Raises: BackendError: it cannot be read any more.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMeter:
    """A place where energy is told, and whether this process may read it."""

    info: MeterInfo
    meter: EnergyMeter | None
    """None where it cannot be used."""
    obstacle: str | None = None
    """Why not."""
    remedy: str | None = None
    """What would help, where that is known."""


class _FileMeter:
    """A meter that is a formula over files, each with one whole number."""

    def __init__(
        self,
        info: MeterInfo,
        files: tuple[Path, ...],
        formula: Callable[..., float],
        *,
        range_joules: float | None = None,
    ) -> None:
        self._info = info
        self._files = files
        self._formula = formula
        self._range_joules = range_joules

    @property
    def info(self) -> MeterInfo:
        """See `EnergyMeter`."""
        return self._info

    @property
    def range_joules(self) -> float | None:
        """See `EnergyMeter`."""
        return self._range_joules

    def read(self) -> float:
        """See `EnergyMeter`."""
        try:
            return self._formula(*(int(path.read_text()) for path in self._files))
        except (OSError, ValueError) as error:
            raise BackendError(
                f"the meter {self._info.name} cannot be read: {error}",
                where=str(self._files[0]),
                fix="parallax.machine.find_meters() says which can be",
            ) from error


def find_meters(*, root: Path = Path("/")) -> tuple[FoundMeter, ...]:
    """Find all places of this machine where energy can be read, those of the whole machine first.

    An obstacle is an answer, not an error.

    Args:
        root: where ``sys`` is mounted. NVIDIA GPUs are looked for only where that is the machine's own.
    """
    found = [*_ina3221(root), *_rapl(root), *(_nvml() if root == Path("/") else ()), *_batteries(root)]
    return tuple(sorted(found, key=lambda meter: meter.meter is None))


def _rapl(root: Path) -> Iterator[FoundMeter]:
    """Counters of the processor, by powercap's zones ("intel-rapl:0", "intel-rapl:0:1"); "-mmio" ones count the same
    packages again."""
    for zone in _folders(root / "sys/class/powercap", re.compile(r"intel-rapl:[0-9:]+")):
        label = _text(zone / "name")
        if label is None:
            continue
        kind = label.partition("-")[0]
        # A part has the number of its package in its zone's name only.
        parent = zone.name.split(":")[1]
        name = label if label.endswith(parent) or kind == "psys" else f"{label}-{parent}"
        info = MeterInfo(
            name=f"rapl:{name}", covers=_RAPL_DOMAINS.get(kind, f"the part {label!r}"), counts=Counts.ENERGY
        )
        counter, most = zone / "energy_uj", _text(zone / "max_energy_range_uj")
        range_joules = int(most) * _MICRO if most is not None and most.isdigit() else None
        meter = _FileMeter(info, (counter,), lambda count: count * _MICRO, range_joules=range_joules)
        # Since CVE-2020-8694 the kernel lets only root read it.
        yield _tried(info, meter, counter, remedy=f"as root: chmod a+r {counter}")


def _ina3221(root: Path) -> Iterator[FoundMeter]:
    """Rails of Jetson boards, by the kernel's own driver, or by NVIDIA's older one."""
    for chip in _folders(root / "sys/class/hwmon", re.compile(r"hwmon\d+")):
        if _text(chip / "name") != "ina3221":
            continue
        for label_file in sorted(chip.glob("in*_label")):
            number, label = re.sub(r"\D", "", label_file.name), _text(label_file)
            volts, amperes = chip / f"in{number}_input", chip / f"curr{number}_input"
            # The sum of shunt voltages is a channel too, without a current.
            if label is None or label == "NC" or not amperes.exists():
                continue
            info = _rail(label)
            meter = _FileMeter(info, (volts, amperes), lambda volt, ampere: volt * _MILLI * ampere * _MILLI)
            yield _tried(info, meter, volts)
    for chip in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*")):
        for label_file in sorted(chip.glob("rail_name_*")):
            label = _text(label_file)
            power = chip / f"in_power{label_file.name.removeprefix('rail_name_')}_input"
            if label is None:
                continue
            info = _rail(label)
            yield _tried(info, _FileMeter(info, (power,), lambda milliwatts: milliwatts * _MILLI), power)


def _rail(label: str) -> MeterInfo:
    covers = "the whole board" if label in _TOTAL_RAILS else f"the rail {label}"
    return MeterInfo(name=f"ina3221:{label}", covers=covers, counts=Counts.POWER)


def _batteries(root: Path) -> Iterator[FoundMeter]:
    for supply in _folders(root / "sys/class/power_supply", re.compile(r".+")):
        if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
            continue  # that of a mouse
        info = MeterInfo(
            name=f"battery:{supply.name}", covers="the whole machine, while it runs on battery", counts=Counts.POWER
        )
        status = _text(supply / "status")
        if status != "Discharging":
            obstacle = f"the battery is {(status or 'in an unknown state').lower()}, so it does not tell what is used"
            yield FoundMeter(info=info, meter=None, obstacle=obstacle, remedy="unplug the power supply")
            continue
        power, current, voltage = (supply / name for name in ("power_now", "current_now", "voltage_now"))
        if power.exists():
            meter = _FileMeter(info, (power,), lambda microwatts: abs(microwatts) * _MICRO)
            yield _tried(info, meter, power)
        else:
            meter = _FileMeter(
                info,
                (current, voltage),
                lambda microamperes, microvolts: abs(microamperes) * _MICRO * microvolts * _MICRO,
            )
            yield _tried(info, meter, current)


class _NvmlMeter:
    """An NVIDIA GPU. Its counter, where it has one (since Volta), is in millijoules since the driver was loaded."""

    def __init__(self, library: Any, handle: Any, info: MeterInfo) -> None:
        self._library = library
        self._handle = handle
        self._info = info

    @property
    def info(self) -> MeterInfo:
        """See `EnergyMeter`."""
        return self._info

    @property
    def range_joules(self) -> float | None:
        """See `EnergyMeter`."""
        return None

    def read(self) -> float:
        """See `EnergyMeter`."""
        library = self._library
        try:
            if self._info.counts is Counts.ENERGY:
                return float(library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * _MILLI
            return float(library.nvmlDeviceGetPowerUsage(self._handle)) * _MILLI
        except library.NVMLError as error:
            raise BackendError(
                f"the meter {self._info.name} cannot be read: {error}", fix="see whether nvidia-smi works"
            ) from error


def _nvml() -> Iterator[FoundMeter]:
    if not Path("/dev/nvidiactl").exists():
        return
    info = MeterInfo(name="nvml", covers="NVIDIA GPUs", counts=Counts.ENERGY)
    try:
        import pynvml
    except ImportError:
        yield FoundMeter(
            info=info,
            meter=None,
            obstacle="the package nvidia-ml-py is not installed",
            remedy="pip install 'parallax-runtime[energy]'",
        )
        return
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        yield FoundMeter(info=info, meter=None, obstacle=str(error), remedy="see whether nvidia-smi works")
        return
    for index, handle in enumerate(handles):
        counts = Counts.ENERGY
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            counts = Counts.POWER
        title = pynvml.nvmlDeviceGetName(handle)
        found = MeterInfo(name=f"nvml:{index}", covers=f"the GPU {title} and its memory", counts=counts)
        yield FoundMeter(info=found, meter=_NvmlMeter(pynvml, handle, found))


def _tried(info: MeterInfo, meter: EnergyMeter, file: Path, *, remedy: str | None = None) -> FoundMeter:
    """A meter that was read once, or why it cannot be."""
    try:
        meter.read()
    except BackendError as error:
        cause = error.__cause__
        if isinstance(cause, PermissionError):
            return FoundMeter(info=info, meter=None, obstacle=f"this user may not read {file}", remedy=remedy)
        return FoundMeter(info=info, meter=None, obstacle=error.what)
    return FoundMeter(info=info, meter=meter)


def _folders(parent: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if name.fullmatch(entry.name))
    except OSError:
        return []


def _text(path: Path) -> str | None:
    text = read_text(path)
    return None if text is None else text.strip()
