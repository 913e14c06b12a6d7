"""Reference models without downloads: real exported graphs, kept structure-only, weights redrawn on first use.

For tests, benchmarks and `zoo:NAME` on the command line. The weights are random, so speed and memory are those of the
real model and predictions are not. `tools/zoo` holds the exporters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.zoo._cache import load
    from parallax.zoo._card import DynamicDim, Fill, InputInfo, ModelInfo, info, names
    from parallax.zoo._inputs import example_inputs
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_cache": "load",
            "_card": "DynamicDim Fill InputInfo ModelInfo info names",
            "_inputs": "example_inputs",
        },
    )

__all__ = [
    "PAPER_MODELS",
    "DynamicDim",
    "Fill",
    "InputInfo",
    "ModelInfo",
    "example_inputs",
    "info",
    "load",
    "names",
]

PAPER_MODELS = (
    "yolov8n",
    "whisper-tiny-encoder",
    "swinv2-t",
    "clip-text",
    "distilbert",
    "resnet18",
    "mobilenetv3-s",
    "mobilenetv2",
    "vit-b16",
    "swin-t",
)
"""The ten models of the Parallax and SparOA papers, in their order; the encoder stands for Whisper."""
