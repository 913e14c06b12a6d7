"""Text encoders of a few kilobytes, exported with random weights from transformers' own classes, for tests.

    python tools/zoo/small_encoders.py    # writes tests/partition/exported/*.onnx.gz

Made with torch 2.14.1 and transformers 5.24.0. Sizes are the least that the classes take: what tests need is the
graph, as the exporter writes it.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5EncoderModel,
)

TARGET = Path(__file__).parents[2] / "tests" / "partition" / "exported"
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "max_position_embeddings": 64,
    "initializer_range": 0.7,
}
"""With weights that are large enough for a mask to show in the outputs."""


class Logits(nn.Module):
    """A classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits


class Mean(nn.Module):
    """An encoder with the pooling of sentence-transformers: the mean over what is not masked, of length one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).expand(hidden.size()).float()
        mean = (hidden * kept).sum(1) / torch.clamp(kept.sum(1), min=1e-9)
        return nn.functional.normalize(mean, p=2, dim=1)


def encoders() -> dict[str, nn.Module]:
    """By the names of their files."""
    eager = {"attn_implementation": "eager"}
    t5 = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=30, initializer_factor=2.0)
    tokens = DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=30, max_position_embeddings=64)
    return {
        "bert": Logits(BertForSequenceClassification(BertConfig(**SIZES, **eager))),
        "roberta_sdpa": Logits(RobertaForSequenceClassification(RobertaConfig(**SIZES, attn_implementation="sdpa"))),
        "mpnet_mean": Mean(MPNetModel(MPNetConfig(**SIZES))),
        "t5_mean": Mean(T5EncoderModel(t5)),
        "distilbert_tokens": Logits(DistilBertForTokenClassification(tokens)),
    }


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 30, (2, 17))
    open_axes = {0: "batch", 1: "sequence"}
    for name, model in encoders().items():
        made = io.BytesIO()
        torch.onnx.export(
            model.eval(),
            (ids, torch.ones_like(ids)),
            made,
            input_names=["input_ids", "attention_mask"],
            output_names=["y"],
            dynamic_axes={
                "input_ids": open_axes,
                "attention_mask": open_axes,
                "y": open_axes if name.endswith("tokens") else {0: "batch"},
            },
            opset_version=17,
            dynamo=False,
        )
        # Without the time of writing, so that the same export gives the same file.
        (TARGET / f"{name}.onnx.gz").write_bytes(gzip.compress(made.getvalue(), mtime=0))


if __name__ == "__main__":
    main()
