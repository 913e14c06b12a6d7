"""Other assumptions about the emulated phones: what the comparison would be if they held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from parallax.backends.emulated._profiles import DeviceProfile
from parallax.schedule.placement import Machine

CPU_SHARE = 0.43
"""Of its peak that the processor attains, after the Parallax paper's own figures (its latencies of these models on
CPUs, by their operations); the profiles take what a large matrix product attains."""

CONTENTION = 1.2
"""How much slower each of two computes that compute at the same time. This machine's cores were measured to slow each
other by a factor of 1 to 1.8, see ``simulation.md``; what a phone's memory does to its GPU is assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One thing that is taken to be other than in the profiles."""

    title: str
    profile: Callable[[DeviceProfile], DeviceProfile] = lambda profile: profile
    machine: Callable[[Machine], Machine] = lambda machine: machine


def with_float16(profile: DeviceProfile) -> DeviceProfile:
    """The accelerator computes in float16: at that rate, with half the bytes of its memory; copies stay as they are.

    That lowers precision, which Parallax does not do unless the profile says that the device does.
    """
    memory = replace(profile.memory_bytes_per_s, value=2 * profile.memory_bytes_per_s.value)
    peaks = {**profile.peak_flops, "float32": profile.peak_flops["float16"]}
    return replace(profile, peak_flops=peaks, memory_bytes_per_s=memory)


def with_slower_cpu(profile: DeviceProfile) -> DeviceProfile:
    return replace(profile, gemm_share=replace(profile.gemm_share, value=CPU_SHARE))


def with_erf(profile: DeviceProfile) -> DeviceProfile:
    """The delegate takes Erf where it takes Tanh, as if the converter had found the GELU that it is part of."""
    operators = profile.coverage.operators
    coverage = replace(profile.coverage, operators={**operators, "Erf": operators["Tanh"]})
    return replace(profile, coverage=coverage)


ASSUMPTIONS: Mapping[str, Assumption] = {
    "as_profiled": Assumption(title="as the profiles have it"),
    "float16": Assumption(title="a float16 accelerator", profile=with_float16),
    "slower_cpu": Assumption(title=f"the CPU at {CPU_SHARE} of its peak", profile=with_slower_cpu),
    "erf": Assumption(title="Erf taken by the delegate, as GELU", profile=with_erf),
    "contention": Assumption(
        title=f"contention for memory: {CONTENTION} times as slow for each other that computes",
        machine=lambda machine: replace(machine, contention=CONTENTION),
    ),
}
