"""One training from its beginning, or from where it was interrupted, to its files.

It is done in parts. Each begins from what the parts before it left, with seeds of its own, and ends with a checkpoint;
so it does not matter whether it was interrupted between two parts.
"""

from __future__ import annotations

import copy
import io
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np
import onnxruntime
import stable_baselines3
import torch
from stable_baselines3 import SAC

from parallax._hashing import sha256_hex
from parallax.errors import ConfigError
from parallax.planner import Learned
from parallax.schedule.placement import FEATURES_VERSION, PlacementProblem
from parallax.training._environment import Course, PlacementEnvironment
from parallax.training._examples import gather_examples, gather_judged
from parallax.training._export import proposer_file, scheduler_file
from parallax.training._files import write_whole
from parallax.training._imitation import advise, imitate, make_optimizer
from parallax.training._judging import Judged, judge_networks
from parallax.training._labels import Example, Label, find_label, improve_label
from parallax.training._network import ProposerNetwork
from parallax.training._scheduling import (
    Agent,
    Lessons,
    actor_of,
    agent_state,
    collect_lessons,
    decision,
    imitate_lessons,
    learn,
    make_actor_optimizer,
    make_agent,
    make_ppo,
    mean_cost,
    restore_agent,
)
from parallax.training._settings import CHECKPOINT_NAME, ProgressCallback, TrainedNetworks, TrainingSettings

PROPOSER_NAME: Final = "proposer.onnx"
SCHEDULER_NAME: Final = "scheduler.onnx"
IMITATION_NAME: Final = "scheduler-imitation.onnx"
CARD_NAME: Final = "card.json"

_TRAINED, _IMITATED, _SAC, _PPO = "trained", "DAgger alone", "SAC alone", "PPO"
"""Schedulers, by the names of their rows."""

_FILES: Final = {
    _TRAINED: SCHEDULER_NAME,
    _IMITATED: IMITATION_NAME,
    _SAC: "scheduler-sac.onnx",
    _PPO: "scheduler-ppo.onnx",
}
_FORMAT: Final = 2
_DAGGER_ROUNDS: Final = 2
_REWARD_PARTS: Final = 4
_LABELS_PER_CHECKPOINT: Final = 32
_VALIDATED: Final = 8
"""Every so manieth example is not learned from, but tells which of several agents is kept."""

_IMPROVING_SHARE: Final = 4
"""A label is improved by so much less evaluations than it was found by."""

_SHOWN: Final = 3_000
_CORRECTED: Final = 500
"""Courses that the scheduler is shown at first, and on which it is corrected per round, at most."""


def run_training(settings: TrainingSettings, folder: Path, *, progress: ProgressCallback) -> TrainedNetworks:
    """See `parallax.training.train`."""
    with _deterministic():
        training = _Training(settings, folder, progress)
        training.run()
        return training.finish()


@contextmanager
def _deterministic() -> Iterator[None]:
    threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(was_deterministic)


class _Training:
    """What is learned so far. Its parts run in order, each once."""

    def __init__(self, settings: TrainingSettings, folder: Path, progress: ProgressCallback) -> None:
        self._settings, self._folder, self._progress = settings, folder, progress
        examples = gather_examples(settings, noted=self._note("problems"))
        self._learned = [example for number, example in enumerate(examples, start=1) if number % _VALIDATED]
        self._validated = [example for number, example in enumerate(examples, start=1) if not number % _VALIDATED]
        self._network = self._new_network()
        self._optimizer = make_optimizer(self._network)
        self._labels: list[Label] = []
        self._lessons: Lessons | None = None
        self._history: list[dict[str, Any]] = []
        self._done = 0
        self._agent = self._new_agent()
        self._actor_optimizer = make_actor_optimizer(self._agent)
        self._by_rewards_alone = self._untrained_agents() if settings.ablations else {}
        self._best: dict[str, tuple[float, dict[str, Any]]] = {}
        self._restore()

    def run(self) -> None:
        """Do what is left to do."""
        for number, (name, part) in enumerate(self._parts()):
            if number < self._done:
                continue
            outcome = part()
            self._history.append({"part": name, **outcome})
            self._done = number + 1
            self._save()

    def _parts(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        yield "labels", self._find_labels
        for number in range(_DAGGER_ROUNDS + 1):
            yield f"proposer, round {number}", partial(self._teach_proposer, number)
        for number in range(_DAGGER_ROUNDS + 1):
            yield f"scheduler, round {number}", partial(self._teach_scheduler, number)
        for number in range(_REWARD_PARTS):
            yield f"rewards, part {number}", partial(self._learn_from_rewards, number)
        for name in self._by_rewards_alone:
            for number in range(_REWARD_PARTS):
                yield f"{name}, part {number}", partial(self._learn_from_rewards_alone, name, number)

    # Parts ------------------------------------------------------------------------------------------------

    def _find_labels(self) -> dict[str, Any]:
        noted = self._note("labels", total=len(self._learned))
        while len(self._labels) < len(self._learned):
            example = self._learned[len(self._labels)]
            self._labels.append(find_label(example, evaluations=self._settings.evaluations))
            noted(len(self._labels))
            if len(self._labels) % _LABELS_PER_CHECKPOINT == 0:
                self._save()
        return {"examples": len(self._labels), "branches": sum(len(label.chosen) for label in self._labels)}

    def _teach_proposer(self, number: int) -> dict[str, Any]:
        """Gradient steps; from the second round on after labels that the network itself led to."""
        improved = self._improve_labels(number) if number else 0
        total = self._settings.imitation_steps
        bounds = [total * place // (_DAGGER_ROUNDS + 2) for place in (0, 2, 3, 4)]
        steps = range(bounds[number], bounds[number + 1])
        loss = imitate(
            self._network,
            self._optimizer,
            self._learned,
            self._labels,
            steps=steps,
            total=total,
            seed=self._seed("proposer", number),
            noted=self._note(f"proposer, round {number}", total=len(steps)),
        )
        return {"steps": len(steps), "loss": loss, "labels_improved": improved}

    def _improve_labels(self, number: int) -> int:
        evaluations = max(10, self._settings.evaluations // _IMPROVING_SHARE)
        noted = self._note(f"labels, round {number}", total=len(self._learned))
        improved = 0
        for place, (example, label) in enumerate(zip(self._learned, self._labels, strict=True)):
            inclinations, _ = advise(self._network, example.features)
            proposed = [value > 0 for value in inclinations]
            self._labels[place] = improve_label(example, label, proposed, evaluations=evaluations)
            improved += self._labels[place] is not label
            noted(place + 1)
        return improved

    def _teach_scheduler(self, number: int) -> dict[str, Any]:
        """Gradient steps by what was right; from the second round on in the states that the scheduler itself meets."""
        courses = self._courses_learned
        drawn = np.random.default_rng(self._seed("courses", number)).permutation(len(courses))
        chosen = sorted(map(int, drawn[: _CORRECTED if number else _SHOWN]))
        found = collect_lessons(
            [self._learned[place] for place in chosen],
            [self._labels[place] for place in chosen],
            [courses[place] for place in chosen],
            decide=(lambda observation: decision(self._agent.actor, observation)) if number else None,
            noted=self._note(f"lessons, round {number}", total=len(chosen)),
        )
        self._lessons = found if self._lessons is None else self._lessons.joined(found)
        steps = self._settings.imitation_steps // (_DAGGER_ROUNDS + 1)
        imitate_lessons(
            self._agent,
            self._actor_optimizer,
            self._lessons,
            steps=steps,
            seed=self._seed("scheduler", number),
            noted=self._note(f"scheduler, round {number}", total=steps),
        )
        return {"steps": steps, "lessons": len(self._lessons.right), **self._validate(_TRAINED, self._agent)}

    def _learn_from_rewards(self, number: int) -> dict[str, Any]:
        if not number:
            self._best[_IMITATED] = self._best[_TRAINED]
            # Its critic was told nothing so far: of the agents that only imitated, the best one's actor is taken over.
            self._agent = self._new_agent()
            self._agent.actor.load_state_dict(self._best[_IMITATED][1])
        self._agent.set_env(PlacementEnvironment(self._courses_learned))
        steps = self._steps_of_part(number)
        learn(
            self._agent,
            steps=steps,
            seed=self._seed("rewards", number),
            critic_alone=not number,
            noted=self._note(f"rewards, part {number}", total=steps),
        )
        return {"steps": steps, **self._validate(_TRAINED, self._agent)}

    def _learn_from_rewards_alone(self, name: str, number: int) -> dict[str, Any]:
        """As many steps as an agent takes that imitated before; with the same proposer."""
        agent = self._by_rewards_alone[name]
        agent.set_env(PlacementEnvironment(self._courses_learned))
        steps = self._steps_of_part(number)
        taken = learn(
            agent,
            steps=steps,
            seed=self._seed(name, number),
            noted=self._note(f"{name}, part {number}", total=steps),
        )
        return {"steps": taken, **self._validate(name, agent)}

    def _steps_of_part(self, number: int) -> int:
        first, after = (self._settings.steps * place // _REWARD_PARTS for place in (number, number + 1))
        return after - first

    def _validate(self, name: str, agent: Agent) -> dict[str, Any]:
        """Keep the actor if it is the best of this name so far on problems that were not learned from."""
        actor = actor_of(agent)
        share = mean_cost(actor, self._validated, self._courses_validated)
        is_best = name not in self._best or share < self._best[name][0]
        if is_best:
            self._best[name] = share, copy.deepcopy(actor.state_dict())
        return {"time_by_better_side": share, "is_best": is_best}

    # What they share --------------------------------------------------------------------------------------

    def _new_network(self) -> ProposerNetwork:
        torch.manual_seed(self._seed("network"))
        return ProposerNetwork()

    def _new_agent(self, purpose: str = "agent") -> SAC:
        return make_agent(self._plain_courses(), seed=self._seed(purpose), steps=self._settings.steps)

    def _untrained_agents(self) -> dict[str, Agent]:
        part_steps = self._settings.steps // _REWARD_PARTS
        ppo = make_ppo(self._plain_courses(), seed=self._seed(f"agent, {_PPO}"), part_steps=part_steps)
        return {_SAC: self._new_agent(f"agent, {_SAC}"), _PPO: ppo}

    def _plain_courses(self) -> list[Course]:
        return [Course(features=example.features) for example in self._learned]

    # The proposer is taught before any scheduler is, and does not change then.
    @cached_property
    def _courses_learned(self) -> list[Course]:
        return self._courses(self._learned)

    @cached_property
    def _courses_validated(self) -> list[Course]:
        return self._courses(self._validated)

    def _courses(self, examples: Sequence[Example]) -> list[Course]:
        courses = []
        for example in examples:
            advice, thresholds = advise(self._network, example.features)
            courses.append(Course(features=example.features, advice=advice, thresholds=thresholds))
        return courses

    def _seed(self, what: str, number: int = 0) -> int:
        """A seed for one purpose: the same settings have the same, and no two purposes share one."""
        drawn = np.random.SeedSequence([self._settings.seed, number, *what.encode()]).generate_state(1)
        return int(drawn[0]) >> 1

    def _note(self, stage: str, total: int | None = None) -> Callable[..., None]:
        def noted(done: int, of: int = total or 0) -> None:
            self._progress(stage, done, of)

        return noted

    # Checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        lessons = self._lessons
        state = {
            "format": _FORMAT,
            "done": self._done,
            "history": self._history,
            "labels": [(list(label.chosen), label.cost_ns, list(label.thresholds)) for label in self._labels],
            "lessons": None
            if lessons is None
            else [torch.from_numpy(part) for part in (lessons.observations, lessons.right, lessons.weights)],
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "agent": agent_state(self._agent),
            "actor_optimizer": self._actor_optimizer.state_dict(),
            "by_rewards_alone": {name: agent_state(agent) for name, agent in self._by_rewards_alone.items()},
            "best": self._best,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._write(CHECKPOINT_NAME, buffer.getvalue())

    def _restore(self) -> None:
        path = self._folder / CHECKPOINT_NAME
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise ConfigError(
                f"{str(path)!r} cannot be read: {error!s:.200}", fix="remove it to begin anew, or train elsewhere"
            ) from error
        if state.get("format") != _FORMAT or len(state["labels"]) > len(self._learned):
            raise ConfigError(f"{str(path)!r} is of another version", fix="remove it to begin anew, or train elsewhere")
        self._done, self._history = state["done"], state["history"]
        self._best = state["best"]
        self._labels = [
            Label(chosen=tuple(chosen), cost_ns=cost_ns, thresholds=(thresholds[0], thresholds[1]))
            for chosen, cost_ns, thresholds in state["labels"]
        ]
        if state["lessons"] is not None:
            observations, right, weights = (part.numpy() for part in state["lessons"])
            self._lessons = Lessons(observations=observations, right=right, weights=weights)
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        restore_agent(self._agent, state["agent"])
        for name, agent in self._by_rewards_alone.items():
            if name in state["by_rewards_alone"]:  # they may be asked for later
                restore_agent(agent, state["by_rewards_alone"][name])
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self._folder / name, content)
        except OSError as error:
            raise ConfigError(
                f"cannot write {str(self._folder / name)!r}: {error.strerror or error}", fix="make room, and resume"
            ) from error

    # The end ----------------------------------------------------------------------------------------------

    def finish(self) -> TrainedNetworks:
        """Export and judge."""
        proposer, scheduler = self._folder / PROPOSER_NAME, self._folder / SCHEDULER_NAME
        self._write(PROPOSER_NAME, proposer_file(self._network))
        for name, (_, parameters) in self._best.items():
            actor = actor_of(self._by_rewards_alone.get(name, self._agent))
            actor.load_state_dict(parameters)
            self._write(_FILES[name], scheduler_file(actor))
        placer = Learned(network=str(proposer), scheduler=str(scheduler))
        assert placer.digest is not None  # set when it was made
        judged = self._judge(gather_judged(self._settings))
        made = TrainedNetworks(
            proposer=proposer,
            scheduler=scheduler,
            compared={name: self._folder / _FILES[name] for name in self._best if name != _TRAINED},
            digest=placer.digest,
            judged=judged,
            history=tuple(self._history),
        )
        self._write(CARD_NAME, json.dumps(self._card(made), indent=2).encode() + b"\n")
        return made

    def _judge(self, problems: Sequence[PlacementProblem]) -> tuple[Judged, ...]:
        """Against untrained networks, and placers that need none."""
        if not problems:
            return ()
        with tempfile.TemporaryDirectory() as name:
            untrained = Path(name) / PROPOSER_NAME, Path(name) / SCHEDULER_NAME
            untrained[0].write_bytes(proposer_file(self._new_network()))
            untrained[1].write_bytes(scheduler_file(self._new_agent().actor))
            return judge_networks(
                problems,
                {
                    "untrained": untrained,
                    **{name: (self._folder / PROPOSER_NAME, self._folder / _FILES[name]) for name in self._best},
                    "no scheduler": (self._folder / PROPOSER_NAME, None),
                },
                noted=self._note("judging", total=len(problems)),
            )

    def _card(self, made: TrainedNetworks) -> dict[str, Any]:
        """What people should know of the networks; the same for the same settings, like the files themselves."""
        settings = self._settings
        return {
            "format": _FORMAT,
            "digest": made.digest,
            "files": {
                path.name: sha256_hex(path.read_bytes())
                for path in (made.proposer, made.scheduler, *made.compared.values())
            },
            "features_version": FEATURES_VERSION,
            "settings": settings.to_json(),
            "learned_from": {
                "random_problems": settings.random_problems,
                "states_per_model_and_device": settings.states_per_model,
                "examples": len(self._learned),
                "examples_to_choose_by": len(self._validated),
                "evaluations_per_label": settings.evaluations,
            },
            "history": self._history,
            "judged": [asdict(entry) for entry in made.judged],
            "made_with": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "stable_baselines3": stable_baselines3.__version__,
                "gymnasium": gymnasium.__version__,
                "onnxruntime": onnxruntime.__version__,
                "machine": platform.machine(),
            },
        }
