"""Training from settings to files, in a folder that keeps what an interrupted one had come to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from parallax.errors import ConfigError
from parallax.training._extra import require_extra
from parallax.training._files import write_whole
from parallax.training._settings import (
    SETTINGS_NAME,
    ProgressCallback,
    TrainedNetworks,
    TrainingSettings,
    read_settings,
)


def train(settings: TrainingSettings, folder: Path, *, progress: ProgressCallback | None = None) -> TrainedNetworks:
    """Train a proposer and a scheduler, and write them to a folder.

    Goes on where an earlier call with the same settings in this folder was interrupted; the result is the same as
    without the interruption. Ablations may be asked for later; once they were, later calls go on with them. One thread
    computes, and the process's global seeds are set, so that on one machine the same settings give the same files.

    Raises:
        MissingExtraError: the extra ``train`` is not installed.
        ConfigError: the folder holds another training, or cannot be written; or a model cannot be placed.
    """
    require_extra()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS_NAME).exists():
            begun = read_settings(folder)
            settings = replace(settings, ablations=settings.ablations or bool(begun.get("ablations")))
            if {**begun, "ablations": settings.ablations} != settings.to_json():
                raise ConfigError(
                    f"{str(folder)!r} holds a training with other settings", fix="name another folder with --output"
                )
        write_whole(folder / SETTINGS_NAME, json.dumps(settings.to_json(), indent=2).encode() + b"\n")
    except OSError as error:
        raise ConfigError(
            f"cannot write to {str(folder)!r}: {error.strerror or error}", fix="name another folder with --output"
        ) from error
    from parallax.training._run import run_training

    return run_training(settings, folder, progress=progress or _silent)


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody wants to know."""
