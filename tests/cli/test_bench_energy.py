"""``bench --energy``: joules of each meter that can be read, else modelled ones with a band, marked as such."""

from __future__ import annotations

import importlib.resources
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest

import parallax
from parallax.backends.emulated import load_profile, profile_names
from parallax.cli import _energy
from parallax.cli._energy import EnergySource, RowEnergy, find_source, measure_rows, model_plan, model_threads
from parallax.energy import Band, PowerModel
from parallax.errors import ConfigError
from parallax.machine import find_meters
from parallax.options import make_device
from parallax.planner import power_of
from tests.cli._models import affine, invoke
from tests.energy.test_model import plan_of
from tests.machine.test_energy import LAPTOP, ORIN, tree
from tests.model._pruned import losing
from tests.session.test_devices import CPU, two_branches

MS = 1_000_000
COUNTER = "sys/class/powercap/intel-rapl:0/energy_uj"


def bench(path: Path, *arguments: object) -> Any:
    return invoke("bench", path, "--runs", 2, "--threads", 1, "--no-tune", "--max-time", 20, "--energy", *arguments)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the command find the meters of a recorded sysfs tree."""

    def use(root: Path) -> Path:
        monkeypatch.setattr(_energy, "find_meters", lambda: find_meters(root=root))
        return root

    return use


@contextmanager
def counting(counter: Path, *, most_uj: int, step_uj: int) -> Iterator[None]:
    """A counter that goes up a thousand times a second, and begins anew at its end, as a processor's does."""
    stop = threading.Event()
    value = int(counter.read_text())

    def count() -> None:
        nonlocal value
        while not stop.wait(0.001):
            value = (value + step_uj) % most_uj
            # Whole or not at all, as the kernel shows it.
            temporary = counter.with_name("next")
            temporary.write_text(f"{value}\n")
            temporary.replace(counter)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_without_meters_the_model_tells_and_says_so_everywhere(tmp_path: Path, on: Any) -> None:
    on(tmp_path / "empty")
    path = affine(tmp_path / "m.onnx")
    report = json.loads(bench(path, "--json").stdout)
    assert report["energy"]["source"] == "modelled"
    assert "nothing is known of this one's power" in report["energy"]["what"]
    for row in report["timings"]:
        band = row["energy"]["joules_per_run"]
        assert row["energy"]["source"] == "modelled"
        assert 0 < band["low"] < band["typical"] < band["high"]
        parts = row["energy"]["parts"].values()
        assert sum(part["typical"] for part in parts) == pytest.approx(band["typical"])
    shown = " ".join(bench(path).stdout.split())
    assert "mJ/run, modelled" in shown
    assert "energy, modelled: some machine" in shown


def test_meters_that_can_be_read_tell_joules_of_each_run(tmp_path: Path, on: Any) -> None:
    root = on(tree(tmp_path / "laptop", {**LAPTOP, "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "6000000"}))
    path = affine(tmp_path / "m.onnx")
    with counting(root / COUNTER, most_uj=6_000_000, step_uj=20_000):  # anew some times a second
        report = json.loads(bench(path, "--json").stdout)
    assert report["energy"]["source"] == "measured"
    assert {meter["meter"] for meter in report["energy"]["meters"]} >= {"rapl:package-0", "battery:BAT0"}
    for row in report["timings"]:
        told = row["energy"]
        assert told["source"] == "measured"
        assert told["runs"] > 0
        by_meter = {entry["meter"]: entry for entry in told["meters"]}
        package, battery, still = by_meter["rapl:package-0"], by_meter["battery:BAT0"], by_meter["rapl:psys"]
        # 20 W at most: the counter's thread is late now and then, and never early.
        assert 1 < package["mean_watts"] <= 20.5
        assert package["joules_per_run"] * told["runs"] == pytest.approx(package["mean_watts"] * package["seconds"])
        assert battery["mean_watts"] == pytest.approx(7.5)
        assert still["joules_per_run"] == 0


def test_a_jetsons_rails_are_told_by_their_labels(tmp_path: Path, on: Any) -> None:
    on(tree(tmp_path / "orin", ORIN))
    shown = " ".join(bench(affine(tmp_path / "m.onnx")).stdout.split())
    assert "mJ/run" in shown
    assert "modelled" not in shown
    assert "energy, measured: this machine, by its meters: ina3221:VDD_IN, the whole board" in shown
    assert "mJ/run by ina3221:VDD_CPU_GPU_CV" in shown


def test_a_counter_that_may_not_be_read_is_named_with_what_would_help(
    tmp_path: Path, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = on(tree(tmp_path / "laptop", {name: text for name, text in LAPTOP.items() if "intel-rapl:0/" in name}))
    read_text = Path.read_text

    def refused(self: Path, *args: str, **keywords: str) -> str:
        if self == counter / COUNTER:
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *args, **keywords)

    monkeypatch.setattr(Path, "read_text", refused)
    report = json.loads(bench(affine(tmp_path / "m.onnx"), "--json").stdout)
    assert report["energy"]["source"] == "modelled"
    (meter,) = report["energy"]["meters"]
    assert meter["meter"] == "rapl:package-0"
    assert meter["obstacle"].startswith("this user may not read")
    assert meter["remedy"].startswith("as root: chmod a+r")


def test_a_meter_that_goes_away_says_so(tmp_path: Path) -> None:
    root = tree(tmp_path, ORIN)
    meters = [found.meter for found in find_meters(root=root) if found.meter is not None]
    rows: dict[str, RowEnergy] = {}
    gone = root / "sys/class/hwmon/hwmon3/in1_input"
    measure_rows({"a": lambda: gone.unlink(missing_ok=True)}, meters, remaining_s=lambda: 0.1, rows=rows)
    told = rows["a"].to_json()["meters"]
    assert "cannot be read" in told[0]["failure"]
    assert told[1]["failure"] is None


def test_an_emulated_phone_is_modelled_whatever_meters_there_are(tmp_path: Path, on: Any) -> None:
    on(tree(tmp_path / "laptop", LAPTOP))
    report = json.loads(bench(affine(tmp_path / "m.onnx"), "--provider", "emulated:pixel-6-gpu", "--json").stdout)
    assert report["energy"]["source"] == "modelled"
    assert "Google Pixel 6" in report["energy"]["what"]
    assert {row["energy"]["source"] for row in report["timings"]} == {"modelled"}


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_says_what_its_device_draws_with_sources_and_bands(name: str) -> None:
    profile = load_profile(name)
    assert profile.power is not None
    bands = profile.power.bands()
    assert len(bands) == len(profile.cpu) + 3
    for band in bands.values():
        assert 0 < band.low <= band.typical <= band.high
        assert band.low < band.high, "nothing of the kind is known exactly"
        assert band.source.strip()
    power = power_of(profile, cores=4)
    # Equal cores that stand for all of the profile's draw together what those draw.
    total = sum(cluster.count * band.typical for cluster, band in zip(profile.cpu, profile.power.core_w, strict=True))
    assert 4 * power.core_w.typical == pytest.approx(total)
    assert set(power.device_w) == {f"emulated:{name}"}


def test_a_phone_that_is_slower_than_this_processor_takes_longer_and_so_more_joules() -> None:
    own = load_profile("pixel-6-gpu").cpu_gemm_flops
    slow, same = (
        find_source([make_device("emulated:pixel-6-gpu", {"host_flops": flops})], cores=2) for flops in (2 * own, own)
    )
    assert slow.time_factor == pytest.approx(2 * same.time_factor)
    one, two = (model_threads(source, 2, run_ns=MS, touched_bytes=0).modelled for source in (same, slow))
    assert one is not None
    assert two is not None
    assert two.total.typical == pytest.approx(2 * one.total.typical)


POWER = PowerModel(static_w=Band.exactly(1.0), core_w=Band.exactly(2.0), device_w={"gpu": Band.exactly(4.0)})


def test_segments_are_busy_in_proportion_to_what_the_run_was_measured_to_take() -> None:
    source = EnergySource(power=POWER, what="a test")
    # 10 ms on a device and 10 ms on two cores beside it, measured to take 20 ms instead of 10.
    row = model_plan(source, plan_of(in_turn=False), run_ns=20 * MS, touched_bytes=0)
    assert row.modelled is not None
    assert row.modelled.static.typical == pytest.approx(0.02)
    assert row.modelled.cores.typical == pytest.approx(2 * 2.0 * 0.02)
    assert row.modelled.devices.typical == pytest.approx(4.0 * 0.02)
    unknown = EnergySource(power=PowerModel(static_w=POWER.static_w, core_w=POWER.core_w), what="a test")
    assert model_plan(unknown, plan_of(in_turn=False), run_ns=MS, touched_bytes=0).obstacle == (
        "the power of gpu is not known"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--callers", 2), "--energy is told of single runs"),
        (("--provider", "emulated:pixel-6-gpu,speed=3"), "speed is set by hand"),
    ],
)
def test_what_does_not_go_with_energy_is_refused(arguments: tuple[object, ...], complaint: str, tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    result = invoke("bench", path, "--energy", "--no-tune", "--max-time", 20, *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())


def test_a_profile_without_power_cannot_be_modelled(tmp_path: Path) -> None:
    profiles = importlib.resources.files("parallax.backends.emulated") / "profiles"
    content = json.loads((profiles / "pixel-6-gpu.json").read_text())
    del content["power"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="does not say what its device draws"):
        find_source([make_device(f"emulated:{path}", {})], cores=2)
    with pytest.raises(ConfigError, match="without a power block"):
        power_of(load_profile(path), cores=2)


def test_a_bundle_does_not_say_what_operators_touch_and_the_figures_say_that(tmp_path: Path, on: Any) -> None:
    on(tmp_path / "empty")
    path = affine(tmp_path / "m.onnx")
    assert invoke("compile", path, "-o", tmp_path / "m.plx", "--threads", 1).exit_code == 0
    result = invoke(
        *("bench", tmp_path / "m.plx", "--threads", 1, "--runs", 1, "--max-time", 20, "-i", "x=2", "--energy")
    )
    assert "without that of memory" in " ".join(result.stdout.split())


@pytest.mark.parametrize(("options", "is_told"), [({}, True), ({"float16": 1}, True), ({"speed": 1000}, False)])
def test_a_bundle_for_an_emulated_phone_is_modelled_as_that_phone(
    options: dict[str, Any], is_told: bool, tmp_path: Path, on: Any
) -> None:
    on(tree(tmp_path / "laptop", LAPTOP))
    bundle = parallax.compile(
        two_branches(), tmp_path / "m.plx", providers=[("emulated:pixel-6-gpu", options), CPU], min_gain=0, threads=2
    )
    result = invoke("bench", bundle, "--runs", 1, "--threads", 2, "--max-time", 20, "--energy", "--json")
    if not is_told:
        assert result.exit_code == 2
        assert "speed is set by hand" in result.stderr
        return
    report = json.loads(result.stdout)
    assert "Google Pixel 6" in report["energy"]["what"]
    ours = report["timings"][0]["energy"]
    assert ours["source"] == "modelled"
    assert ours["parts"]["devices"]["typical"] > 0


@pytest.mark.parametrize("provider", ["emulated:mine.json", "emulated:pixel-6-gpu?condition=hot.json"])
def test_a_device_that_a_bundle_may_not_lead_to_is_modelled_where_it_is_named(
    provider: str, tmp_path: Path, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    profiles = importlib.resources.files("parallax.backends.emulated") / "profiles"
    Path("mine.json").write_text((profiles / "pixel-6-gpu.json").read_text())
    Path("hot.json").write_text(json.dumps({"format": 1, "steps": [{"at_s": 0, "device": 2, "launch": 1}]}))
    for number, model in enumerate((two_branches(), affine(tmp_path / "m.onnx"))):  # the second has nothing for it
        name = f"{number}.plx"
        bundle = parallax.compile(model, name, providers=[provider, CPU], min_gain=0, threads=2)
        assert invoke("run", bundle, "--provider", provider, "--threads", 2).exit_code == 0
        arguments = ("bench", bundle, "--runs", 1, "--threads", 2, "--max-time", 20, "--energy", "--json")
        refused = invoke(*arguments)
        assert refused.exit_code == 2
        assert "word is not enough" in " ".join(refused.stderr.split())
        report = json.loads(invoke(*arguments, "--provider", provider).stdout)
        assert "Google Pixel 6" in report["energy"]["what"]


def test_a_slimmed_model_reads_and_writes_less_than_what_onnx_runtime_runs(tmp_path: Path, on: Any) -> None:
    on(tmp_path / "empty")
    made, _ = losing()
    onnx.save(made, tmp_path / "m.onnx")
    report = json.loads(bench(tmp_path / "m.onnx", "--slim", "--json").stdout)
    ours, *theirs = (row["energy"]["parts"]["memory"]["typical"] for row in report["timings"])
    assert 0 < ours < min(theirs)
