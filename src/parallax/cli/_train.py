"""``parallax train``: train networks that place models on devices, and show what they are worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def train_networks(
    *,
    steps: int | None,
    seed: int | None,
    resume: Path | None,
    devices: Sequence[str],
    models: Sequence[str],
    output: Path | None,
    cache_dir: str | os.PathLike[str] | None,
    screen: Screen,
) -> None:
    """Train, or go on training in ``resume``; what that folder was begun with may be left out."""
    require_extra()
    settings, folder = _settings(steps, seed, resume, devices, models, output, cache_dir, screen)
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
        "settings": settings.told(),
        "history": [dict(entry) for entry in made.history],
        "judged": [
            {"name": entry.name, "mean_regret": entry.mean_regret, "worst_regret": entry.worst_regret}
            for entry in made.judged
        ],
    }
    screen.show(report, lambda console: _render(console, made, settings, policy))


def _settings(
    steps: int | None,
    seed: int | None,
    resume: Path | None,
    devices: Sequence[str],
    models: Sequence[str],
    output: Path | None,
    cache_dir: str | os.PathLike[str] | None,
    screen: Screen,
) -> tuple[TrainingSettings, Path]:
    """What is trained, and where."""
    given: dict[str, Any] = {"steps": steps, "seed": seed}
    told: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    profiles = tuple(dict.fromkeys(device_profile(name) for name in _listed(devices)))
    labels = _listed(models)
    if resume is not None:
        if output is not None and output.resolve() != resume.resolve():
            raise ConfigError("--output names another folder than --resume", fix="leave --output out")
        begun = read_settings(resume)
        asked = {**told, **({"devices": list(profiles)} if profiles else {}), **({"models": labels} if labels else {})}
        differing = [key for key, value in asked.items() if begun[key] != value]
        if differing:
            raise ConfigError(
                f"the training in {str(resume)!r} was begun with another --{differing[0].replace('devices', 'device')}",
                fix="leave it out, or train anew in another folder",
            )
        told = {"steps": begun["steps"], "seed": begun["seed"]}
        labels, profiles = begun["models"], tuple(begun["devices"])
        judged, judged_on = begun["judged_models"], tuple(begun["judged_devices"])
    else:
        if output is None:
            raise ConfigError("nowhere to write to", fix="name a folder with --output")
        if (output / CHECKPOINT_NAME).exists():
            raise ConfigError(
                f"{str(output)!r} holds a training already", fix=f"add --resume {output}, or name another folder"
            )
        labels = labels or [f"{ZOO_PREFIX}{name}" for name in zoo.names() if name not in JUDGED_MODELS]
        profiles = profiles or tuple(name for name in profile_names() if name != JUDGED_DEVICE)
        judged = [label for label in (f"{ZOO_PREFIX}{name}" for name in JUDGED_MODELS) if label not in labels]
        judged_on = (JUDGED_DEVICE, _ALSO_JUDGED_ON) if judged else ()

    def opened(names: Sequence[str]) -> tuple[TrainingModel, ...]:
        return tuple(_training_model(name, screen, cache_dir) for name in names)

    settings = TrainingSettings(
        **told,
        models=opened(labels),
        devices=profiles,
        judged_models=opened(judged),
        judged_devices=judged_on,
    )
    return settings, output if resume is None and output is not None else resume or Path()


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
