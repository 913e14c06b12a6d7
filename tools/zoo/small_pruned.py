"""Pruned image classifiers of some kilobytes, exported with random weights from transformers' own classes, for tests.

    python tools/zoo/small_pruned.py    # writes tests/model/exported/*.onnx.gz

Made with torch 2.13.0 and transformers 5.24.0, and pruned with `torch.nn.utils.prune`, which sets weights to 0 and
leaves all shapes as they are. Sizes are small: what tests need is the graph, as the exporter writes it.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

TARGET = Path(__file__).parents[2] / "tests" / "model" / "exported"
SIDE = 32
"""Of the images, in pixels."""

AMOUNT = 0.5
"""Share of the channels, neurons or heads that are pruned where any are."""


class Logits(nn.Module):
    """What a classifier answers, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image).logits
        return logits


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as training leaves them, with shifts and means other than 0, and weights for outputs that vary."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.5, 0.5),
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)
    return model


def set_to_zero(part: nn.Module, mask: Tensor, *names: str) -> None:
    """Prune parameters of one slice per channel, for good."""
    for name in names:
        shape = (-1, *(1 for _ in getattr(part, name).shape[1:]))
        prune.custom_from_mask(part, name, mask.reshape(shape).expand_as(getattr(part, name)))
        prune.remove(part, name)


def least_channels(part: nn.Module) -> Tensor:
    """Prune the output channels, or neurons, of least norm; returns 0 for each of them, and 1 for the others."""
    prune.ln_structured(part, "weight", amount=AMOUNT, n=2, dim=0)
    mask = part.weight_mask.flatten(1)[:, 0].clone()
    prune.remove(part, "weight")
    return mask


def resnet(*, with_batch_norms: bool) -> nn.Module:
    """The first convolution of each block pruned; with or without the batch normalisation behind it."""
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5, hidden_act="relu"
    )
    model = with_statistics(ResNetForImageClassification(config))
    for stage in model.resnet.encoder.stages:
        for block in stage.layers:
            inner = block.layer[0]
            mask = least_channels(inner.convolution)
            if with_batch_norms:
                set_to_zero(inner.normalization, mask, "weight", "bias")
    return model


def mobilenet(*, pads_apart: bool) -> nn.Module:
    """The widened channels of each block, with their depthwise convolution. ``pads_apart``: as TensorFlow pads, by an
    operator of its own."""
    config = MobileNetV2Config(
        image_size=SIDE,
        depth_multiplier=0.1,
        expand_ratio=2,
        num_labels=5,
        finegrained_output=False,
        tf_padding=pads_apart,
    )
    model = with_statistics(MobileNetV2ForImageClassification(config))
    for block in model.mobilenet_v2.layer:
        mask = least_channels(block.expand_1x1.convolution)
        set_to_zero(block.expand_1x1.normalization, mask, "weight", "bias")
        set_to_zero(block.conv_3x3.convolution, mask, "weight")
        set_to_zero(block.conv_3x3.normalization, mask, "weight", "bias")
    return model


def vision_transformer() -> nn.Module:
    """Two of four heads, by their values, and half of the neurons between."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=SIDE,
        patch_size=8,
        num_labels=5,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = ViTForImageClassification(config)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.uniform_(part.bias, -0.3, 0.3)
    for layer in model.vit.layers:
        set_to_zero(layer.attention.v_proj, torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat_interleave(4), "weight", "bias")
        set_to_zero(layer.mlp.fc1, least_channels(layer.mlp.fc1), "bias")
    return model


def models() -> dict[str, nn.Module]:
    """By the names of their files."""
    return {
        "resnet_channels": resnet(with_batch_norms=True),
        "resnet_convolutions": resnet(with_batch_norms=False),
        "mobilenetv2_channels": mobilenet(pads_apart=False),
        "mobilenetv2_padded": mobilenet(pads_apart=True),
        "vit_heads": vision_transformer(),
    }


def main() -> None:
    torch.manual_seed(0)
    TARGET.mkdir(exist_ok=True)
    for name, model in models().items():
        made = io.BytesIO()
        torch.onnx.export(
            Logits(model).eval(),
            (torch.randn(1, 3, SIDE, SIDE),),
            made,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
        # Without the time of writing, so that the same export gives the same file.
        (TARGET / f"{name}.onnx.gz").write_bytes(gzip.compress(made.getvalue(), mtime=0))


if __name__ == "__main__":
    main()
