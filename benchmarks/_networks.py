"""Trained networks that a benchmark is given as files, and what of each is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _deciding import Propose, sides_of

from parallax.errors import ParallaxError
from parallax.planner._learned import PROPOSER, Learned, Network
from parallax.schedule.placement import BranchFeatures, Placement, PlacementProblem
from parallax.schedule.placement._thresholds import Quadrants


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The networks of one training."""

    label: str
    proposer: Path
    scheduler: Path | None = None
    held_out: str = ""
    """The model or device that it has not seen, of which alone it is asked; "": it is asked of all."""

    def is_asked(self, model: str, device: str) -> bool:
        return self.held_out in ("", model, device)

    def proposers(self) -> dict[str, Propose]:
        """By name: judged beside earliest finish and sides, alone, without a scheduler, by its thresholds only."""
        file, scheduler = str(self.proposer), None if self.scheduler is None else str(self.scheduler)
        found: dict[str, Propose] = {
            self.label: _BesideSides(Learned(network=file, scheduler=scheduler)),
            f"{self.label}, alone": Learned(network=file, scheduler=scheduler, alone=True).propose,
            f"{self.label}, thresholds only": _Thresholds(Network(self.proposer.read_bytes(), self.proposer.name)),
        }
        if scheduler is not None:
            found[f"{self.label}, no reinforcement learning"] = _BesideSides(Learned(network=file))
        return found


def read_networks(given: Sequence[str]) -> list[Trained]:
    """What ``--network [LABEL=]FILE[@HELD_OUT]`` names: of each label a proposer, and a scheduler if there is one.

    Raises: SystemExit if a file is no network, or a label has no proposer, or two of a kind.
    """
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for text in given:
        label, named, rest = text.rpartition("=")
        file, _, held_out = rest.partition("@")
        path = Path(file)
        if "," in label:
            raise SystemExit(f"--network {text}: a label has no comma")
        try:
            kind = Network(path.read_bytes(), path.name).kind
        except (OSError, ParallaxError) as error:
            raise SystemExit(f"--network {text}: {error}") from error
        kinds = found.setdefault((label if named else "learned", held_out), {})
        if kind in kinds:
            raise SystemExit(f"--network {text}: there is a {kind} already; give each network a LABEL= of its own")
        kinds[kind] = path
    trained = []
    for (label, held_out), kinds in found.items():
        if PROPOSER not in kinds:
            raise SystemExit(f"--network {label}: a scheduler needs the proposer that it was trained with")
        others = [path for kind, path in kinds.items() if kind != PROPOSER]
        proposer = kinds[PROPOSER]
        trained.append(Trained(label=label, proposer=proposer, scheduler=next(iter(others), None), held_out=held_out))
    return trained


class _BesideSides:
    """What a network proposes, and earliest finish, and either side."""

    def __init__(self, learned: Learned) -> None:
        self._learned = learned

    def __call__(self, problem: PlacementProblem) -> Iterator[Placement]:
        yield from sides_of(problem)
        yield from self._learned.propose(problem)


class _Thresholds:
    """What a network's two thresholds give the device, by the rule that other predictors of thresholds are put to."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, problem: PlacementProblem) -> Iterator[Placement]:
        advice = self._network.advise(BranchFeatures.of(problem))
        yield from Quadrants(min_flops=advice.min_flops, max_zeros=advice.max_zeros).propose(problem)


def asked_of(trained: Sequence[Trained], model: str, device: str) -> Mapping[str, Propose]:
    """Those that are asked of a model on a device. Raises: SystemExit if two of a label are."""
    found: dict[str, Propose] = {}
    for one in trained:
        if one.is_asked(model, device):
            if one.label in found:
                raise SystemExit(f"two networks called {one.label} are asked of {model} on {device}")
            found |= one.proposers()
    return found
