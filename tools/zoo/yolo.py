"""YOLOv8n, written from the published layer table; no code of its (AGPL) reference implementation was used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate import calibrate_batch_norms
from spec import OWN_MODULE, ModelSpec, image
from vision import ConvNorm, initialise

SIDE = 640
CLASSES = 80
STRIDES = (8, 16, 32)
BINS = 16  # box distances are read from a distribution over so many bins (Distribution Focal Loss, arXiv:2006.04388)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> ConvNorm:
    return ConvNorm(inputs, outputs, kernel, stride, activation=nn.SiLU(), eps=1e-3)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3)
        self.conv2 = conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Cross-stage block whose every bottleneck output goes to the final 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, repeats: int, shortcut: bool) -> None:
        super().__init__()
        self.hidden = outputs // 2
        self.enter = conv(inputs, 2 * self.hidden)
        self.blocks = nn.ModuleList(Bottleneck(self.hidden, shortcut) for _ in range(repeats))
        self.leave = conv((2 + repeats) * self.hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).split((self.hidden, self.hidden), 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling as three 5x5 max pools in a row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = conv(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.enter(x)]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        return self.leave(torch.cat(levels, 1))


class DetectionHead(nn.Module):
    """Anchor-free, decoupled head: per level a box branch and a class branch, decoded to (1, 4 + CLASSES, cells).

    Boxes come out as centre x, centre y, width, height in pixels; classes as probabilities.
    """

    anchors: Tensor
    strides: Tensor
    bins: Tensor

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        box_width = max(16, channels[0] // 4, 4 * BINS)
        class_width = max(channels[0], min(CLASSES, 100))
        self.boxes = nn.ModuleList(self._branch(c, box_width, 4 * BINS) for c in channels)
        self.classes = nn.ModuleList(self._branch(c, class_width, CLASSES) for c in channels)
        # The expectation over the bins is a frozen convolution in the published network, and counts as parameters.
        self.expectation = nn.Conv2d(BINS, 1, 1, bias=False)
        anchors, strides = [], []
        for stride in STRIDES:
            centres = torch.arange(SIDE // stride) + 0.5
            y, x = torch.meshgrid(centres, centres, indexing="ij")
            anchors.append(torch.stack((x, y)).reshape(2, -1))
            strides.append(torch.full((1, x.numel()), float(stride)))
        self.register_buffer("anchors", torch.cat(anchors, 1))
        self.register_buffer("strides", torch.cat(strides, 1))

    @staticmethod
    def _branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, width, 3), conv(width, width, 3), nn.Conv2d(width, outputs, 1))

    def set_constants(self) -> None:
        """Frozen bins, and the published biases: boxes start at 1, classes at the odds of a few objects per image."""
        with torch.no_grad():
            self.expectation.weight.copy_(torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))
            for box, scores, stride in zip(self.boxes, self.classes, STRIDES, strict=True):
                box[-1].bias.fill_(1.0)
                scores[-1].bias.fill_(math.log(5 / CLASSES / (SIDE / stride) ** 2))

    def forward(self, features: list[Tensor]) -> Tensor:
        levels = []
        for x, box, scores in zip(features, self.boxes, self.classes, strict=True):
            levels.append(torch.cat((box(x), scores(x)), 1).view(1, 4 * BINS + CLASSES, -1))
        distances, scores = torch.cat(levels, 2).split((4 * BINS, CLASSES), 1)
        distances = distances.view(1, 4, BINS, -1).transpose(2, 1).softmax(1)
        distances = self.expectation(distances).view(1, 4, -1)
        before, after = distances.chunk(2, 1)
        low, high = self.anchors - before, self.anchors + after
        boxes = torch.cat(((low + high) / 2, high - low), 1) * self.strides
        return torch.cat((boxes, scores.sigmoid()), 1)


class YOLOv8n(nn.Module):
    """Backbone with three levels, path-aggregation neck, detection head; depth 0.33, width 0.25."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), C2f(32, 32, 1, True))
        self.level3 = nn.Sequential(conv(32, 64, 3, 2), C2f(64, 64, 2, True))
        self.level4 = nn.Sequential(conv(64, 128, 3, 2), C2f(128, 128, 2, True))
        self.level5 = nn.Sequential(conv(128, 256, 3, 2), C2f(256, 256, 1, True), SPPF(256))
        self.top_down4 = C2f(256 + 128, 128, 1, False)
        self.top_down3 = C2f(128 + 64, 64, 1, False)
        self.down3 = conv(64, 64, 3, 2)
        self.bottom_up4 = C2f(64 + 128, 128, 1, False)
        self.down4 = conv(128, 128, 3, 2)
        self.bottom_up5 = C2f(128 + 256, 256, 1, False)
        self.head = DetectionHead((64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.level3(self.stem(x))
        p4 = self.level4(p3)
        p5 = self.level5(p4)
        n4 = self.top_down4(torch.cat((F.interpolate(p5, scale_factor=2.0, mode="nearest"), p4), 1))
        n3 = self.top_down3(torch.cat((F.interpolate(n4, scale_factor=2.0, mode="nearest"), p3), 1))
        o4 = self.bottom_up4(torch.cat((self.down3(n3), n4), 1))
        o5 = self.bottom_up5(torch.cat((self.down4(o4), p5), 1))
        return self.head([n3, o4, o5])


def _build() -> nn.Module:
    model = YOLOv8n()
    initialise(model)
    model.head.set_constants()
    return calibrate_batch_norms(model, torch.rand(1, 3, SIDE, SIDE))


SPECS = (
    ModelSpec(
        name="yolov8n",
        title="YOLOv8n",
        task="object detection, 80 classes, 640 x 640",
        source="YOLOv8 (Jocher et al., 2023), layer table of the nano detector",
        licence=OWN_MODULE,
        build=_build,
        inputs=(image(SIDE, name="images", normalised=False),),
        outputs={"output0": {}},
    ),
)
