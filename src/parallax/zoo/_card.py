"""What is known of a zoo model without opening it: one JSON card per model, written by its exporter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib import resources
from typing import Any

from parallax.errors import ConfigError

_CARD_SUFFIX = ".json"
_STRUCTURE_SUFFIX = ".onnx.gz"


class Fill(Enum):
    """How `example_inputs` fills an input; the card's `parameters` hold the numbers."""

    IMAGE = "image"
    """Pixels uniform in [0, 1], then (x - mean) / deviation per channel."""
    MEL = "mel"
    """A log-mel spectrogram as Whisper's feature extractor scales it: about [-1, 1], smooth over time."""
    NORMAL = "normal"
    """Standard normal values."""
    TOKENS = "tokens"
    """Token ids in [0, vocabulary), each row beginning with `first` and ending with `last` where given."""
    ONES = "ones"
    """Ones: an attention mask that hides nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicDim:
    """A dimension left open in the model: its usual size and the largest one the model can take (None: no limit)."""

    name: str
    typical: int
    maximum: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputInfo:
    """An input of a zoo model. `shape` names dynamic dimensions; `typical_shape` puts their usual sizes in."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    typical_shape: tuple[int, ...]
    fill: Fill
    parameters: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The card of a zoo model.

    `nodes` counts the nodes of the graph and of the bodies in it; `parameters` what the architecture learns, counted
    before batch normalisations are folded into convolutions; `weight_bytes` the bytes of all initializers of the graph;
    `file_bytes` the size of the materialised file.
    """

    name: str
    title: str
    task: str
    source: str
    licence: str
    opset: int
    nodes: int
    parameters: int
    weight_bytes: int
    file_bytes: int
    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]
    dynamic_dims: tuple[DynamicDim, ...]


@cache
def names() -> tuple[str, ...]:
    """Names of all zoo models, sorted: what `load`, `info` and `zoo:NAME` accept."""
    entries = (resources.files("parallax.zoo") / "data").iterdir()
    return tuple(sorted(e.name.removesuffix(_CARD_SUFFIX) for e in entries if e.name.endswith(_CARD_SUFFIX)))


@cache
def info(name: str) -> ModelInfo:
    """The card of one model; reads a small file, never the model.

    Raises: ConfigError listing the names, if there is no such model.
    """
    check_name(name)
    text = (resources.files("parallax.zoo") / "data" / (name + _CARD_SUFFIX)).read_text(encoding="utf-8")
    return parse_card(name, json.loads(text))


def parse_card(name: str, card: Mapping[str, Any]) -> ModelInfo:
    """The typed form of a card's JSON object. Raises KeyError or ValueError if a field is missing or unknown."""
    dims = tuple(DynamicDim(**dim) for dim in card["dynamic_dims"])
    typical = {dim.name: dim.typical for dim in dims}
    return ModelInfo(
        name=name,
        title=card["title"],
        task=card["task"],
        source=card["source"],
        licence=card["licence"],
        opset=card["opset"],
        nodes=card["nodes"],
        parameters=card["parameters"],
        weight_bytes=card["weight_bytes"],
        file_bytes=card["file_bytes"],
        inputs=tuple(_input_info(entry, typical) for entry in card["inputs"]),
        outputs=tuple(card["outputs"]),
        dynamic_dims=dims,
    )


def read_structure_bytes(name: str) -> bytes:
    """The stored (compressed) structure of one model. Raises ConfigError if there is no such model."""
    check_name(name)
    return (resources.files("parallax.zoo") / "data" / (name + _STRUCTURE_SUFFIX)).read_bytes()


def check_name(name: str) -> None:
    """Raises ConfigError listing the names, if there is no such model."""
    if name not in names():
        import difflib  # for a message

        close = difflib.get_close_matches(name, names(), n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no zoo model is called {name!r}", fix=f"{guess}choose one of: {', '.join(names())}")


def _input_info(entry: Mapping[str, Any], typical: Mapping[str, int]) -> InputInfo:
    shape: tuple[int | str, ...] = tuple(entry["shape"])
    return InputInfo(
        name=entry["name"],
        dtype=entry["dtype"],
        shape=shape,
        typical_shape=tuple(typical[size] if isinstance(size, str) else size for size in shape),
        fill=Fill(entry["fill"]),
        parameters=dict(entry["parameters"]),
    )
