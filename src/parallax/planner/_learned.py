"""A placer that asks a trained network, an ONNX file, which branches a device runs.

The network is run by ONNX Runtime on one thread; nothing of what it was trained with is needed. What it proposes is
simulated and compared like what any other placer proposes, so that it can't make a plan worse than the CPU alone.
None comes with the package; what a file must hold is in docs/placement.md.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parallax._hashing import new_sha256
from parallax.backends.ort import OPENING_EXCEPTIONS, RUNTIME_EXCEPTIONS, RuntimeOptions, open_source
from parallax.errors import ConfigError
from parallax.schedule.placement import (
    FEATURES_VERSION,
    PLACERS,
    BranchFeatures,
    Episode,
    Placement,
    PlacementProblem,
    unscaled_work,
)

PROPOSER: Final = "parallax proposer"
SCHEDULER: Final = "parallax scheduler"
"""Kinds of networks, as their files name them: one sees all branches at once, the other one after the other."""

KIND_KEY: Final = "parallax.kind"
VERSION_KEY: Final = "parallax.features"
"""Keys in the metadata of an ONNX file: what kind of network it is, and of which version of the features."""

_DIGEST_LENGTH: Final = 16
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What a proposer says of one problem and device."""

    inclinations: tuple[float, ...]
    """Per row of the features, above 0 for the device."""
    max_zeros: float
    min_flops: float
    """Thresholds: a branch with more work, and no larger share of zeros, is the device's."""
    thresholds: tuple[float, float]
    """The same two as the network gives them."""


class Network:
    """A trained network. Threads may run it at the same time.

    Args:
        content: of the ONNX file.
        where: names it in errors.

    Raises: ConfigError if it is no network for these features.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self._where = where
        try:
            self._session: Any = open_source(content, RuntimeOptions(), runnable=True)
        except OPENING_EXCEPTIONS as error:
            raise ConfigError(f"{where} is no ONNX file that can be run: {error!s:.200}", fix=_REMEDY) from error
        metadata: Mapping[str, str] = self._session.model_meta.custom_metadata_map
        self.kind = metadata.get(KIND_KEY, "")
        if self.kind not in (PROPOSER, SCHEDULER):
            raise ConfigError(f"{where} is an ONNX model, but no network that places", fix=_REMEDY)
        version = metadata.get(VERSION_KEY, "")
        if version != str(FEATURES_VERSION):
            raise ConfigError(
                f"{where} was trained on features of version {version:.20}; these are of version {FEATURES_VERSION}",
                fix="train it anew on the features of this version",
            )

    def advise(self, features: BranchFeatures) -> Advice:
        """What a proposer says. Raises: ConfigError if the file cannot be run on features, so is damaged."""
        rows = features.branches
        if not len(rows):
            return Advice(inclinations=(), max_zeros=1.0, min_flops=0.0, thresholds=(1.0, 0.0))
        inclinations, thresholds = self._run(
            ("inclinations", "thresholds"),
            {
                "branches": rows[np.newaxis],
                "present": np.ones((1, len(rows)), np.float32),
                "machine": features.machine[np.newaxis],
            },
        )
        tau_rho, tau_work = (float(value) for value in thresholds[0])
        return Advice(
            inclinations=tuple(map(float, inclinations[0])),
            max_zeros=min(max(tau_rho, 0.0), 1.0),
            min_flops=unscaled_work(tau_work),
            thresholds=(tau_rho, tau_work),
        )

    def decide(self, observation: Array) -> bool:
        """Whether a scheduler gives the device the branch of an `Episode`; its answer is snapped at 0."""
        (action,) = self._run(("action",), {"observation": observation[np.newaxis]})
        return float(action[0, 0]) > 0

    def _run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array]) -> list[Array]:
        try:
            answers: list[Array] = self._session.run(list(outputs), dict(feeds), None)
        except RUNTIME_EXCEPTIONS as error:
            raise ConfigError(f"{self._where} cannot be run: {error!s:.200}", fix=_REMEDY) from error
        return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a trained network proposes.

    It proposes the branches that the network inclines to give a device, those that its two thresholds give it, and,
    with a scheduler, those that it decides on one after the other; then what earliest finish first proposes, unless it
    is to be judged alone. Of several devices, each is asked about by itself, and a branch goes to the one that the
    network inclines to most.

    Args:
        network: the ONNX file of a proposer.
        scheduler: that of a scheduler; None: there is none.
        alone: whether earliest finish first is left out.
        digest: of the files, in hexadecimal digits; None: whatever they hold when the placer is made. A placer with the
            digest of other files is refused, so that what was planned by a network is not taken for another's.

    Raises: ConfigError if a file cannot be read, is no such network, or is another than the digest says.
    """

    network: str
    scheduler: str | None = None
    alone: bool = False
    digest: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.network, str | os.PathLike) or not os.fspath(self.network):
            raise ConfigError(f"network={self.network!r:.80}", fix=_REMEDY)
        # What a plan was made by is told and kept: a full path means the same everywhere.
        object.__setattr__(self, "network", os.path.abspath(self.network))
        if self.scheduler is not None:
            object.__setattr__(self, "scheduler", os.path.abspath(self.scheduler))
        found = _digest_of(self._paths())
        if self.digest is not None and self.digest != found:
            raise ConfigError(
                f"{self.network} has the digest {found}, where {self.digest!s:.40} is asked for",
                fix="name the file that has this digest, or leave digest= out",
            )
        object.__setattr__(self, "digest", found)
        self._networks()

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `Learned`. Some milliseconds, most of them for the features."""
        proposer, scheduler = self._networks()
        asked = [BranchFeatures.of(problem, device) for device in range(len(problem.devices))]
        advice = [proposer.advise(features) for features in asked]
        yield from _inclined(problem, asked, advice)
        for features, said in zip(asked, advice, strict=True):
            yield _by_thresholds(features, said)
            if scheduler is not None:
                yield scheduled(features, scheduler, said)
        if not self.alone:
            yield from PLACERS["etf"]().propose(problem)

    def _paths(self) -> tuple[str, ...]:
        return (self.network,) if self.scheduler is None else (self.network, self.scheduler)

    def _networks(self) -> tuple[Network, Network | None]:
        assert self.digest is not None  # set when it was made
        proposer, *schedulers = _opened(self._paths(), self.digest)
        return proposer, schedulers[0] if schedulers else None


_REMEDY: Final = (
    'name the ONNX file of a network, as in policy="learned,network=proposer.onnx"; none comes with the package, and '
    'what one must hold is in docs/placement.md, "A network as a placer"'
)


def scheduled(features: BranchFeatures, scheduler: Network, advice: Advice | None = None) -> Placement:
    """The placement that a scheduler decides on, branch by branch."""
    given = None if advice is None else advice.inclinations
    episode = Episode(features, given, None if advice is None else advice.thresholds)
    while not episode.is_done:
        episode.step(scheduler.decide(episode.observe()))
    return episode.placement("learned scheduler")


def _inclined(problem: PlacementProblem, asked: list[BranchFeatures], advice: list[Advice]) -> Iterator[Placement]:
    """What proposers incline to, with regions as large as can be, and ended early."""
    groups = [-1] * len(problem.groups)
    best = [0.0] * len(problem.groups)
    for device, (features, said) in enumerate(zip(asked, advice, strict=True)):
        sides = features.sides([value > 0 for value in said.inclinations])
        value_of = dict(zip(features.shown, said.inclinations, strict=True))
        for piece, side in enumerate(sides):
            value = value_of.get(piece, 0.0)
            for group in features.pieces.groups[piece]:
                if side == device and (groups[group] < 0 or value > best[group]):
                    groups[group], best[group] = device, value
    devices = tuple(None if device < 0 else device for device in groups)
    yield Placement(label="learned", devices=devices)
    yield Placement(label="learned, cut early", devices=devices, ends_early=True)


def _by_thresholds(features: BranchFeatures, advice: Advice) -> Placement:
    chosen = [
        flops >= advice.min_flops and zeros <= advice.max_zeros
        for flops, zeros in zip(features.flops, features.zeros, strict=True)
    ]
    return features.placement(chosen, "learned thresholds")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the network {path} cannot be read: {error.strerror}", fix=_REMEDY) from error


def _digest_of(paths: tuple[str, ...]) -> str:
    contents = [_read(path) for path in paths]
    made = new_sha256(sum(map(len, contents)))
    for content in contents:
        made.update(content)
    digest: str = made.hexdigest()
    return digest[:_DIGEST_LENGTH]


@functools.lru_cache(maxsize=4)
def _opened(paths: tuple[str, ...], digest: str) -> tuple[Network, ...]:
    """The networks of these files, the proposer first; opened once, as long as few are used."""
    networks = tuple(Network(_read(path), path) for path in paths)
    for network, kind, path in zip(networks, (PROPOSER, SCHEDULER), paths, strict=False):
        if network.kind != kind:
            raise ConfigError(f"{path} is a {network.kind}, where a {kind} is asked for", fix=_REMEDY)
    if _digest_of(paths) != digest:
        raise ConfigError(f"{paths[0]} was changed while it was read", fix="try again")
    return networks
