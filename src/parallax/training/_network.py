"""The proposer's network: what it says of all branches of a model at once.

Two Transformer layers (64 wide, 4 heads) see how branches belong together, an LSTM of 64 goes through them in their
topological order, and two heads say where each branch inclines to and which thresholds part the model. After what
independent readers tell of SparOA's threshold predictor (arXiv 2511.19457); its sizes are not public, and these are
ours.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn

from parallax.schedule.placement import BRANCH_COLUMNS, MACHINE_COLUMNS

WIDTH: Final = 64
HEADS: Final = 4
LAYERS: Final = 2
_INNER: Final = 256
_ABSENT: Final = -1e9
_LARGEST_WORK: Final = 1.2
"""Of a threshold, as `scaled_work` has it: 10^12 FLOPs."""


class _Layer(nn.Module):  # type: ignore[misc]  # not installed where types are checked
    """One layer of a Transformer's encoder, normalised first."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.before_inner = nn.LayerNorm(WIDTH)
        self.asked = nn.Linear(WIDTH, 3 * WIDTH)
        self.answered = nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, _INNER), nn.GELU(), nn.Linear(_INNER, WIDTH))

    def forward(self, rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Rows (batch, rows, width); ``hidden`` (batch, 1, 1, rows) is added to scores."""
        asked = self.asked(self.before_attention(rows)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = (part.transpose(1, 2) for part in asked.unbind(2))
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + hidden
        read = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        rows = rows + self.answered(read)
        return rows + self.inner(self.before_inner(rows))


class ProposerNetwork(nn.Module):  # type: ignore[misc]  # not installed where types are checked
    """Branches in, inclinations and thresholds out; shapes are those of `parallax.planner`'s proposers."""

    def __init__(self) -> None:
        super().__init__()
        self.of_branch = nn.Linear(len(BRANCH_COLUMNS), WIDTH)
        self.of_machine = nn.Linear(len(MACHINE_COLUMNS), WIDTH)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.in_order = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.normalised = nn.LayerNorm(WIDTH)
        self.inclining = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        self.parting = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 2))

    def forward(
        self, branches: torch.Tensor, present: torch.Tensor, machine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each problem of a batch.

        Args:
            branches: (batch, rows, columns) in a topological order; those that are absent come last.
            present: (batch, rows), 1 for rows that there are, else 0.
            machine: (batch, columns).

        Returns: inclinations (batch, rows), 0 for absent rows; thresholds (batch, 2): tau_rho from 0 to 1, tau_I as
            `scaled_work` has it.
        """
        hidden = ((1 - present) * _ABSENT)[:, None, None, :]
        rows = self.of_branch(branches) + self.of_machine(machine)[:, None, :]
        for layer in self.layers:
            rows = layer(rows, hidden)
        ordered, _ = self.in_order(rows)
        rows = self.normalised(rows + ordered)
        inclinations = self.inclining(rows).squeeze(-1) * present
        mean = (rows * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        tau_rho, tau_work = torch.sigmoid(self.parting(mean)).unbind(-1)
        return inclinations, torch.stack((tau_rho, tau_work * _LARGEST_WORK), -1)
