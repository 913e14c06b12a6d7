"""The energy of a run as a model has it, where no meter tells; meters are in `parallax.machine`."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.energy._comparison import EnergyComparison
    from parallax.energy._host import unknown_host
    from parallax.energy._model import Band, ModelledEnergy, PowerModel, model_busy_energy
    from parallax.energy._usage import Usage
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_comparison": "EnergyComparison",
            "_host": "unknown_host",
            "_model": "Band ModelledEnergy PowerModel model_busy_energy",
            "_usage": "Usage",
        },
    )

__all__ = [
    "Band",
    "EnergyComparison",
    "ModelledEnergy",
    "PowerModel",
    "Usage",
    "model_busy_energy",
    "unknown_host",
]
