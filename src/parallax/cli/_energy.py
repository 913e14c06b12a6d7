"""Joules per run for ``bench --energy``: measured by each meter that can be read here, else modelled with a band.

An emulated device is on no machine that a meter could be read on: its phone or board is modelled by the power block of
its profile, whatever meters there are here. Modelled joules are never mixed with measured ones, and always marked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from parallax.backends import open_backend
from parallax.backends.emulated import PREFIX, DeviceProfile, load_profile
from parallax.bundle import Bundle, is_safe_to_open, read_bundle
from parallax.cli._open import Subject, open_shapes
from parallax.cli._providers import parse_providers
from parallax.cli._timing import Round, wait_until_quiet, wake
from parallax.cli._units import significant
from parallax.energy import ModelledEnergy, PowerModel, Usage, unknown_host
from parallax.errors import ConfigError
from parallax.machine import EnergyMeter, EnergyRecorder, FoundMeter, MeteredEnergy, find_meters
from parallax.model import load_model, slim_model
from parallax.options import Device, make_device
from parallax.planner import power_of, touched_bytes
from parallax.schedule import Plan, simulate_plan

MEASURED, MODELLED = "measured", "modelled"

ENERGY_SHARE: Final = 0.25
"""Of the time for measuring that goes to meters, which are read while one after the other runs without a pause."""

STRETCH_S: Final = 2.0
"""So long each runs for its meters, at most; meters that show power are read 50 times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySource:
    """Where joules come from here."""

    meters: tuple[EnergyMeter, ...] = ()
    """Those that are read; none where a model tells."""
    power: PowerModel | None = None
    """The model; None where meters tell."""
    time_factor: float = 1.0
    """How many times as long as here a run takes on the machine that is modelled."""
    what: str
    """What the joules are those of, for people."""
    found: tuple[FoundMeter, ...] = ()
    """All meters of this machine, also those that cannot be read."""

    @property
    def is_measured(self) -> bool:
        """Whether meters tell."""
        return bool(self.meters)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEnergy:
    """The energy of one of those that are compared."""

    metered: tuple[MeteredEnergy, ...] = ()
    runs: int = 0
    """That were made meanwhile."""
    modelled: ModelledEnergy | None = None
    obstacle: str = ""
    """Why there is no figure; "" where there is one."""

    def to_json(self) -> dict[str, Any]:
        """For the document."""
        if self.obstacle:
            return {"source": None, "obstacle": self.obstacle}
        if self.modelled is not None:
            return {
                "source": MODELLED,
                "joules_per_run": asdict(self.modelled.total),
                "parts": asdict(self.modelled),
            }
        return {
            "source": MEASURED,
            "runs": self.runs,
            "meters": [
                {
                    "meter": entry.meter,
                    "covers": entry.covers,
                    "joules_per_run": entry.joules / self.runs,
                    "mean_watts": entry.mean_watts,
                    "seconds": entry.seconds,
                    "samples": entry.samples,
                    "failure": entry.failure,
                }
                for entry in self.metered
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchEnergy:
    """What `bench --energy` found."""

    source: EnergySource
    rows: Mapping[str, RowEnergy] = field(default_factory=dict)
    """By label; those that no time was left for are missing."""
    remark: str = ""
    """What is left out of them; "" for nothing."""

    def to_json(self) -> dict[str, Any]:
        """What is said of all rows together."""
        return {
            "source": MEASURED if self.source.is_measured else MODELLED,
            "what": self.source.what,
            "remark": self.remark,
            "meters": [
                {
                    "meter": entry.info.name,
                    "covers": entry.info.covers,
                    "obstacle": entry.obstacle,
                    "remedy": entry.remedy,
                }
                for entry in self.source.found
            ],
        }


# Where joules come from -------------------------------------------------------------------------------


def source_for(subject: Subject, providers: Sequence[str], *, cores: int) -> EnergySource:
    """Where the joules of a subject's runs come from: of a bundle, by the devices that it was compiled for.

    Args:
        providers: devices as ``--provider`` takes them.
        cores: that the sessions may use.

    Raises: as `find_source`; ConfigError for a bundle's device that is read from a file and not among ``providers``.
    """
    devices = [make_device(*given) for given in parse_providers(providers) or ()]
    if subject.source.is_bundle:
        devices = _devices_of(read_bundle(subject.source.path, verify="never"), devices) or devices
    return find_source(devices, cores=cores)


def find_source(devices: Sequence[Device], *, cores: int) -> EnergySource:
    """Meters where some can be read and no device is emulated, else the model.

    Args:
        devices: that runs are planned for.
        cores: that the sessions may use.

    Raises: ConfigError for an emulated device whose profile has no power block, or whose speed was set by hand.
    """
    found = find_meters()
    emulated = [device for device in devices if _is_emulated(device.name)]
    if emulated:
        profiles = {f"{PREFIX}:{profile.name}": profile for profile in map(_profile_of, emulated)}
        first, *others = profiles.values()
        if any(device.options.get("speed", "host") != "host" for device in emulated):
            raise ConfigError(
                "an emulated device whose speed is set by hand does not say how long its phone would take",
                fix="leave speed out, or --energy",
            )
        host_flops = open_backend(emulated[0].name, emulated[0].options).host_flops
        return EnergySource(
            power=power_of(first, cores=cores, others=others),
            time_factor=1.0 if host_flops is None else host_flops / first.cpu_gemm_flops,
            what=f"{first.title}, by the power block of its profile, in the time that a run would take there",
            found=found,
        )
    meters = tuple(entry.meter for entry in found if entry.meter is not None)
    if meters:
        covered = ", ".join(f"{meter.info.name}, {meter.info.covers}" for meter in meters)
        return EnergySource(meters=meters, what=f"this machine, by its meters: {covered}", found=found)
    return EnergySource(
        power=unknown_host(cores),
        what=f"some machine of which {cores} cores are used, as nothing is known of this one's power",
        found=found,
    )


def _devices_of(bundle: Bundle, given: Sequence[Device]) -> list[Device]:
    """The emulated devices that a bundle was compiled for; those that lead to a file as the caller names them."""
    named = {device.name: device for device in given}
    found = []
    for asked in bundle.manifest.options.devices:
        if not _is_emulated(asked.name):
            continue
        if is_safe_to_open(asked):
            found.append(Device(name=asked.name, options=dict(asked.options)))
        elif asked.name in named:
            found.append(named[asked.name])
        else:
            raise ConfigError(
                f"this bundle was compiled for {asked.name}, and a bundle's word is not enough to read a file by",
                where=bundle.folder,
                fix="name it with its options yourself: --provider NAME,KEY=VALUE; or leave --energy out",
            )
    return found


def _is_emulated(name: str) -> bool:
    return name.partition(":")[0] == PREFIX


def _profile_of(device: Device) -> DeviceProfile:
    profile = load_profile(device.name.partition(":")[2].partition("?")[0])
    if profile.power is None:
        raise ConfigError(
            f"the profile {profile.name!r} does not say what its device draws",
            fix="add a block 'power' to it, as the profiles of Parallax have one; or leave --energy out",
        )
    return profile


# Measured ---------------------------------------------------------------------------------------------


def measure_rows(
    calls: Mapping[str, Callable[[], object]],
    meters: Sequence[EnergyMeter],
    *,
    remaining_s: Callable[[], float],
    rows: dict[str, RowEnergy],
) -> None:
    """Read meters while each runs without a pause, one after the other, and note the joules in ``rows``.

    Each has an equal share of the time that is left, and `STRETCH_S` at most; one run at least.

    Args:
        remaining_s: how much time is left; asked before each of them.
        rows: filled by label, so that what is known is there when the user stops it.
    """
    for left, (label, call) in zip(range(len(calls), 0, -1), calls.items(), strict=True):
        wait_until_quiet()
        wake(call)
        seconds = min(STRETCH_S, remaining_s() / left)
        runs = 0
        with EnergyRecorder(meters) as recorder:
            end = time.perf_counter() + seconds
            while not runs or time.perf_counter() < end:
                call()
                runs += 1
        rows[label] = RowEnergy(metered=recorder.energy(), runs=runs)


# Modelled ---------------------------------------------------------------------------------------------


def model_plan(source: EnergySource, plan: Plan, *, run_ns: float, touched_bytes: int) -> RowEnergy:
    """The joules of a run of a plan of ours that was measured to take ``run_ns``.

    For as long as a segment is predicted to compute, in proportion to how long the run is predicted to take.
    """
    power, makespan_ns = source.power, round(run_ns * source.time_factor)
    assert power is not None
    if len(plan.segments) == 1:
        cost_ns = [makespan_ns]
    else:
        ratio = makespan_ns / max(1, simulate_plan(plan).makespan_ns)
        cost_ns = [round(segment.cost_ns * ratio) for segment in plan.segments]
    usage = Usage.of_plan(plan, makespan_ns=makespan_ns, cost_ns=cost_ns, touched_bytes=touched_bytes)
    try:
        return RowEnergy(modelled=usage.energy(power))
    except ConfigError as error:
        return RowEnergy(obstacle=error.what)


def model_threads(source: EnergySource, threads: int, *, run_ns: float, touched_bytes: int) -> RowEnergy:
    """The joules of a run of ONNX Runtime, which keeps its threads busy as long as it lasts."""
    assert source.power is not None
    makespan_ns = round(run_ns * source.time_factor)
    usage = Usage(makespan_ns=makespan_ns, core_ns=makespan_ns * threads, touched_bytes=touched_bytes)
    return RowEnergy(modelled=usage.energy(source.power))


def energy_of(
    source: EnergySource,
    metered: Mapping[str, RowEnergy],
    subject: Subject,
    rounds: Sequence[Round],
    *,
    plans: Mapping[str, Plan],
    threads: Mapping[str, int],
    slim: bool,
) -> BenchEnergy:
    """What meters told; else the model's joules for all that were timed.

    Args:
        metered: by label; empty where a model tells.
        rounds: that count.
        plans: of our sessions, by label.
        threads: of ONNX Runtime's, by label.
        slim: whether our sessions run the model without what its zeros make superfluous.
    """
    if source.is_measured:
        return BenchEnergy(source=source, rows=metered)
    remark, theirs, ours = "", 0, 0
    if subject.source.is_bundle:
        remark = "without that of memory: a bundle does not say what operators read and write"
    else:
        model = load_model(subject.source.path, shapes=open_shapes(subject))
        theirs = ours = touched_bytes(model.inferred())
        if slim:
            ours = touched_bytes(slim_model(model).inferred())
    rows = {}
    for label in rounds[0].turns:
        run_ns = statistics.median(measured.turns[label].sample_ns for measured in rounds)
        if label in plans:
            rows[label] = model_plan(source, plans[label], run_ns=run_ns, touched_bytes=ours)
        else:
            rows[label] = model_threads(source, threads[label], run_ns=run_ns, touched_bytes=theirs)
    return BenchEnergy(source=source, rows=rows, remark=remark)


# For people -------------------------------------------------------------------------------------------


def energy_heading(energy: Mapping[str, Any]) -> str:
    """Of the table's column, in millijoules."""
    return "mJ/run" if energy["source"] == MEASURED else "mJ/run, modelled"


def energy_cell(row: Mapping[str, Any] | None) -> str:
    """The figure of a row: that of the first meter that was read to the end, or the model's with its band."""
    if row is None or row["source"] is None:
        return "-"
    if row["source"] == MEASURED:
        told = _whole(row)
        return _millijoules(told[0]["joules_per_run"]) if told else "-"
    band = row["joules_per_run"]
    low, typical, high = (_millijoules(band[name]) for name in ("low", "typical", "high"))
    return f"{typical} ({low} - {high})"


def _whole(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What meters told that were read to the end."""
    return [meter for meter in row.get("meters", ()) if meter["failure"] is None]


def _millijoules(joules: float) -> str:
    return significant(1e3 * joules)


def energy_notes(report: Mapping[str, Any]) -> list[str]:
    """Lines that say what the column is, what other meters told, and which meters could not be read."""
    energy = report["energy"]
    remark = f", {energy['remark']}" if energy["remark"] else ""
    lines = [f"energy, {energy['source']}: {energy['what']}{remark}"]
    for row in report["timings"]:
        told = row.get("energy")
        if told is None:
            continue
        if told["source"] is None:
            lines.append(f"energy of {row['label']} is not known: {told['obstacle']}")
        lines += [
            f"{row['label']}: {_millijoules(meter['joules_per_run'])} mJ/run by {meter['meter']}"
            for meter in _whole(told)[1:]
        ]
        lines += [
            f"{row['label']}: {meter['failure']}" for meter in told.get("meters", ()) if meter["failure"] is not None
        ]
    for meter in energy["meters"]:
        if meter["obstacle"] is not None:
            remedy = "" if meter["remedy"] is None else f" ({meter['remedy']})"
            lines.append(f"the meter {meter['meter']} was not read: {meter['obstacle']}{remedy}")
    return lines
