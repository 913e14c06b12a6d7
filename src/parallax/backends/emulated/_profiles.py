"""Devices as data: what an accelerator that is not at hand takes, and how fast it is.

A profile is a JSON file. Those of Parallax describe the devices of the Parallax paper (arXiv 2512.11532) and some
boards; each figure names its source, and whether it was read there, recalled, derived or assumed. They are models to
plan and compare with, not measurements: a figure that was measured on a device belongs into a profile of one's own.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from parallax.backends.emulated._coverage import TYPE_NAMES, Coverage, read_coverage
from parallax.backends.emulated._figures import Fields, Figure, read_fields
from parallax.backends.emulated._power import DevicePower, read_power
from parallax.errors import ConfigError

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuCluster:
    """Cores of one kind."""

    core: str
    count: int
    ghz: Figure
    flops_per_cycle: Figure
    """Of one core, in float32."""

    @property
    def peak_flops(self) -> float:
        """FLOP/s of all its cores together."""
        return self.count * self.ghz.value * 1e9 * self.flops_per_cycle.value


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """What a device takes for what, in plain numbers; `DeviceProfile.rates` makes them."""

    flops_per_s: Mapping[str, float]
    """Attained, by element type; "float32" is always there and stands for those that are not."""
    bytes_per_s: float
    """Attained, between the device and its memory."""
    launch_ns: float
    """Of one region: to submit it and to learn that it has ended."""
    dispatch_ns: float
    """Of each operator within."""
    transfer_bytes_per_s: float
    """Between host and device; infinite where nothing is copied."""
    transfer_fixed_ns: float
    """Per tensor."""

    def operator_ns(self, flops: int, size_bytes: int, element_type: str = "float32") -> int:
        """Time of one operator: dispatch, and the slower of arithmetic and memory (roofline)."""
        rate = self.flops_per_s.get(element_type, self.flops_per_s["float32"])
        return round(self.dispatch_ns + 1e9 * max(flops / rate, size_bytes / self.bytes_per_s))

    def transfer_ns(self, size_bytes: int) -> int:
        """Time to move one tensor of that size, either way."""
        return round(self.transfer_fixed_ns + 1e9 * size_bytes / self.transfer_bytes_per_s)

    def copying_ns(self, size_bytes: int) -> int:
        """The part of that in which a core of the host copies; 0 where nothing is copied."""
        return round(1e9 * size_bytes / self.transfer_bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """An accelerator, the processor beside it, and the delegate it is reached through."""

    name: str
    title: str
    """The device."""
    accelerator: str
    note: str
    coverage: Coverage
    """What the delegate takes."""
    cpu: tuple[CpuCluster, ...]
    gemm_share: Figure
    """Share of the processor's peak that a large matrix product attains."""
    peak_flops: Mapping[str, Figure]
    """The accelerator's FLOP/s by element type; "float32" is always there."""
    attainable_share: Figure
    """Share of that peak that networks attain."""
    memory_bytes_per_s: Figure
    attainable_bandwidth_share: Figure
    launch_ns: Figure
    dispatch_ns: Figure
    transfer_bytes_per_s: Figure | None
    """None where nothing is copied between host and device."""
    transfer_ns: Figure
    """Per tensor."""
    unified_memory: bool
    """Whether processor and accelerator share one memory; a delegate may still copy, to change the layout."""
    memory_bytes: Figure
    power: DevicePower | None = None
    """What it draws; None where the profile does not say, and then no energy can be modelled."""

    @property
    def cpu_peak_flops(self) -> float:
        """FLOP/s of the processor beside it, all cores, in float32."""
        return sum(cluster.peak_flops for cluster in self.cpu)

    @property
    def cpu_gemm_flops(self) -> float:
        """What a large matrix product attains of that; compare with a measurement of another machine."""
        return self.cpu_peak_flops * self.gemm_share.value

    @property
    def float16_gain(self) -> float | None:
        """How many times as fast as in float32 it computes in half precision; None where nothing is known to be gained.

        Nothing computes in half precision unasked: only models that are in float16, and devices that are opened so.
        """
        half = self.peak_flops.get("float16")
        return None if half is None else half.value / self.peak_flops["float32"].value

    def rates(self, *, speed: float = 1.0) -> DeviceRates:
        """The device ``speed`` times as fast in everything, launches and transfers too.

        With the ratio of two processors for ``speed``, the device is to the one what the original is to the
        other: emulated beside a host twice as fast as its own, it is twice as fast.

        Raises: ConfigError unless ``speed`` is above 0 and finite.
        """
        if not 0 < speed < math.inf:
            raise ConfigError(f"a speed of {speed}", fix="give a finite factor above 0")
        share = self.attainable_share.value * speed
        copies = self.transfer_bytes_per_s
        return DeviceRates(
            flops_per_s={name: peak.value * share for name, peak in self.peak_flops.items()},
            bytes_per_s=self.memory_bytes_per_s.value * self.attainable_bandwidth_share.value * speed,
            launch_ns=self.launch_ns.value / speed,
            dispatch_ns=self.dispatch_ns.value / speed,
            transfer_bytes_per_s=math.inf if copies is None else copies.value * speed,
            transfer_fixed_ns=self.transfer_ns.value / speed,
        )

    def figures(self) -> Mapping[str, Figure]:
        """Every figure by its name in the file, for reports that say what they rest on."""
        found = {f"peak_flops.{name}": figure for name, figure in self.peak_flops.items()}
        for cluster in self.cpu:
            found[f"cpu.{cluster.core}.ghz"] = cluster.ghz
            found[f"cpu.{cluster.core}.flops_per_cycle"] = cluster.flops_per_cycle
        found |= {
            "cpu.gemm_share": self.gemm_share,
            "attainable_share": self.attainable_share,
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "attainable_bandwidth_share": self.attainable_bandwidth_share,
            "launch_ns": self.launch_ns,
            "dispatch_ns": self.dispatch_ns,
            "transfer_ns": self.transfer_ns,
            "memory_bytes": self.memory_bytes,
        }
        if self.transfer_bytes_per_s is not None:
            found["transfer_bytes_per_s"] = self.transfer_bytes_per_s
        return found


def profile_names() -> tuple[str, ...]:
    """The devices that `load_profile` knows by name, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))
    )


def load_profile(source: str | os.PathLike[str]) -> DeviceProfile:
    """The profile of that name, or from a file of one's own (a path, or a name that ends in ".json").

    A file's ``delegate`` is the name of a list of operators that comes with Parallax, the path of one beside the
    file, or the list itself.

    Raises: ConfigError naming the file, the field at fault and what is expected there.
    """
    text = os.fspath(source)
    if isinstance(source, str) and not text.endswith(".json") and os.path.basename(text) == text:
        if text not in profile_names():
            raise ConfigError(
                f"there is no device profile {text!r}",
                fix=f"choose one of: {', '.join(profile_names())}; or give the path of a file that ends in .json",
            )
        return _packaged_profile(text)
    path = Path(text)
    return _read_profile(read_fields(path), path.parent)


@functools.cache
def _packaged_profile(name: str) -> DeviceProfile:
    """One that comes with Parallax, and so stays as it is."""
    return _read_profile(read_fields(_folder() / f"{name}.json"), _folder())


def _folder() -> Traversable:
    return importlib.resources.files("parallax.backends.emulated") / "profiles"


def _read_profile(fields: Fields, folder: Traversable | Path) -> DeviceProfile:
    fields.require_format(FORMAT_VERSION)
    cpu = fields.inner("cpu")
    clusters = []
    for item in cpu.items("clusters"):
        clusters.append(
            CpuCluster(
                core=item.text("core"),
                count=item.whole("count", least=1),
                ghz=item.figure("ghz", most=100),
                flops_per_cycle=item.figure("flops_per_cycle", most=1e5),
            )
        )
        item.finish()
    gemm_share = cpu.figure("gemm_share", most=1)
    cpu.finish()
    peaks = fields.inner("peak_flops")
    for name in peaks.names():
        if name not in TYPE_NAMES.values():
            raise peaks.error(name, f"there is no element type {name!r}", ", ".join(TYPE_NAMES.values()))
    if "float32" not in peaks:
        raise peaks.error("float32", "it is missing", "the accelerator's FLOP/s in float32")
    profile = DeviceProfile(
        name=fields.text("name"),
        title=fields.text("title"),
        accelerator=fields.text("accelerator"),
        note=fields.text("note") if "note" in fields else "",
        coverage=_read_delegate(fields, folder),
        cpu=tuple(clusters),
        gemm_share=gemm_share,
        peak_flops={name: peaks.figure(name) for name in peaks.names()},
        attainable_share=fields.figure("attainable_share", most=1),
        memory_bytes_per_s=fields.figure("memory_bytes_per_s"),
        attainable_bandwidth_share=fields.figure("attainable_bandwidth_share", most=1),
        launch_ns=fields.figure("launch_ns", positive=False),
        dispatch_ns=fields.figure("dispatch_ns", positive=False),
        transfer_bytes_per_s=fields.figure("transfer_bytes_per_s") if "transfer_bytes_per_s" in fields else None,
        transfer_ns=fields.figure("transfer_ns", positive=False),
        unified_memory=fields.flag("unified_memory"),
        memory_bytes=fields.figure("memory_bytes"),
        power=read_power(fields.inner("power"), clusters=len(clusters)) if "power" in fields else None,
    )
    fields.finish()
    return profile


def _read_delegate(fields: Fields, folder: Traversable | Path) -> Coverage:
    if fields.is_object("delegate"):
        return read_coverage(fields.inner("delegate"))
    name = fields.text("delegate")
    if name.endswith(".json"):
        return read_coverage(read_fields(folder / name))
    delegates = _folder() / "delegates"
    known = sorted(entry.name.removesuffix(".json") for entry in delegates.iterdir() if entry.name.endswith(".json"))
    if name not in known:
        raise fields.error(
            "delegate", f"there is no list of operators {name!r}", f"{', '.join(known)}, a file, or the list itself"
        )
    return read_coverage(read_fields(delegates / f"{name}.json"))
