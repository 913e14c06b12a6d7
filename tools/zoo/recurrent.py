"""A small speech model with everything that breaks static planning: LSTM, If, Loop, dynamic lengths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import with_varied_vectors
from spec import OWN_MODULE, DimSpec, InputSpec, ModelSpec

MELS, HIDDEN, VOCABULARY, MAX_STEPS = 80, 192, 128, 24
STATES = 2 * HIDDEN


class LoudBranch(nn.Module):
    """Residual separable convolutions over time, two of them side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(
            nn.Conv1d(STATES, STATES, 3, padding=1, groups=STATES), nn.Conv1d(STATES, STATES, 1), nn.GELU()
        )
        self.far = nn.Sequential(
            nn.Conv1d(STATES, STATES, 15, padding=7, groups=STATES), nn.Conv1d(STATES, STATES, 1), nn.Tanh()
        )

    def forward(self, states: Tensor) -> Tensor:
        x = states.transpose(1, 2)
        return states + (self.near(x) + self.far(x)).transpose(1, 2)


class QuietBranch(nn.Module):
    """Single-head self-attention and a feed-forward layer: weak sounds need their context."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(STATES)
        self.projections = nn.Linear(STATES, 3 * STATES)
        self.feed_forward = nn.Sequential(nn.Linear(STATES, 2 * STATES), nn.ReLU(), nn.Linear(2 * STATES, STATES))

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.projections(self.norm(states)).chunk(3, dim=-1)
        scores = torch.matmul(query, key.transpose(1, 2)) / float(states.size(2)) ** 0.5
        mixed = states + torch.matmul(F.softmax(scores, dim=-1), value)
        return mixed + self.feed_forward(mixed)


class Refiner(nn.Module):
    """Takes one of two branches, by whether the normalised log energy is above its long-term mean (zero)."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = LoudBranch()
        self.quiet = QuietBranch()

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        if bool(features.mean() > 0):  # noqa: SIM108 - a statement is what people script
            refined = self.loud(states)
        else:
            refined = self.quiet(states)
        return refined


class Speller(nn.Module):
    """Attends to the states and emits one row of logits per step, until the halting probabilities add up to one.

    The halting rule is that of adaptive computation time (Graves, arXiv:1603.08983), so the number of steps depends on
    the data whatever the weights are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.update = nn.Linear(2 * STATES, STATES)
        self.gate = nn.Linear(2 * STATES, STATES)
        self.emit = nn.Linear(STATES, VOCABULARY)
        self.halt = nn.Linear(STATES, 1)
        self.max_steps = MAX_STEPS

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        memory = states.mean(dim=1)
        logits = self.emit(memory).unsqueeze(1)
        halted = torch.zeros([], dtype=states.dtype)
        steps = torch.ones([], dtype=torch.int64)
        while bool(halted < 1.0) and bool(steps < self.max_steps):
            scores = torch.matmul(states, memory.unsqueeze(2)) / float(memory.size(1)) ** 0.5
            context = (F.softmax(scores, dim=1) * states).sum(dim=1)
            both = torch.cat([memory, context], dim=1)
            gate = torch.sigmoid(self.gate(both))
            memory = gate * memory + (1.0 - gate) * torch.tanh(self.update(both))
            logits = torch.cat([logits, self.emit(memory).unsqueeze(1)], dim=1)
            halted = halted + torch.sigmoid(self.halt(memory)).mean()
            steps = steps + 1
        return logits, steps


class LstmIfLoop(nn.Module):
    """Subsampling convolution, two bidirectional LSTM layers, a choice of refiner, an open-ended speller."""

    def __init__(self) -> None:
        super().__init__()
        self.subsample = nn.Conv1d(MELS, HIDDEN, 3, stride=2, padding=1)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.refine = Refiner()
        self.spell = Speller()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        subsampled = F.relu(self.subsample(features.transpose(1, 2))).transpose(1, 2)
        states, _ = self.lstm(subsampled)
        return self.spell(self.refine(features, states))


def _build() -> nn.Module:
    model = LstmIfLoop()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # Twice torch's uniform default, so that states move far from zero within a few frames.
            nn.init.normal_(parameter, std=1.2 / parameter[0].numel() ** 0.5)
    with_varied_vectors(model)
    with torch.no_grad():
        model.spell.halt.bias.fill_(-2.0)
    # Scripted, not traced: tracing would keep one branch and unroll the loop.
    return torch.jit.script(model.eval())


SPECS = (
    ModelSpec(
        name="lstm-if-loop",
        title="LSTM encoder, If refiner, Loop speller",
        task="synthetic speech model with control flow: the sign of the mean picks a branch, the data the steps",
        source="own design; halting after Graves, arXiv:1603.08983",
        licence=OWN_MODULE,
        build=_build,
        inputs=(InputSpec(name="features", dtype="float32", shape=("batch", "frames", MELS), fill="normal"),),
        outputs={"logits": {0: "batch", 1: "steps"}, "steps": {}},
        dims=(DimSpec(name="batch", typical=1), DimSpec(name="frames", typical=200)),
        checked_dims=({}, {"batch": 3, "frames": 57}),
        checked_seeds=(0, 1, 2, 3),
    ),
)
