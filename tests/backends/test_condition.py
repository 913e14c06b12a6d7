"""Emulated devices that become slower while time passes: in what runs take, not in what is told beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallax.backends import CompileOptions, open_backend
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._condition import Condition, ConditionStep, load_condition
from parallax.backends.emulated._profiles import load_profile
from parallax.errors import ConfigError
from tests.backends._backends import compiled, value
from tests.backends.test_emulated import WORK, HandClock, chain, floats

STEPS = (ConditionStep(at_s=10.0, device=4.0, launch=2.0), ConditionStep(at_s=20.0))


def written(folder: Path, content: Any) -> Path:
    path = folder / "condition.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_runs_take_longer_by_the_step_in_force_and_prices_say_nothing_of_it() -> None:
    clock = HandClock()
    backend = EmulatedBackend(load_profile("pixel-6-gpu"), speed=0.1, clock=clock, condition=Condition(steps=STEPS))
    opened = clock.now()
    price = backend.price(WORK)
    model = compiled(backend, chain(), options=CompileOptions(work=WORK))
    x = value(floats(1, 4, 8))

    def took_ns() -> float:
        begin = clock.now()
        model.run_with_ort_values({"x": x}, model.interface.output_names)
        return (clock.now() - begin) * 1e9

    assert took_ns() == pytest.approx(price.total_ns, abs=20_000)
    clock.sleep(opened + 11 - clock.now())
    slow_ns = 2 * price.launch_ns + 4 * price.compute_ns + price.transfer_ns
    assert slow_ns > 1.5 * price.total_ns
    assert took_ns() == pytest.approx(slow_ns, abs=20_000)
    assert backend.price(WORK) == price
    clock.sleep(opened + 21 - clock.now())
    assert took_ns() == pytest.approx(price.total_ns, abs=20_000)


def test_a_file_may_be_named_as_an_option_or_in_the_name(tmp_path: Path) -> None:
    path = written(tmp_path, {"format": 1, "steps": [{"at_s": 0, "device": 3, "launch": 1.5}]})
    assert load_condition(path) == Condition(steps=(ConditionStep(at_s=0.0, device=3.0, launch=1.5),))
    for backend in (
        open_backend("emulated:pixel-6-gpu", {"speed": 1, "condition": str(path)}),
        open_backend(f"emulated:pixel-6-gpu?condition={path}", {"speed": 1}),
    ):
        assert isinstance(backend, EmulatedBackend)
        assert backend.condition_at(backend._queue.clock.now()).device == 3.0
        assert backend.info.name == "emulated:pixel-6-gpu"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not JSON"),
        ({"format": 2, "steps": []}, "found 2"),
        ({"format": 1, "steps": []}, "found \\[\\]"),
        ({"format": 1, "steps": [{"at_s": 0, "device": 0, "launch": 1}]}, "found 0"),
        ({"format": 1, "steps": [{"at_s": -1, "device": 1, "launch": 1}]}, "found -1"),
        ({"format": 1, "steps": [{"at_s": 0, "device": "slow", "launch": 1}]}, "found 'slow'"),
        ({"format": 1, "steps": [{"at_s": 0, "device": 1}]}, "'launch' is missing"),
        ({"format": 1, "steps": [{"at_s": 0, "device": 1, "launch": 1, "speed": 1}]}, "unknown field 'speed'"),
        ({"format": 1, "steps": [{"at_s": at, "device": 1, "launch": 1} for at in (5, 5)]}, "order of their times"),
    ],
)
def test_a_file_that_is_no_condition_is_refused(tmp_path: Path, content: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load_condition(written(tmp_path, content))


@pytest.mark.parametrize("name", ["?speed=2", "?condition=", "?condition"])
def test_what_stands_after_a_name_must_be_a_condition(name: str) -> None:
    with pytest.raises(ConfigError, match="after the name of an emulated device"):
        open_backend(f"emulated:pixel-6-gpu{name}", {"speed": 1})


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        open_backend("emulated:pixel-6-gpu", {"condition": "nowhere.json"})


def test_who_opens_a_device_again_finds_it_as_it_is_by_then(tmp_path: Path) -> None:
    path = written(tmp_path, {"format": 1, "steps": [{"at_s": 0, "device": 2, "launch": 1}]})
    first, second = (open_backend(f"emulated:pixel-6-gpu?condition={path}", {"speed": 1}) for _ in range(2))
    other = open_backend(f"emulated:p30-pro-gpu?condition={path}", {"speed": 1})
    assert isinstance(first, EmulatedBackend)
    assert isinstance(second, EmulatedBackend)
    assert isinstance(other, EmulatedBackend)
    assert first.since == second.since
    assert other.since != first.since
    began = first.since.moment
    del first, second
    anew = open_backend(f"emulated:pixel-6-gpu?condition={path}", {"speed": 1})
    assert isinstance(anew, EmulatedBackend)
    assert anew.since.moment > began
