"""Energy meters, on sysfs trees as machines have them: counters that begin anew, files that one may not read, rails."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import BackendError
from parallax.machine import Counts, EnergyRecorder, EnergySum, FoundMeter, find_meters

LAPTOP = {
    # Zones as an Intel laptop has them; the mmio one counts the package again.
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "5000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "2000000",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:1/name": "psys",
    "sys/class/powercap/intel-rapl:1/energy_uj": "9000000",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "5000000",
    "sys/class/powercap/intel-rapl/enabled": "1",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/power_now": "7500000",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery",
    "sys/class/power_supply/hidpp_battery_0/scope": "Device",
    "sys/class/power_supply/hidpp_battery_0/status": "Discharging",
    "sys/class/hwmon/hwmon0/name": "coretemp",
}

ORIN = {
    # hwmon of a Jetson Orin Nano with JetPack 5 or 6.
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon3/in1_input": "5000",
    "sys/class/hwmon/hwmon3/curr1_input": "1200",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon3/in2_input": "4990",
    "sys/class/hwmon/hwmon3/curr2_input": "400",
    "sys/class/hwmon/hwmon3/in3_label": "VDD_SOC",
    "sys/class/hwmon/hwmon3/in3_input": "4990",
    "sys/class/hwmon/hwmon3/curr3_input": "300",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon3/in7_input": "12",
}

XAVIER = {
    # NVIDIA's older driver, JetPack 4.
    "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0/rail_name_0": "POM_5V_IN",
    "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0/in_power0_input": "4321",
    "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0/rail_name_1": "POM_5V_GPU",
    "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0/in_power1_input": "987",
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def by_name(found: tuple[FoundMeter, ...]) -> dict[str, FoundMeter]:
    return {meter.info.name: meter for meter in found}


def test_a_laptop_has_counters_and_a_battery(tmp_path: Path) -> None:
    found = by_name(find_meters(root=tree(tmp_path, LAPTOP)))
    assert set(found) == {"rapl:package-0", "rapl:core-0", "rapl:psys", "battery:BAT0"}
    package, battery = found["rapl:package-0"].meter, found["battery:BAT0"].meter
    assert package is not None
    assert battery is not None
    assert package.info.counts is Counts.ENERGY
    assert package.read() == pytest.approx(5.0)
    assert package.range_joules == pytest.approx(262143.32885)
    assert battery.info.counts is Counts.POWER
    assert battery.read() == pytest.approx(7.5)
    assert battery.range_joules is None


def test_a_battery_may_tell_current_and_voltage(tmp_path: Path) -> None:
    files = {
        "sys/class/power_supply/BAT1/type": "Battery",
        "sys/class/power_supply/BAT1/status": "Discharging",
        "sys/class/power_supply/BAT1/current_now": "-1500000",
        "sys/class/power_supply/BAT1/voltage_now": "12000000",
    }
    (found,) = find_meters(root=tree(tmp_path, files))
    assert found.meter is not None
    assert found.meter.read() == pytest.approx(18.0)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_on_the_mains_says_why_it_is_of_no_use(tmp_path: Path, status: str) -> None:
    tree(tmp_path, {**LAPTOP, "sys/class/power_supply/BAT0/status": status})
    found = by_name(find_meters(root=tmp_path))["battery:BAT0"]
    assert found.meter is None
    assert found.obstacle is not None
    assert status.lower() in found.obstacle
    assert found.remedy == "unplug the power supply"


def test_a_counter_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tree(tmp_path, LAPTOP) / "sys/class/powercap/intel-rapl:0/energy_uj"
    read_text = Path.read_text

    def refused(self: Path, *args: str, **keywords: str) -> str:
        if self == counter:
            raise PermissionError(13, "Permission denied", str(counter))
        return read_text(self, *args, **keywords)

    monkeypatch.setattr(Path, "read_text", refused)
    everything = find_meters(root=tmp_path)
    found = by_name(everything)["rapl:package-0"]
    assert found.meter is None
    assert found.obstacle == f"this user may not read {counter}"
    assert found.remedy == f"as root: chmod a+r {counter}"
    assert everything[-1] is found, "those that can be used come first"


def test_the_rails_of_a_jetson_are_told_by_their_labels(tmp_path: Path) -> None:
    found = by_name(find_meters(root=tree(tmp_path, ORIN)))
    assert set(found) == {"ina3221:VDD_IN", "ina3221:VDD_CPU_GPU_CV", "ina3221:VDD_SOC"}
    total = found["ina3221:VDD_IN"]
    assert total.meter is not None
    assert total.meter.read() == pytest.approx(6.0)
    assert total.info.covers == "the whole board"
    assert found["ina3221:VDD_SOC"].info.covers == "the rail VDD_SOC"


def test_so_are_those_of_older_ones(tmp_path: Path) -> None:
    found = by_name(find_meters(root=tree(tmp_path, XAVIER)))
    total = found["ina3221:POM_5V_IN"].meter
    assert total is not None
    assert total.read() == pytest.approx(4.321)
    assert total.info.covers == "the whole board"


def test_a_machine_without_meters_has_none(tmp_path: Path) -> None:
    assert find_meters(root=tmp_path) == ()


def test_rubbish_is_an_obstacle(tmp_path: Path) -> None:
    tree(tmp_path, {**LAPTOP, "sys/class/powercap/intel-rapl:0/energy_uj": "rubbish"})
    found = by_name(find_meters(root=tmp_path))["rapl:package-0"]
    assert found.meter is None
    assert "cannot be read" in (found.obstacle or "")


def test_a_meter_that_goes_away_says_so(tmp_path: Path) -> None:
    tree(tmp_path, ORIN)
    meter = by_name(find_meters(root=tmp_path))["ina3221:VDD_IN"].meter
    assert meter is not None
    with EnergyRecorder([meter], interval_s=10) as recorder:
        (tmp_path / "sys/class/hwmon/hwmon3/in1_input").unlink()
    (energy,) = recorder.energy()
    assert energy.failure is not None
    assert "cannot be read" in energy.failure
    assert energy.samples == 1
    with pytest.raises(BackendError, match="VDD_IN cannot be read"):
        meter.read()


def test_this_machine_can_be_asked() -> None:
    for found in find_meters():
        assert (found.meter is None) is (found.obstacle is not None)


@given(steps=st.lists(st.integers(0, 900), min_size=1, max_size=50), start=st.integers(0, 999))
def test_a_counter_that_begins_anew_loses_nothing(steps: list[int], start: int) -> None:
    total = EnergySum(Counts.ENERGY, 1000.0)
    value = start
    total.add(value, 0.0)
    for number, step in enumerate(steps, 1):
        value = (value + step) % 1000
        total.add(value, float(number))
    assert total.joules == pytest.approx(sum(steps))
    assert total.seconds == len(steps)


@given(watts=st.lists(st.floats(0, 1000), min_size=2, max_size=50))
def test_power_is_added_up_between_readings(watts: list[float]) -> None:
    total = EnergySum(Counts.POWER, None)
    for number, value in enumerate(watts):
        total.add(value, number / 2)
    between = sum((low + high) / 4 for low, high in itertools.pairwise(watts))
    assert total.joules == pytest.approx(between)


def test_a_recorder_reads_before_and_after(tmp_path: Path) -> None:
    counter = tree(tmp_path, LAPTOP) / "sys/class/powercap/intel-rapl:0/energy_uj"
    meter = by_name(find_meters(root=tmp_path))["rapl:package-0"].meter
    assert meter is not None
    ticks = iter(range(1000))
    with EnergyRecorder([meter], interval_s=60, clock=lambda: float(next(ticks))) as recorder:
        counter.write_text("8000000\n")
    (energy,) = recorder.energy()
    assert energy.joules == pytest.approx(3.0)
    assert energy.seconds == 1.0
    assert energy.mean_watts == pytest.approx(3.0)
    assert energy.samples == 2
    assert energy.failure is None
