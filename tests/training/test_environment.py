"""The environment that agents learn in: Gymnasium's own checks, and rewards that add up to the makespan."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from parallax.errors import ConfigError
from parallax.schedule.placement import BranchFeatures, Episode
from tests.training._small import needs_extra, random_examples

pytestmark = needs_extra


def environment(count: int = 6):
    from parallax.training._environment import Course, PlacementEnvironment

    return PlacementEnvironment([Course(features=example.features) for example in random_examples(count)])


def test_it_passes_gymnasiums_checker() -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        # The one thing it warns of: an environment that draws nothing is no worse for it.
        warnings.simplefilter("error")
        check_env(environment(), skip_render_check=True)


@pytest.mark.parametrize("seed", range(8))
def test_rewards_add_up_to_the_makespan(seed: int) -> None:
    made = environment()
    _, told = made.reset(seed=seed)
    first = made.episode.bound_ns
    features, reference = made.episode.features, made.episode.reference_ns
    generator = np.random.default_rng(seed)
    total, is_done, chosen = 0.0, False, []
    while not is_done:
        action = generator.uniform(-1, 1, 1).astype(np.float32)
        chosen.append(bool(action[0] > 0))
        _, reward, is_done, is_cut, ended = made.step(action)
        assert not is_cut
        total += reward
    replayed = Episode(features)
    for on_device in chosen:
        replayed.step(on_device)
    assert ended["makespan_ns"] == replayed.bound_ns
    assert total == pytest.approx(10 * (first - replayed.bound_ns) / reference, abs=1e-9)
    assert total <= 1e-12
    assert told["course"] in range(6)


def test_an_action_is_snapped_at_0() -> None:
    for value, side in ((1.0, True), (1e-6, True), (0.0, False), (-0.3, False)):
        made = environment(1)
        made.reset(options={"course": 0})
        made.step(np.array([value], np.float32))
        assert made.episode.on_device[0] is side


def test_a_course_can_be_named_and_the_advice_is_seen() -> None:
    from parallax.training._environment import Course, PlacementEnvironment

    example = random_examples(1)[0]
    rows = len(example.features.shown)
    plain = Course(features=example.features)
    advised = Course(features=example.features, advice=(5.0,) * rows, thresholds=(0.5, 0.5))
    made = PlacementEnvironment([plain, advised])
    first, _ = made.reset(options={"course": 0})
    second, _ = made.reset(options={"course": 1})
    assert (first != second).sum() >= 2


def test_problems_without_a_choice_are_refused() -> None:
    from dataclasses import replace

    from parallax.training._environment import Course, PlacementEnvironment

    problem = random_examples(1)[0].features.problem
    device_costs = problem.devices[0]
    refusal = next(
        entry for example in random_examples(30) for entry in example.features.problem.devices[0].declined if entry
    )
    nothing = replace(problem, devices=(replace(device_costs, declined=(refusal,) * len(device_costs.declined)),))
    with pytest.raises(ConfigError, match="device takes anything"):
        PlacementEnvironment([Course(features=BranchFeatures.of(nothing))])
