"""Teaching the proposer by examples: the sides and thresholds that searches found to be best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

from parallax.schedule.placement import BRANCH_COLUMNS, BranchFeatures
from parallax.training._arrays import Floats
from parallax.training._labels import Example, Label
from parallax.training._network import ProposerNetwork

BATCH: Final = 16
_LEARNING_RATE: Final = 1e-3
_LARGEST_GRADIENT: Final = 1.0
_EVEN: Final = 0.3
"""How much of a problem's weight is spread evenly over its branches; the rest goes by their time."""

_THRESHOLDS_WEIGHT: Final = 0.5
_CPU_SHARE, _DEVICE_SHARE = BRANCH_COLUMNS.index("cpu share"), BRANCH_COLUMNS.index("device share")

Noted = Callable[[int], None]
"""Called with the number of steps done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    branches: torch.Tensor
    present: torch.Tensor
    machine: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    thresholds: torch.Tensor


def make_optimizer(network: ProposerNetwork) -> torch.optim.Optimizer:
    """What `imitate` takes its steps with."""
    return torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)


def imitate(
    network: ProposerNetwork,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    labels: Sequence[Label],
    *,
    steps: range,
    total: int,
    seed: int,
    noted: Noted,
) -> float:
    """Take so many steps of gradient descent towards the labels.

    Args:
        steps: their numbers, of ``total`` in all: the learning rate falls along half a cosine.
        seed: of the batches that are drawn.

    Returns: the mean loss of these steps.
    """
    generator = np.random.default_rng(seed)
    by_length = sorted(range(len(examples)), key=lambda number: (len(examples[number].features.shown), number))
    lost = 0.0
    for done, step in enumerate(steps, start=1):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (0.05 + 0.95 * (1 + math.cos(math.pi * step / total)) / 2)
        # Neighbours in length, so that little is padded.
        start = int(generator.integers(max(1, len(by_length) - BATCH + 1)))
        drawn = by_length[start : start + BATCH]
        loss = _loss(network, _batch([examples[number] for number in drawn], [labels[number] for number in drawn]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        lost += float(loss.detach())
        noted(done)
    return lost / max(1, len(steps))


def advise(network: ProposerNetwork, features: BranchFeatures) -> tuple[tuple[float, ...], tuple[float, float]]:
    """Inclinations per row, and both thresholds."""
    with torch.no_grad():
        inclinations, thresholds = network(
            torch.from_numpy(features.branches[np.newaxis]),
            torch.ones(1, len(features.shown)),
            torch.from_numpy(features.machine[np.newaxis]),
        )
    tau_rho, tau_work = thresholds[0].tolist()
    return tuple(inclinations[0].tolist()), (tau_rho, tau_work)


def _loss(network: ProposerNetwork, batch: _Batch) -> torch.Tensor:
    inclinations, thresholds = network(batch.branches, batch.present, batch.machine)
    each = nn.functional.binary_cross_entropy_with_logits(inclinations, batch.chosen, reduction="none")
    sides = (each * batch.weights).sum() / len(batch.weights)
    parted = nn.functional.smooth_l1_loss(thresholds, batch.thresholds, beta=0.1)
    return sides + _THRESHOLDS_WEIGHT * parted


def _batch(examples: Sequence[Example], labels: Sequence[Label]) -> _Batch:
    longest = max(len(example.features.shown) for example in examples)

    def padded(rows: Sequence[Floats]) -> torch.Tensor:
        made = np.zeros((len(rows), longest, *rows[0].shape[1:]), np.float32)
        for place, row in enumerate(rows):
            made[place, : len(row)] = row
        return torch.from_numpy(made)

    return _Batch(
        branches=padded([example.features.branches for example in examples]),
        present=padded([np.ones(len(example.features.shown), np.float32) for example in examples]),
        machine=torch.from_numpy(np.stack([example.features.machine for example in examples])),
        chosen=padded([np.array(label.chosen, np.float32) for label in labels]),
        weights=padded([_row_weights(example.features) for example in examples]),
        thresholds=torch.tensor([label.thresholds for label in labels], dtype=torch.float32),
    )


def _row_weights(features: BranchFeatures) -> Floats:
    """What a mistake about each row counts, 1 in all; nothing where there is no choice."""
    time = np.maximum(features.branches[:, _CPU_SHARE], features.branches[:, _DEVICE_SHARE])
    movable = np.array(features.movable, np.float32)
    weights = movable * (
        (1 - _EVEN) * time / max(1e-9, float((time * movable).sum())) + _EVEN / max(1.0, movable.sum())
    )
    found: Floats = weights.astype(np.float32)
    return found
