"""The problems that a training learns from, and those that it is judged by: which ones follows from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from parallax.schedule.placement import PlacementProblem
from parallax.training._labels import Example
from parallax.training._problems import TrainingModel, drawn_states, model_problem, problems_in_states
from parallax.training._random_problems import random_problem
from parallax.training._settings import TrainingSettings

_RANDOM, _MODELS, _ORDER, _JUDGED = range(4)
"""What generators are seeded for, beside the training's own seed."""


def gather_examples(settings: TrainingSettings, *, noted: Callable[[int, int], None]) -> list[Example]:
    """Random problems, and the models on the devices in some states of the machine; mixed, without those of which a
    device takes nothing. ``noted``: called with the number of problems made, and that of all."""
    pairs = len(settings.models) * len(settings.devices)
    total = settings.random_problems + pairs
    examples: list[Example] = []
    for number in range(settings.random_problems):
        problem = random_problem(np.random.default_rng((settings.seed, _RANDOM, number)))
        examples.append(Example.of(f"random {number}", problem))
        noted(len(examples), total)
    states = settings.states_per_model
    seeds = (settings.seed, _MODELS)
    for place, (name, problem) in enumerate(_of_models(settings.models, settings.devices, states, seeds), start=1):
        examples.append(Example.of(name, problem))
        noted(settings.random_problems + place // states, total)
    found = [example for example in examples if example.can_decide]
    order = np.random.default_rng((settings.seed, _ORDER)).permutation(len(found))
    return [found[place] for place in order]


def gather_judged(settings: TrainingSettings) -> list[PlacementProblem]:
    """Models that were not learned from, on devices of which one was not either, in states that were not."""
    seeds = (settings.seed, _JUDGED)
    found = _of_models(settings.judged_models, settings.judged_devices, settings.judged_states, seeds)
    return [problem for _, problem in found]


def _of_models(
    models: Sequence[TrainingModel], devices: Sequence[str], states: int, seeds: tuple[int, ...]
) -> list[tuple[str, PlacementProblem]]:
    found: list[tuple[str, PlacementProblem]] = []
    for place, model in enumerate(models):
        for number, device in enumerate(devices):
            problem = model_problem(model, device)
            drawn = drawn_states(problem, states, np.random.default_rng((*seeds, place, number)))
            found.extend(problems_in_states(problem, f"{model.label} on {device}", states=drawn))
    return found
