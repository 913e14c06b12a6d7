"""NASNet-A (4 @ 1056), the mobile size: cells of many short branches, written from the paper's figure 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec import OWN_MODULE, ModelSpec, image
from vision import ready

EPS = 1e-3


class Separable(nn.Module):
    """The paper's separable convolution: ReLU, depthwise, pointwise, batch norm, applied twice; the first strides."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        pad = kernel // 2
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(inputs, inputs, kernel, stride, pad, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, eps=EPS),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, kernel, 1, pad, groups=outputs, bias=False),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, eps=EPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Squeeze(nn.Sequential):
    """ReLU, 1x1 convolution, batch norm: brings a cell's input to the cell's width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=EPS))


class FactorisedReduction(nn.Module):
    """Halve the size with two shifted strided 1x1 paths, so that no pixel is ignored."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        paths = [
            self.even(F.avg_pool2d(x, 1, 2)),
            self.odd(F.avg_pool2d(shifted, 1, 2)),
        ]
        return self.norm(torch.cat(paths, 1))


def average(stride: int = 1) -> nn.Module:
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


class Cell(nn.Module):
    """What both kinds of cell do with their two inputs before branching.

    `reduced` says that the previous cell halved the size, so that the input before it must be halved too.
    """

    def __init__(self, previous: int, current: int, width: int, reduced: bool) -> None:
        super().__init__()
        self.fit_previous = FactorisedReduction(previous, width) if reduced else Squeeze(previous, width)
        self.fit_current = Squeeze(current, width)


class NormalCell(Cell):
    """Keeps the size; 6 x width channels out."""

    FACTOR = 6

    def __init__(self, previous: int, current: int, width: int, reduced: bool = False) -> None:
        super().__init__(previous, current, width, reduced)
        self.current5, self.previous3 = Separable(width, width, 5), Separable(width, width, 3)
        self.previous5, self.previous3b = Separable(width, width, 5), Separable(width, width, 3)
        self.current3 = Separable(width, width, 3)
        self.average = average()

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        p, c = self.fit_previous(previous), self.fit_current(current)
        blocks = [
            self.current5(c) + self.previous3(p),
            self.previous5(p) + self.previous3b(p),
            self.average(c) + p,
            self.average(p) + self.average(p),
            self.current3(c) + c,
        ]
        return torch.cat([p, *blocks], 1)


class ReductionCell(Cell):
    """Halves the size; 4 x width channels out."""

    FACTOR = 4

    def __init__(self, previous: int, current: int, width: int, reduced: bool = False) -> None:
        super().__init__(previous, current, width, reduced)
        self.current5, self.previous7 = Separable(width, width, 5, 2), Separable(width, width, 7, 2)
        self.previous7b, self.previous5 = Separable(width, width, 7, 2), Separable(width, width, 5, 2)
        self.first3 = Separable(width, width, 3)
        self.maximum, self.average2, self.average1 = nn.MaxPool2d(3, 2, 1), average(2), average()

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        p, c = self.fit_previous(previous), self.fit_current(current)
        first = self.current5(c) + self.previous7(p)
        second = self.maximum(c) + self.previous7b(p)
        third = self.average2(c) + self.previous5(p)
        fourth = self.average1(first) + second
        fifth = self.first3(first) + self.maximum(c)
        return torch.cat([second, third, fourth, fifth], 1)


class NASNetMobile(nn.Module):
    """Stem, two reduction cells, three groups of four normal cells with a reduction cell between groups."""

    def __init__(self, width: int = 44, repeats: int = 4, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=EPS))
        cells: list[nn.Module] = []
        before, now, reduced = 32, 32, False

        def add(kind: type[NormalCell | ReductionCell], cell_width: int) -> None:
            nonlocal before, now, reduced
            cells.append(kind(before, now, cell_width, reduced))
            before, now, reduced = now, kind.FACTOR * cell_width, kind is ReductionCell

        add(ReductionCell, width // 4)
        add(ReductionCell, width // 2)
        for group in range(3):
            if group > 0:
                add(ReductionCell, width * 2**group)
            for _ in range(repeats):
                add(NormalCell, width * 2**group)
        self.cells = nn.ModuleList(cells)
        self.classifier = nn.Linear(now, classes)

    def forward(self, x: Tensor) -> Tensor:
        previous = current = self.stem(x)
        for cell in self.cells:
            previous, current = current, cell(previous, current)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(F.relu(current), 1), 1))


SPECS = (
    ModelSpec(
        name="nasnet-mobile",
        title="NASNet-A mobile (4 @ 1056)",
        task="image classification, 1000 classes",
        source="Zoph et al., arXiv:1707.07012, figure 4; written from the paper, padding simplified",
        licence=OWN_MODULE,
        build=lambda: ready(NASNetMobile()),
        inputs=(image(224),),
        outputs={"logits": {}},
    ),
)
