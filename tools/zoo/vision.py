"""Convolutional image classifiers, written from their papers (torchvision has no CPU-only build that fits here)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate import calibrate_batch_norms
from spec import OWN_MODULE, ModelSpec, image


def initialise(module: nn.Module) -> None:
    """He initialisation by fan-out for convolutions (arXiv:1502.01852), small normal weights for classifiers."""
    # Children come after parents in modules(); reversed, a part may override what its children got.
    for part in reversed(list(module.modules())):
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, SqueezeExcite):
            # Gates must stay near their middle: open ones amplify what opens the next, layer after layer.
            nn.init.normal_(part.reduce.weight, std=0.02)
            nn.init.normal_(part.expand.weight, std=0.02)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
            nn.init.normal_(part.bias, std=0.05)


def ready(module: nn.Module, side: int = 224) -> nn.Module:
    """Initialise and calibrate for images of the given side."""
    initialise(module)
    return calibrate_batch_norms(module, torch.randn(1, 3, side, side))


def rounded_to_eight(channels: float) -> int:
    """Nearest multiple of 8 that loses at most a tenth (the rule of the MobileNet papers)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, optional activation; padded to keep the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
        eps: float = 1e-5,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=eps),
        ]
        super().__init__(*layers, *([activation] if activation is not None else []))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride, activation=nn.ReLU())
        self.conv2 = ConvNorm(outputs, outputs, 3)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet18(nn.Module):
    """He et al., arXiv:1512.03385, table 1."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 64, 7, 2, activation=nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(before, after, 1 if before == after else 2), BasicBlock(after, after, 1))
                for before, after in pairwise(widths)
            )
        )
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.pool(self.stem(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, depthwise, narrow without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers = [ConvNorm(inputs, wide, activation=nn.ReLU6())] if expansion != 1 else []
        layers += [ConvNorm(wide, wide, 3, stride, groups=wide, activation=nn.ReLU6()), ConvNorm(wide, outputs)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """Sandler et al., arXiv:1801.04381, table 2, width 1.0."""

    # expansion, outputs, repeats, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, activation=nn.ReLU6())]
        width = 32
        for expansion, outputs, repeats, stride in self.STAGES:
            for index in range(repeats):
                layers.append(InvertedResidual(width, outputs, stride if index == 0 else 1, expansion))
                width = outputs
        layers.append(ConvNorm(width, 1280, activation=nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class SqueezeExcite(nn.Module):
    """Channel gate of MobileNetV3: pooled, narrowed to a quarter, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = rounded_to_eight(channels / 4)
        self.reduce = nn.Conv2d(channels, narrow, 1)
        self.expand = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.expand(gate))


class MobileNetV3Block(nn.Module):
    """Inverted residual with optional squeeze-excite and a chosen activation."""

    def __init__(
        self, inputs: int, kernel: int, wide: int, outputs: int, gated: bool, hard_swish: bool, stride: int
    ) -> None:
        super().__init__()

        def activation() -> nn.Module:
            return nn.Hardswish() if hard_swish else nn.ReLU()

        layers: list[nn.Module] = [ConvNorm(inputs, wide, activation=activation())] if wide != inputs else []
        layers.append(ConvNorm(wide, wide, kernel, stride, groups=wide, activation=activation()))
        if gated:
            layers.append(SqueezeExcite(wide))
        layers.append(ConvNorm(wide, outputs))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV3Small(nn.Module):
    """Howard et al., arXiv:1905.02244, table 2."""

    # kernel, expanded, outputs, squeeze-excite, hard swish, stride
    BLOCKS = (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(3, 16, 3, 2, activation=nn.Hardswish())]
        width = 16
        for block in self.BLOCKS:
            layers.append(MobileNetV3Block(width, *block))
            width = block[2]
        layers.append(ConvNorm(width, 576, activation=nn.Hardswish()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


def _classifier(name: str, title: str, source: str, build: type[nn.Module]) -> ModelSpec:
    return ModelSpec(
        name=name,
        title=title,
        task="image classification, 1000 classes",
        source=source,
        licence=OWN_MODULE,
        build=lambda: ready(build()),
        inputs=(image(224),),
        outputs={"logits": {}},
    )


SPECS = (
    _classifier("resnet18", "ResNet-18", "He et al., Deep Residual Learning, arXiv:1512.03385", ResNet18),
    _classifier("mobilenetv2", "MobileNetV2 1.0", "Sandler et al., MobileNetV2, arXiv:1801.04381", MobileNetV2),
    _classifier(
        "mobilenetv3-s", "MobileNetV3-Small 1.0", "Howard et al., MobileNetV3, arXiv:1905.02244", MobileNetV3Small
    ),
)
