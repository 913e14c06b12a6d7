"""Transformers, built from the configurations of their published checkpoints, without the checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from spec import HUGGING_FACE, DimSpec, InputSpec, ModelSpec, image

# Plain attention exports as MatMul, Softmax, MatMul: what most exported models hold.
EAGER = {"attn_implementation": "eager"}


def with_varied_vectors(model: nn.Module) -> nn.Module:
    """ViewOp biases and norm weights off the zeros and ones they are initialised to: trained models have none there."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


class Outputs(nn.Module):
    """A model of transformers with positional inputs and chosen outputs."""

    def __init__(self, model: nn.Module, arguments: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = with_varied_vectors(model)
        self._arguments = arguments
        self._outputs = outputs

    def forward(self, *inputs: Tensor) -> Any:
        result = self.model(**dict(zip(self._arguments, inputs, strict=True)))
        chosen = tuple(result[output] for output in self._outputs)
        return chosen[0] if len(chosen) == 1 else chosen


# Shapes and layers of openai/whisper-tiny; mel frames 3000 (30 s).
WHISPER_TINY: dict[str, Any] = {
    "vocab_size": 51865,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    **EAGER,
}


class WhisperDecoder(nn.Module):
    """Tokens and encoder states in, next-token logits out; no key-value cache, the whole prefix each time."""

    def __init__(self, whole: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = with_varied_vectors(whole.model.decoder)
        self.proj_out = whole.proj_out

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        # Given no mask, transformers looks for packed sequences, with operators that tracing cannot export.
        length = input_ids.shape[1]
        causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        result = self.decoder(
            input_ids=input_ids,
            attention_mask=causal,
            encoder_hidden_states=encoder_hidden_states,
            use_cache=False,
        )
        return self.proj_out(result.last_hidden_state)


def _whisper() -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration(WhisperConfig(**WHISPER_TINY))


def _whisper_encoder() -> nn.Module:
    return Outputs(_whisper().model.encoder, ("input_features",), ("last_hidden_state",))


def _distilbert() -> nn.Module:
    # The sizes of distilbert-base-uncased-finetuned-sst-2-english are the defaults.
    model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=2, **EAGER))
    return Outputs(model, ("input_ids", "attention_mask"), ("logits",))


def _clip_text() -> nn.Module:
    # The text side of openai/clip-vit-base-patch32; its sizes are the defaults.
    config = CLIPTextConfig(eos_token_id=CLIP_END, bos_token_id=CLIP_BEGIN, **EAGER)
    return Outputs(CLIPTextModel(config), ("input_ids", "attention_mask"), ("last_hidden_state", "pooler_output"))


def _vit() -> nn.Module:
    # google/vit-base-patch16-224: defaults.
    return Outputs(ViTForImageClassification(ViTConfig(num_labels=1000, **EAGER)), ("pixel_values",), ("logits",))


def _swin() -> nn.Module:
    # microsoft/swin-tiny-patch4-window7-224: defaults.
    return Outputs(SwinForImageClassification(SwinConfig(num_labels=1000, **EAGER)), ("pixel_values",), ("logits",))


def _swinv2() -> nn.Module:
    # microsoft/swinv2-tiny-patch4-window8-256 fed the paper's 224 pixels: stages are padded to whole windows.
    config = Swinv2Config(image_size=224, window_size=8, num_labels=1000, **EAGER)
    return Outputs(Swinv2ForImageClassification(config), ("pixel_values",), ("logits",))


def _tokens(vocabulary: int, first: int, last: int | None, sequence: str = "sequence") -> InputSpec:
    parameters = {"vocabulary": vocabulary, "first": first} | ({} if last is None else {"last": last})
    return InputSpec(name="input_ids", dtype="int64", shape=("batch", sequence), fill="tokens", parameters=parameters)


CLIP_BEGIN, CLIP_END = 49406, 49407
MASK = InputSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"), fill="ones")
BATCH = DimSpec(name="batch", typical=1)


def _vision(name: str, title: str, source: str, build: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        title=title,
        task="image classification, 1000 classes",
        source=source,
        licence=HUGGING_FACE,
        build=build,
        inputs=(image(224, name="pixel_values"),),
        outputs={"logits": {}},
    )


SPECS = (
    ModelSpec(
        name="distilbert",
        title="DistilBERT base, SST-2 classifier",
        task="text classification, 2 classes",
        source="Sanh et al., arXiv:1910.01108; sizes of distilbert-base-uncased-finetuned-sst-2-english",
        licence=HUGGING_FACE,
        build=_distilbert,
        inputs=(_tokens(30522, 101, 102), MASK),
        outputs={"logits": {0: "batch"}},
        dims=(BATCH, DimSpec(name="sequence", typical=128, maximum=512)),
        checked_dims=({}, {"batch": 2, "sequence": 17}),
    ),
    ModelSpec(
        name="clip-text",
        title="CLIP ViT-B/32, text encoder",
        task="text embedding, 512 features",
        source="Radford et al., arXiv:2103.00020; sizes of openai/clip-vit-base-patch32",
        licence=HUGGING_FACE,
        build=_clip_text,
        # Ids below the two markers, so that the end marker is where the pooled features are taken.
        inputs=(_tokens(CLIP_BEGIN, CLIP_BEGIN, CLIP_END), MASK),
        outputs={"last_hidden_state": {0: "batch", 1: "sequence"}, "pooler_output": {0: "batch"}},
        dims=(BATCH, DimSpec(name="sequence", typical=77, maximum=77)),
        checked_dims=({}, {"batch": 2, "sequence": 16}),
    ),
    ModelSpec(
        name="whisper-tiny-encoder",
        title="Whisper tiny, encoder",
        task="speech recognition, 30 s of log-mel features to states",
        source="Radford et al., arXiv:2212.04356; sizes of openai/whisper-tiny",
        licence=HUGGING_FACE,
        build=_whisper_encoder,
        inputs=(InputSpec(name="input_features", dtype="float32", shape=(1, 80, 3000), fill="mel"),),
        outputs={"last_hidden_state": {}},
    ),
    ModelSpec(
        name="whisper-tiny-decoder",
        title="Whisper tiny, decoder without key-value cache",
        task="speech recognition, states and token prefix to next-token logits",
        source="Radford et al., arXiv:2212.04356; sizes of openai/whisper-tiny",
        licence=HUGGING_FACE,
        build=lambda: WhisperDecoder(_whisper()),
        inputs=(
            _tokens(50257, 50258, None, "decoder_sequence"),
            InputSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", 1500, 384), fill="normal"),
        ),
        outputs={"logits": {0: "batch", 1: "decoder_sequence"}},
        dims=(BATCH, DimSpec(name="decoder_sequence", typical=16, maximum=448)),
        checked_dims=({}, {"batch": 2, "decoder_sequence": 5}),
    ),
    _vision("vit-b16", "ViT-B/16", "Dosovitskiy et al., arXiv:2010.11929; google/vit-base-patch16-224", _vit),
    _vision("swin-t", "Swin-T", "Liu et al., arXiv:2103.14030; microsoft/swin-tiny-patch4-window7-224", _swin),
    _vision(
        "swinv2-t",
        "SwinV2-T, window 8",
        "Liu et al., arXiv:2111.09883; microsoft/swinv2-tiny-patch4-window8-256 at 224 pixels",
        _swinv2,
    ),
)
