"""Totals of well-known models against the figures their authors and others publish."""

from __future__ import annotations

import onnx
import pytest

from parallax.graph import OpGraph, node_flops
from parallax.model import load_model
from parallax.profile import estimate_costs
from parallax.zoo import info, names
from parallax.zoo._card import read_structure_bytes
from parallax.zoo._structure import read_structure, recipe_of


def swinv2_gflops() -> float:
    """Twice the multiply-accumulates of Swin V2's tiny form, windows of 8, on 224 pixels.

    By the paper's sizes, because published totals are for 256 pixels: the linear layers see windows padded to whole
    ones (sides 56, 32, 16 and, where a window would be larger than the image, 7), the two others only true tokens.
    """
    total = 56**2 * 3 * 4**2 * 96
    for side, padded, window, size, layers in ((56, 56, 8, 96, 2), (28, 32, 8, 192, 2), (14, 16, 8, 384, 6)):
        total += layers * (padded**2 * (4 * size**2 + 2 * window**2 * size) + side**2 * 8 * size**2)
        total += (side // 2) ** 2 * 4 * size * 2 * size
    total += 2 * 7**2 * (12 * 768**2 + 2 * 7**2 * 768)
    return 2 * total / 1e9


PUBLISHED_GFLOPS = {
    # Twice the multiply-accumulates of torchvision's model pages.
    "resnet18": 2 * 1.814,
    "mobilenetv2": 2 * 0.301,
    "mobilenetv3-s": 2 * 0.057,
    "vit-b16": 2 * 17.56,
    "swin-t": 2 * 4.49,
    "swinv2-t": swinv2_gflops(),
    # Ultralytics' model page, which counts 2 per multiply-accumulate already.
    "yolov8n": 8.7,
    # From the sizes in their papers: 6 layers of 768 on 128 tokens; 12 of 512 on 77; 4 of 384 on 1500 after two
    # convolutions. Per layer 24 * tokens * size^2 + 4 * tokens^2 * size.
    "distilbert": 6 * (24 * 128 * 768**2 + 4 * 128**2 * 768) / 1e9,
    "clip-text": 12 * (24 * 77 * 512**2 + 4 * 77**2 * 512) / 1e9,
    "whisper-tiny-encoder": (4 * (24 * 1500 * 384**2 + 4 * 1500**2 * 384) + 2 * 384 * 3 * (3000 * 80 + 1500 * 384))
    / 1e9,
}


def structure(name: str) -> onnx.ModelProto:
    """The zoo's graph with its large weights as inputs: all that counting needs, and nothing to draw."""
    model = read_structure(read_structure_bytes(name))
    drawn = [tensor for tensor in model.graph.initializer if recipe_of(tensor) is not None]
    kept = [tensor for tensor in model.graph.initializer if recipe_of(tensor) is None]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for tensor in drawn:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def graph_of(name: str) -> OpGraph:
    """The model's graph at its usual input sizes."""
    shapes = {value.name: value.typical_shape for value in info(name).inputs}
    return load_model(structure(name), shapes=shapes).inferred()


@pytest.mark.parametrize("name", sorted(set(names()) & set(PUBLISHED_GFLOPS)))
def test_total_flops_are_those_published(name: str) -> None:
    # Published counts leave out activations, biases and normalisation; they are a few percent.
    graph = graph_of(name)
    flops = sum(node_flops(graph, node) or 0 for node in graph.nodes)
    assert flops / 1e9 == pytest.approx(PUBLISHED_GFLOPS[name], rel=0.06)


@pytest.mark.parametrize("name", names())
def test_the_table_knows_nearly_every_node(name: str) -> None:
    assert estimate_costs(graph_of(name), cores=2).known_fraction > 0.9
