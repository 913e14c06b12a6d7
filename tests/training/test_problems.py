"""Problems of models on emulated devices, and the settings that say which ones there are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from parallax.errors import ConfigError
from parallax.schedule.placement import BranchFeatures
from parallax.training import TrainingModel, TrainingSettings, device_profile, read_settings
from parallax.training._examples import gather_examples, gather_judged
from parallax.training._problems import drawn_states, model_problem, problems_in_states
from tests.training._small import small_settings


def test_a_problem_is_of_the_device_at_its_own_speed_and_the_same_every_time(tmp_path: Path) -> None:
    model = small_settings(tmp_path).models[0]
    one, two = (model_problem(model, "jetson-agx-orin") for _ in range(2))
    assert one.devices == two.devices
    assert one.costs == two.costs
    assert one.machine.cores == 12, "the board's, all alike"
    assert model_problem(model, "pixel-6-gpu").machine.cores == 4, "four equal ones for a phone's"


def test_states_slow_costs_and_the_first_is_nominal(tmp_path: Path) -> None:
    problem = model_problem(small_settings(tmp_path).models[0], "pixel-6-gpu")
    states = drawn_states(problem, 6, np.random.default_rng(0))
    found = [made for _, made in problems_in_states(problem, "two chains", states=states)]
    assert BranchFeatures.of(found[0]).branches.tolist() == BranchFeatures.of(problem).branches.tolist()
    assert all(sum(made.cpu_ns) >= sum(problem.cpu_ns) for made in found)
    assert any(sum(made.cpu_ns) > 1.5 * sum(problem.cpu_ns) for made in found)


def test_examples_follow_from_the_settings(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    told: list[tuple[int, int]] = []
    first = gather_examples(settings, noted=lambda done, total: told.append((done, total)))
    again = gather_examples(settings, noted=lambda done, total: None)
    assert [example.name for example in first] == [example.name for example in again]
    assert sum(example.name.startswith("two chains") for example in first) == settings.states_per_model
    assert len(first) > settings.random_problems // 2
    assert told[-1][0] == told[-1][1]
    assert len(gather_judged(settings)) == settings.judged_states


def test_a_model_of_unknown_shapes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    model = onnx.load(small_settings(tmp_path).models[0].path)
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "open"
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(ConfigError, match="leaves the shape"):
        model_problem(TrainingModel(label="open", path=path), "pixel-6-gpu")


@pytest.mark.parametrize("name", ["pixel-6-gpu", "emulated:pixel-6-gpu"])
def test_devices_go_by_profile_or_provider(name: str) -> None:
    assert device_profile(name) == "pixel-6-gpu"


@pytest.mark.parametrize(
    ("name", "words"), [("openvino:CPU", "no emulated device"), ("emulated:none-such", "none-such"), ("none", "none")]
)
def test_other_devices_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        device_profile(name)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"steps": 99}, "99 steps"), ({"seed": -1}, "seed of -1"), ({"devices": ("pixel-6-gpu",)}, "without")],
)
def test_settings_that_cannot_be_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainingSettings(**given)


def test_settings_are_read_as_they_were_told(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(settings.to_json()))
    assert read_settings(tmp_path) == settings.to_json()
    (tmp_path / "settings.json").write_text('{"format": 0}')
    with pytest.raises(ConfigError, match="another version"):
        read_settings(tmp_path)
    with pytest.raises(ConfigError, match="no training was begun"):
        read_settings(tmp_path / "none")
