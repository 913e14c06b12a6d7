"""Teaching a scheduler: first by examples, on the states that it meets itself, then by rewards.

The actor is that of a soft actor-critic (SAC, Haarnoja et al., arXiv 1812.05905; stable-baselines3's) on one number
from -1 to 1 that is snapped at 0. Imitation with DAgger (Ross, Gordon and Bagnell, AISTATS 2011) comes first: what is
right for a branch is asked where the learner got to. For comparison, an agent of proximal policy optimisation (PPO,
Schulman et al., arXiv 1707.06347; stable-baselines3's) learns from rewards alone, with a network of the same shapes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from parallax.schedule.placement import Episode, QuickJudge
from parallax.training._arrays import Floats
from parallax.training._environment import Course, PlacementEnvironment
from parallax.training._labels import Example, Label

BATCH: Final = 256
_HIDDEN: Final = (256, 256)
_LEARNING_RATE: Final = 3e-4
_EVERY: Final = 4
"""Steps of the environment per gradient step."""

_LARGEST_GRADIENT: Final = 1.0
_ROLLOUT: Final = 2048
"""Most steps of the environment that PPO takes before it learns from them."""

_PPO_BATCH: Final = 64

Agent: TypeAlias = SAC | PPO


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Observations, and what would have been right for each."""

    observations: Floats
    """Of shape (lessons, `OBSERVATION_SIZE`)."""
    right: Floats
    """1 for the device, else 0."""
    weights: Floats
    """How much it matters, 0 to 1."""

    def joined(self, other: Lessons) -> Lessons:
        """Both, one after the other."""
        return Lessons(
            observations=np.concatenate((self.observations, other.observations)),
            right=np.concatenate((self.right, other.right)),
            weights=np.concatenate((self.weights, other.weights)),
        )


def make_agent(courses: Sequence[Course], *, seed: int, steps: int) -> SAC:
    """A new soft actor-critic for the environment of these courses. ``steps``: that it will take in all."""
    return SAC(
        "MlpPolicy",
        PlacementEnvironment(courses),
        learning_rate=_LEARNING_RATE,
        buffer_size=max(steps, BATCH),
        learning_starts=0,  # it begins with what it learned by imitation, not at random
        batch_size=BATCH,
        gamma=1.0,  # an episode ends, and its rewards add up to the makespan
        tau=0.005,
        train_freq=_EVERY,
        gradient_steps=1,
        ent_coef="auto_0.01",
        policy_kwargs={"net_arch": list(_HIDDEN)},
        seed=seed,
        device="cpu",
    )


def make_ppo(courses: Sequence[Course], *, seed: int, part_steps: int) -> PPO:
    """A new agent of proximal policy optimisation. ``part_steps``: that it will take per call of `learn`, at least."""
    rollout = part_steps // math.ceil(part_steps / _ROLLOUT)
    with warnings.catch_warnings():
        # The last batch of a rollout may be smaller than the others, which changes nothing that matters.
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        return PPO(
            "MlpPolicy",
            PlacementEnvironment(courses),
            learning_rate=_LEARNING_RATE,
            n_steps=rollout,
            batch_size=_PPO_BATCH,
            gamma=1.0,
            policy_kwargs={"net_arch": list(_HIDDEN), "activation_fn": nn.ReLU},
            seed=seed,
            device="cpu",
        )


def actor_of(agent: Agent) -> nn.Module:
    """The network that decides, whose ``latent_pi`` and ``mu`` have the same shapes for each kind of agent. It shares
    its parameters with the agent."""
    return agent.actor if isinstance(agent, SAC) else _PpoActor(agent.policy)


class _PpoActor(nn.Module):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.latent_pi, self.mu = policy.mlp_extractor.policy_net, policy.action_net


def decision(actor: nn.Module, observation: Floats) -> bool:
    """Whether the actor's mean action gives the branch to the device."""
    with torch.no_grad():
        return bool(mean_action(actor, torch.from_numpy(observation[np.newaxis]))[0, 0] > 0)


def mean_action(actor: nn.Module, observations: torch.Tensor) -> torch.Tensor:
    """What the actor does where it does not explore, (batch, 1), before it is bounded: of the same sign."""
    mean: torch.Tensor = actor.mu(actor.latent_pi(observations))
    return mean


def collect_lessons(
    examples: Sequence[Example],
    labels: Sequence[Label],
    courses: Sequence[Course],
    *,
    decide: Callable[[Floats], bool] | None,
    noted: Callable[[int], None],
) -> Lessons:
    """Place each problem once, and note what was right in each state.

    Args:
        decide: the learner, whose states they are; None: the label's own.
    """
    observations: list[Floats] = []
    right: list[bool] = []
    weights: list[float] = []
    for number, (example, label, course) in enumerate(zip(examples, labels, courses, strict=True), start=1):
        judge = example.judge()
        episode = course.begin()
        decided = [False] * len(label.chosen)
        while not episode.is_done:
            row, seen = episode.row, episode.observe()
            if decide is None:
                best, weight = label.chosen[row], 1.0
            else:
                best, weight = _better_side(example, judge, decided, label.chosen, row)
            observations.append(seen)
            right.append(best)
            weights.append(weight)
            decided[row] = best if decide is None else decide(seen)
            episode.step(decided[row])
        noted(number)
    return Lessons(
        observations=np.stack(observations),
        right=np.array(right, np.float32),
        weights=np.array(weights, np.float32),
    )


def _better_side(
    example: Example, judge: QuickJudge, decided: Sequence[bool], label: Sequence[bool], row: int
) -> tuple[bool, float]:
    """With which side of a branch the whole ends sooner, given those decided before it, and the label's after it; and
    how much that matters."""
    before = [*decided[:row]]
    here, there = (example.cost_ns(judge, [*before, side, *label[row + 1 :]]) for side in (False, True))
    if here == there:
        return label[row], 0.05
    difference = abs(here - there) / min(here, there)
    return there < here, min(1.0, 0.1 + 10 * difference)


def imitate_lessons(
    agent: SAC,
    optimizer: torch.optim.Optimizer,
    lessons: Lessons,
    *,
    steps: int,
    seed: int,
    noted: Callable[[int], None],
) -> None:
    """Take so many steps of gradient descent of the actor's mean action towards what was right."""
    generator = np.random.default_rng(seed)
    size = len(lessons.right)
    for step in range(1, steps + 1):
        drawn = generator.integers(size, size=min(BATCH, size))
        logits = mean_action(agent.actor, torch.from_numpy(lessons.observations[drawn]))[:, 0]
        right, weights = torch.from_numpy(lessons.right[drawn]), torch.from_numpy(lessons.weights[drawn])
        each = nn.functional.binary_cross_entropy_with_logits(2 * logits, right, reduction="none")
        loss = (each * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.actor.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        noted(step)


def make_actor_optimizer(agent: SAC) -> torch.optim.Optimizer:
    """What `imitate_lessons` takes its steps with."""
    return torch.optim.AdamW((*agent.actor.latent_pi.parameters(), *agent.actor.mu.parameters()), lr=1e-3)


def place(actor: nn.Module, course: Course) -> Episode:
    """The placement that the actor makes where it does not explore."""
    episode = course.begin()
    while not episode.is_done:
        episode.step(decision(actor, episode.observe()))
    return episode


def mean_cost(actor: nn.Module, examples: Sequence[Example], courses: Sequence[Course]) -> float:
    """Geometric mean of what the actor's placements take, by what the better side alone takes, both by the quick judge;
    the lower, the better."""
    shares = []
    for example, course in zip(examples, courses, strict=True):
        judge = example.judge()
        sides = ([False] * len(example.features.shown), example.features.movable)
        alone = min(example.cost_ns(judge, side) for side in sides)
        shares.append(example.cost_ns(judge, place(actor, course).choices()) / max(1, alone))
    return float(np.exp(np.mean(np.log(shares))))


def learn(agent: Agent, *, steps: int, seed: int, critic_alone: bool = False, noted: Callable[[int], None]) -> int:
    """Take so many steps in the environment, with what follows from them seeded anew, so that a run that was
    interrupted and went on does the same as one that was not.

    Args:
        steps: PPO leaves out those that would be no whole rollout.
        critic_alone: leave the actor of a soft actor-critic as it is. A critic that knows nothing would at once undo
            what the actor learned by imitation.

    Returns: how many steps were taken.
    """
    agent.set_random_seed(seed)
    agent._last_obs = None  # so that the environment begins anew with this seed, too
    if isinstance(agent, SAC):
        agent.actor.requires_grad_(not critic_alone)
    else:
        steps -= steps % agent.n_steps
    agent.learn(steps, callback=_Noting(noted), reset_num_timesteps=False)
    return steps


class _Noting(BaseCallback):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self, noted: Callable[[int], None]) -> None:
        super().__init__()
        self._noted = noted
        self._done = 0

    def _on_step(self) -> bool:
        self._done += 1
        self._noted(self._done)
        return True


# Checkpoints ------------------------------------------------------------------------------------------------

_BUFFER: Final = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def agent_state(agent: Agent) -> dict[str, Any]:
    """All that `learn` goes on from, as tensors and plain values."""
    state = {
        "parameters": agent.get_parameters(),
        "steps": int(agent.num_timesteps),
        "updates": int(agent._n_updates),
    }
    if isinstance(agent, SAC):  # PPO keeps no step longer than a call of `learn`
        buffer = agent.replay_buffer
        filled = buffer.size()
        state["buffer"] = {name: torch.from_numpy(getattr(buffer, name)[:filled].copy()) for name in _BUFFER}
        state["position"] = int(buffer.pos), bool(buffer.full)
    return state


def restore_agent(agent: Agent, state: Mapping[str, Any]) -> None:
    """Put an agent into a state that `agent_state` told."""
    agent.set_parameters(state["parameters"], exact_match=True, device="cpu")
    agent.num_timesteps, agent._n_updates = state["steps"], state["updates"]
    if isinstance(agent, SAC):
        buffer = agent.replay_buffer
        for name in _BUFFER:
            values = state["buffer"][name].numpy()
            getattr(buffer, name)[: len(values)] = values
        buffer.pos, buffer.full = state["position"]
