"""This package trains networks that place models on devices: what `parallax train` does, with the extra ``train``.

It is the only one that uses torch, and what it exports can be imported without: torch is loaded when training begins.
Networks that it wrote are run by `parallax.planner`, which needs ONNX Runtime alone.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.training._extra import require_extra
    from parallax.training._judging import Judged
    from parallax.training._problems import TrainingModel, device_profile
    from parallax.training._settings import (
        CHECKPOINT_NAME,
        TrainedNetworks,
        TrainingSettings,
        read_settings,
    )
    from parallax.training._train import train
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_extra": "require_extra",
            "_judging": "Judged",
            "_problems": "TrainingModel device_profile",
            "_settings": "CHECKPOINT_NAME TrainedNetworks TrainingSettings read_settings",
            "_train": "train",
        },
    )

__all__ = [
    "CHECKPOINT_NAME",
    "Judged",
    "TrainedNetworks",
    "TrainingModel",
    "TrainingSettings",
    "device_profile",
    "read_settings",
    "require_extra",
    "train",
]
