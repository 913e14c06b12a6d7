"""``parallax train``: train networks that place models on devices, and show what they are worth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from parallax import zoo
from parallax.backends.emulated import profile_names
from parallax.cli._console import Screen, make_table, print_line, print_table
from parallax.cli._models import ZOO_PREFIX, find_model
from parallax.errors import ConfigError
from parallax.model import load_model
from parallax.training import (
    CHECKPOINT_NAME,
    TrainedNetworks,
    TrainingModel,
    TrainingSettings,
    device_profile,
    read_settings,
    require_extra,
    train,
)

JUDGED_MODELS: Final = ("mobilenetv3-s", "swin-t", "yolov8n")
JUDGED_DEVICE: Final = "jetson-orin-nano"
"""Learned from only where they are named: what networks are worth is told by what they were not shown."""

_ALSO_JUDGED_ON: Final = "pixel-6-gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTraining:
    """Options of the command line that say what is trained, and where it is written."""

    steps: int | None
    seed: int | None
    resume: Path | None
    devices: Sequence[str]
    models: Sequence[str]
    output: Path | None
    ablations: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """Names of what is trained: settings whose models are not opened yet."""

    numbers: Mapping[str, int]
    """The steps and the seed, as far as they were given."""
    models: Sequence[str]
    devices: Sequence[str]
    judged_models: Sequence[str]
    judged_devices: Sequence[str]
    folder: Path
    ablations: bool


def train_networks(asked: AskedTraining, *, cache_dir: str | os.PathLike[str] | None, screen: Screen) -> None:
    """Train, or go on training in ``asked.resume``; what that folder was begun with may be left out."""
    require_extra()
    choices = _new_training(asked) if asked.resume is None else _resumed_training(asked, asked.resume)
    folder = choices.folder

    def opened(names: Sequence[str]) -> tuple[TrainingModel, ...]:
        return tuple(_training_model(name, screen, cache_dir) for name in names)

    settings = TrainingSettings(
        **choices.numbers,
        models=opened(choices.models),
        devices=tuple(choices.devices),
        judged_models=opened(choices.judged_models),
        judged_devices=tuple(choices.judged_devices),
        ablations=choices.ablations,
    )
    with screen.progress() as progress:
        try:
            made = train(settings, folder, progress=progress)
        except KeyboardInterrupt:
            if (folder / CHECKPOINT_NAME).exists():
                screen.notice(f"`parallax train --resume {folder}` goes on from the last checkpoint")
            raise
    policy = f"learned,network={made.proposer},scheduler={made.scheduler}"
    report = {
        "output": str(folder),
        "digest": made.digest,
        "policy": policy,
        "compared": {name: str(path) for name, path in made.compared.items()},
        "settings": settings.to_json(),
        "history": [dict(entry) for entry in made.history],
        "judged": [
            {"name": entry.name, "mean_regret": entry.mean_regret, "worst_regret": entry.worst_regret}
            for entry in made.judged
        ],
    }
    screen.show(report, lambda console: _render(console, made, settings, policy))


def _given_numbers(asked: AskedTraining) -> dict[str, int]:
    given = {"steps": asked.steps, "seed": asked.seed}
    return {name: value for name, value in given.items() if value is not None}


def _asked_profiles(asked: AskedTraining) -> list[str]:
    return list(dict.fromkeys(device_profile(name) for name in _listed(asked.devices)))


def _resumed_training(asked: AskedTraining, folder: Path) -> _Choices:
    """The training of a folder. Raises: ConfigError if something else is asked for than what it was begun with."""
    given: dict[str, Any] = {**_given_numbers(asked)}
    if profiles := _asked_profiles(asked):
        given["devices"] = profiles
    if labels := _listed(asked.models):
        given["models"] = labels
    if asked.output is not None and asked.output.resolve() != folder.resolve():
        raise ConfigError("--output names another folder than --resume", fix="leave --output out")
    begun = read_settings(folder)
    differing = [name for name, value in given.items() if begun[name] != value]
    if differing:
        raise ConfigError(
            f"the training in {str(folder)!r} was begun with another --{differing[0].replace('devices', 'device')}",
            fix="leave it out, or train anew in another folder",
        )
    return _Choices(
        numbers={"steps": begun["steps"], "seed": begun["seed"]},
        models=begun["models"],
        devices=begun["devices"],
        judged_models=begun["judged_models"],
        judged_devices=begun["judged_devices"],
        folder=folder,
        ablations=asked.ablations or bool(begun.get("ablations")),
    )


def _new_training(asked: AskedTraining) -> _Choices:
    """A training from the start. Raises: ConfigError unless there is a folder for it that holds none yet."""
    profiles, labels = _asked_profiles(asked), _listed(asked.models)
    if asked.output is None:
        raise ConfigError("nowhere to write to", fix="name a folder with --output")
    if (asked.output / CHECKPOINT_NAME).exists():
        raise ConfigError(
            f"{str(asked.output)!r} holds a training already",
            fix=f"add --resume {asked.output}, or name another folder",
        )
    labels = labels or [f"{ZOO_PREFIX}{name}" for name in zoo.names() if name not in JUDGED_MODELS]
    judged = [label for label in (f"{ZOO_PREFIX}{name}" for name in JUDGED_MODELS) if label not in labels]
    return _Choices(
        numbers=_given_numbers(asked),
        models=labels,
        devices=profiles or [name for name in profile_names() if name != JUDGED_DEVICE],
        judged_models=judged,
        judged_devices=(JUDGED_DEVICE, _ALSO_JUDGED_ON) if judged else (),
        folder=asked.output,
        ablations=asked.ablations,
    )


def _training_model(text: str, screen: Screen, cache_dir: str | os.PathLike[str] | None) -> TrainingModel:
    source = find_model(text, screen, cache_dir=None if cache_dir is None else Path(cache_dir))
    shapes = None
    if source.zoo_name is not None:
        feeds = zoo.example_inputs(source.zoo_name)
        still_open = [info.name for info in load_model(source.path).graph.inputs if not info.is_static]
        shapes = {name: tuple(feeds[name].shape) for name in still_open} or None
    return TrainingModel(label=text, path=source.path, shapes=shapes)


def _listed(texts: Sequence[str]) -> list[str]:
    """Names that were given one by one, or with commas between them."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _render(console: Console, made: TrainedNetworks, settings: TrainingSettings, policy: str) -> None:
    if made.judged:
        table = make_table("placed by", "mean regret", "worst regret")
        for entry in sorted(made.judged, key=lambda entry: entry.mean_regret):
            table.add_row(entry.name, f"{entry.mean_regret:.3f}", f"{entry.worst_regret:.3f}")
        print_table(console, table)
        judged = ", ".join(model.label for model in settings.judged_models)
        print_line(console, f"by simulation of {judged} on {', '.join(settings.judged_devices)}, not learned from")
    print_line(console, f'policy="{policy}"')
    print_line(console, f"digest: {made.digest}")
