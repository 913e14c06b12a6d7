"""Placement problems of real models on emulated devices, in states of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from parallax.adapt import HardwareState, in_state
from parallax.backends.emulated import PREFIX, load_profile, open_emulated
from parallax.errors import ConfigError
from parallax.model import load_model
from parallax.planner import DeviceStudy, PlanningContext, host_machine, with_constants
from parallax.profile import estimate_costs, fusion_safe_tensors, product_flops
from parallax.schedule.placement import PlacementProblem
from parallax.training._random_problems import random_state

UNEQUAL_CORES: Final = 4
"""Equal cores that stand for a phone's unequal ones; together they are as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingModel:
    """A model to learn from, or to be judged by."""

    label: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Of the inputs that it leaves open."""


def device_profile(name: str) -> str:
    """The profile of an emulated device, by the name it has among providers or its own.

    Raises: ConfigError for a device that is not emulated: nothing is measured while networks learn, so that the same
        seed gives the same networks.
    """
    prefix, found, rest = name.partition(":")
    if found and prefix != PREFIX:
        raise ConfigError(f"{name!r} is no emulated device", fix="give emulated:NAME, see `parallax devices`")
    profile = rest if found else name
    load_profile(profile)
    return profile


def model_problem(model: TrainingModel, device: str) -> PlacementProblem:
    """The problem of a model on a device in the nominal state, at the device's own speed. Takes a second at most.

    Args:
        device: the name of a profile.

    Raises: ConfigError if the shapes of the model's inputs are not known.
    """
    profile = load_profile(device)
    loaded = load_model(model.path, shapes=model.shapes)
    computed = with_constants(loaded)
    made = loaded if computed is None else computed.model
    still_open = [info.name for info in made.inferred().inputs if not info.is_static]
    if still_open:
        raise ConfigError(
            f"the model {model.label} leaves the shape of its input {still_open[0]!r} open",
            fix="name a model of fixed shapes, or one of the zoo",
        )
    clusters = profile.cpu
    cores = clusters[0].count if len(clusters) == 1 else UNEQUAL_CORES
    costs = estimate_costs(made.inferred(), cores=cores).times(product_flops(cores) / profile.cpu_gemm_flops)
    context = PlanningContext(made, cores=cores, costs=costs, fusion_safe=fusion_safe_tensors(made))
    device_costs = DeviceStudy(context, open_emulated(device, {"speed": 1.0}), costs).device_costs
    assert device_costs is not None  # a profile prices everything
    return PlacementProblem(
        graph=context.graph, groups=context.groups, devices=(device_costs,), costs=costs, machine=host_machine(cores)
    )


def problems_in_states(
    problem: PlacementProblem, label: str, *, states: Sequence[HardwareState]
) -> Iterator[tuple[str, PlacementProblem]]:
    """The problem in each state, with its name."""
    for number, state in enumerate(states):
        yield f"{label}, state {number}", in_state(problem, state)


def drawn_states(problem: PlacementProblem, count: int, generator: np.random.Generator) -> list[HardwareState]:
    """The nominal state, and others that are drawn."""
    device = problem.devices[0].device
    return [HardwareState(), *(random_state(generator, device) for _ in range(count - 1))]
