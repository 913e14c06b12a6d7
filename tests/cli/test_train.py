"""What `parallax train` makes of its options, which takes no part of the extra ``train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallax.cli._train import (
    JUDGED_DEVICE,
    JUDGED_MODELS,
    AskedTraining,
    _Choices,
    _new_training,
    _resumed_training,
)
from parallax.errors import ConfigError
from parallax.training import CHECKPOINT_NAME, TrainingModel, TrainingSettings
from parallax.training._settings import SETTINGS_NAME


def asked(**given: Any) -> AskedTraining:
    nothing: dict[str, Any] = {"steps": None, "seed": None, "resume": None, "devices": (), "models": (), "output": None}
    return AskedTraining(**{**nothing, "ablations": False, **given})


def test_by_default_it_learns_from_all_but_what_it_is_judged_by(tmp_path: Path) -> None:
    choices = _new_training(asked(output=tmp_path))
    judged = [f"zoo:{name}" for name in JUDGED_MODELS]
    assert choices.judged_models == judged
    assert JUDGED_DEVICE in choices.judged_devices
    assert choices.models
    assert not set(choices.models) & set(judged)
    assert JUDGED_DEVICE not in choices.devices
    assert (choices.numbers, choices.folder) == ({}, tmp_path)


def test_what_is_learned_from_is_not_judged_by(tmp_path: Path) -> None:
    choices = _new_training(
        asked(output=tmp_path, models=[f"zoo:{JUDGED_MODELS[0]}", *JUDGED_MODELS], devices=["pixel-6-gpu"], seed=7)
    )
    assert f"zoo:{JUDGED_MODELS[0]}" in choices.models
    assert f"zoo:{JUDGED_MODELS[0]}" not in choices.judged_models
    assert choices.devices == ["pixel-6-gpu"]
    assert choices.numbers == {"seed": 7}


def test_a_folder_is_needed_that_holds_no_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere to write to"):
        _new_training(asked())
    (tmp_path / CHECKPOINT_NAME).touch()
    with pytest.raises(ConfigError, match="holds a training already"):
        _new_training(asked(output=tmp_path))


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    settings = TrainingSettings(
        steps=1000, seed=3, models=(TrainingModel(label="zoo:swin-t", path=tmp_path / "m"),), devices=("pixel-6-gpu",)
    )
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(settings.to_json()), encoding="utf-8")
    return tmp_path


def test_what_was_begun_goes_on_as_it_was(begun: Path) -> None:
    expected = _Choices(
        numbers={"steps": 1000, "seed": 3},
        models=["zoo:swin-t"],
        devices=["pixel-6-gpu"],
        judged_models=[],
        judged_devices=[],
        folder=begun,
        ablations=False,
    )
    for same in ({}, {"seed": 3}, {"models": ["zoo:swin-t"]}, {"output": begun}):
        assert _resumed_training(asked(resume=begun, **same), begun) == expected


def test_ablations_can_be_asked_for_later_and_are_kept(begun: Path) -> None:
    assert _resumed_training(asked(resume=begun, ablations=True), begun).ablations
    settings = json.loads((begun / SETTINGS_NAME).read_text(encoding="utf-8"))
    (begun / SETTINGS_NAME).write_text(json.dumps({**settings, "ablations": True}), encoding="utf-8")
    assert _resumed_training(asked(resume=begun), begun).ablations


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 4}, "--seed"),
        ({"steps": 200}, "--steps"),
        ({"models": ["zoo:yolov8n"]}, "--models"),
        ({"devices": ["p30-pro-gpu"]}, "--device"),
        ({"output": Path("elsewhere")}, "--output"),
    ],
)
def test_what_was_begun_otherwise_is_refused_by_name(begun: Path, other: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _resumed_training(asked(resume=begun, **other), begun)
