"""Small trainings: a few problems, few steps; and whether what training needs is installed here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from parallax.training import TrainingModel, TrainingSettings
from parallax.training._labels import Example
from parallax.training._random_problems import random_problem
from tests.planner.test_placers import two_chains

MISSING = [name for name in ("torch", "gymnasium", "stable_baselines3", "onnxscript") if find_spec(name) is None]

needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (the extra train)")


def random_examples(count: int, *, seed: int = 0) -> list[Example]:
    """So many random problems in which a device takes something."""
    found: list[Example] = []
    number = 0
    while len(found) < count:
        example = Example.of(f"random {number}", random_problem(np.random.default_rng((seed, number))))
        number += 1
        if example.can_decide:
            found.append(example)
    return found


def small_settings(folder: Path, *, steps: int = 120, seed: int = 0) -> TrainingSettings:
    """To learn from random problems and a model of two chains, and to be judged by the same on another device."""
    path = folder / "two_chains.onnx"
    if not path.exists():
        onnx.save_model(onnx.load_from_string(two_chains()), path)
    model = TrainingModel(label="two chains", path=path)
    return TrainingSettings(
        steps=steps,
        seed=seed,
        models=(model,),
        devices=("pixel-6-gpu",),
        judged_models=(model,),
        judged_devices=("jetson-orin-nano",),
    )
