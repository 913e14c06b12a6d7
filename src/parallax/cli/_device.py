"""A device of ``--provider``, opened as a session opens it, with the prices that its placement rests on."""

from __future__ import annotations

from dataclasses import dataclass

from parallax.backends import Backend, DeviceSpeed, measure_speed, open_backend
from parallax.cli._console import ProgressCallback
from parallax.cli._providers import parse_provider
from parallax.errors import ConfigError
from parallax.graph import Work
from parallax.options import make_device
from parallax.profile import product_flops
from parallax.schedule import CPU_BACKEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device to place work on, with prices."""

    name: str
    """It was asked for by."""
    opened: Backend
    """As a session that is not tuned has it."""
    backend: Backend
    """The same, with prices."""
    figures: str
    """Where its prices are from: "emulated", "probed" or "stated" (by the backend itself)."""
    note: str
    """The same for people, in a sentence."""
    cpu_factor: float = 1.0
    """What the tables' CPU times are to be multiplied by, to be comparable with the device's; what an emulated device
    asks for is the planner's affair."""
    speed: DeviceSpeed | None = None
    """As it was probed."""
    budget_bytes: int | None = None
    """What it may hold of the model; None: as much as it likes."""


def open_device(text: str, *, cores: int, progress: ProgressCallback) -> Device:
    """The backend of that name (and options, as `parse_provider` reads them), opened as a session opens it, with
    prices: its own, or by probing it, which runs small models on it.

    Raises: as `parallax.backends.open_backend`; ConfigError for the CPU itself; BackendError if probes fail.
    """
    asked = make_device(*parse_provider(text))
    name, budget_bytes = asked.name, asked.memory_bytes
    backend = open_backend(name, asked.options)
    if backend.info.name == open_backend(CPU_BACKEND).info.name:
        raise ConfigError(
            f"{name!r} is the CPU, which all others are compared with",
            fix="name another backend; `parallax devices` lists those there are",
        )
    if backend.info.is_emulated:
        factor = 1.0 if backend.host_flops is None else product_flops(cores) / backend.host_flops
        note = (
            f"Emulated: device figures are from the profile {backend.info.name.partition(':')[2]!r}, scaled to this "
            f"processor, and CPU times are the tables' times {factor:.2f}, as a matrix product on this CPU shows. They "
            "are a model, not measurements."
        )
        return Device(
            name=name, opened=backend, backend=backend, figures="emulated", note=note, budget_bytes=budget_bytes
        )
    nothing = Work(operators=())
    if backend.price(nothing) is not None and backend.transfer_ns(0) is not None:
        note = f"Device figures are those that {backend.info.name} states of itself."
        return Device(
            name=name, opened=backend, backend=backend, figures="stated", note=note, budget_bytes=budget_bytes
        )
    progress(f"probing {backend.info.name}", 0, 2)
    speed = measure_speed(backend, width=cores)
    progress(f"probing {backend.info.name}", 1, 2)
    here = measure_speed(open_backend(CPU_BACKEND), width=cores)
    progress(f"probing {backend.info.name}", 2, 2)
    factor = product_flops(cores) / here.flops_per_s
    note = (
        "Probed: device figures are from a few small probes run just now, and CPU times are the tables' "
        f"times {factor:.2f}, as a matrix product on this CPU shows. Tune to measure the model itself."
    )
    return Device(
        name=name,
        opened=backend,
        backend=backend.with_speed(speed),
        figures="probed",
        note=note,
        cpu_factor=factor,
        speed=speed,
        budget_bytes=budget_bytes,
    )
