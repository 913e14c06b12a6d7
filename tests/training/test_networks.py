"""Networks: what is exported is what was trained, in every length, and they learn what they are shown."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training._small import needs_extra, random_examples

pytestmark = needs_extra


@pytest.fixture(autouse=True)
def one_thread():
    """As a training has it: the answers of more threads differ from run to run."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed: int = 0):
    import torch

    from parallax.training._network import ProposerNetwork

    torch.manual_seed(seed)
    return ProposerNetwork()


def test_a_file_answers_as_the_network_does_and_is_the_same_every_time() -> None:
    from parallax.planner._learned import Network
    from parallax.training._export import proposer_file
    from parallax.training._imitation import advise

    trained = network()
    content = proposer_file(trained)
    assert 500_000 < len(content) < 700_000
    opened = Network(content, "a test")
    for example in random_examples(8):
        inclinations, thresholds = advise(trained, example.features)
        told = opened.advise(example.features)
        np.testing.assert_allclose(told.inclinations, inclinations, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(told.thresholds, thresholds, rtol=1e-5, atol=1e-5)
    assert proposer_file(trained) == content
    assert proposer_file(network(1)) != content
    assert b"stack_trace" not in content
    assert b".py" not in content


def test_a_network_that_is_exported_otherwise_is_an_internal_error() -> None:
    from parallax.errors import InternalError
    from parallax.training._export import _check, _inputs, proposer_file

    with pytest.raises(InternalError, match="something else"):
        _check(proposer_file(network()), network(1), [_inputs(1, 5)])


def test_absent_rows_change_nothing() -> None:
    import torch

    trained = network()
    example = random_examples(1)[0]
    rows = torch.from_numpy(example.features.branches[np.newaxis])
    machine = torch.from_numpy(example.features.machine[np.newaxis])
    size = rows.shape[1]
    padded = torch.cat((rows, torch.full((1, 9, rows.shape[2]), 3.0)), 1)
    present = torch.cat((torch.ones(1, size), torch.zeros(1, 9)), 1)
    with torch.no_grad():
        alone, few = trained(rows, torch.ones(1, size), machine)
        among, same = trained(padded, present, machine)
    np.testing.assert_allclose(among[:, :size], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(same, few, rtol=1e-5, atol=1e-5)
    assert not among[:, size:].any()


def test_a_proposer_learns_the_sides_that_it_is_shown() -> None:
    from parallax.training._imitation import advise, imitate, make_optimizer
    from parallax.training._labels import find_label

    examples = random_examples(16)
    labels = [find_label(example, evaluations=60) for example in examples]
    trained = network()
    optimizer = make_optimizer(trained)

    def right() -> float:
        hits = [
            (value > 0) == side
            for example, label in zip(examples, labels, strict=True)
            for value, side, movable in zip(
                advise(trained, example.features)[0], label.chosen, example.features.movable, strict=True
            )
            if movable
        ]
        return sum(hits) / len(hits)

    before = right()
    losses = [
        imitate(trained, optimizer, examples, labels, steps=range(first, first + 50), total=150, seed=first, noted=int)
        for first in (0, 50, 100)
    ]
    assert losses[2] < losses[0] / 2
    assert right() > max(before, 0.9)


def test_lessons_of_a_learner_say_which_side_is_better_where_it_got_to() -> None:
    from parallax.training._environment import Course
    from parallax.training._labels import find_label
    from parallax.training._scheduling import collect_lessons

    examples = random_examples(6)
    labels = [find_label(example, evaluations=200) for example in examples]
    courses = [Course(features=example.features) for example in examples]
    taught = collect_lessons(examples, labels, courses, decide=None, noted=int)
    movable = [row for example in examples for row in example.features.movable]
    chosen = [side for label in labels for side in label.chosen]
    assert taught.right.tolist() == [side for side, takes in zip(chosen, movable, strict=True) if takes]
    own = collect_lessons(examples, labels, courses, decide=lambda seen: True, noted=int)
    assert own.observations.shape == taught.observations.shape
    assert (own.observations != taught.observations).any()
    assert ((own.weights > 0) & (own.weights <= 1)).all()


def test_agents_of_all_kinds_decide_by_a_network_of_the_same_shapes() -> None:
    import torch

    from parallax.planner._learned import Network
    from parallax.schedule.placement import OBSERVATION_SIZE
    from parallax.training._environment import Course
    from parallax.training._export import scheduler_file
    from parallax.training._scheduling import actor_of, decision, make_agent, make_ppo

    courses = [Course(features=example.features) for example in random_examples(3)]
    agents = make_agent(courses, seed=0, steps=100), make_ppo(courses, seed=0, part_steps=25)
    actors = [actor_of(agent) for agent in agents]
    shapes = [
        {name: tuple(part.shape) for name, part in actor.state_dict().items() if name.startswith(("latent_pi.", "mu."))}
        for actor in actors
    ]
    assert shapes[0] == shapes[1]
    generator = np.random.default_rng(0)
    seen = generator.standard_normal((20, OBSERVATION_SIZE)).astype(np.float32)
    for agent, actor in zip(agents, actors, strict=True):
        opened = Network(scheduler_file(actor), "a test")
        for observation in seen:
            told = decision(actor, observation)
            action, _ = agent.predict(observation, deterministic=True)
            assert told == (float(action[0]) > 0) == opened.decide(observation)
    with torch.no_grad():
        before = actors[1].mu.bias.clone()
        agents[1].policy.action_net.bias += 1
        assert (actors[1].mu.bias != before).all(), "an actor shares its agent's parameters"


def test_ppo_takes_no_more_steps_than_it_is_told() -> None:
    from parallax.training._environment import Course
    from parallax.training._scheduling import learn, make_ppo

    courses = [Course(features=example.features) for example in random_examples(3)]
    agent = make_ppo(courses, seed=0, part_steps=50)
    seen: list[int] = []
    assert learn(agent, steps=51, seed=1, noted=seen.append) == 50
    assert seen[-1] == agent.num_timesteps == 50
