from __future__ import annotations

import io
import pickle
from importlib import resources

import onnx
import pytest

from parallax import zoo
from parallax.errors import ConfigError
from parallax.zoo._card import read_structure_bytes
from parallax.zoo._structure import materialise, read_structure, recipe_of

# Sizes as published by the models' authors or reference implementations.
PUBLISHED_PARAMETERS = {
    "clip-text": 63_165_952,
    "distilbert": 66_955_010,
    "mobilenetv2": 3_504_872,
    "mobilenetv3-s": 2_542_856,
    "nasnet-mobile": 5_289_978,
    "resnet18": 11_689_512,
    "swin-t": 28_288_354,
    "swinv2-t": 28_351_570,
    "vit-b16": 86_567_656,
    "yolov8n": 3_157_200,
}
OWN_DESIGNS = {"lstm-if-loop"}
WHISPER_TINY_PARAMETERS = 37_760_640

# The tensor interface that users of these models know.
INTERFACES = {
    "clip-text": (("input_ids", "attention_mask"), ("last_hidden_state", "pooler_output")),
    "distilbert": (("input_ids", "attention_mask"), ("logits",)),
    "lstm-if-loop": (("features",), ("logits", "steps")),
    "mobilenetv2": (("image",), ("logits",)),
    "mobilenetv3-s": (("image",), ("logits",)),
    "nasnet-mobile": (("image",), ("logits",)),
    "resnet18": (("image",), ("logits",)),
    "swin-t": (("pixel_values",), ("logits",)),
    "swinv2-t": (("pixel_values",), ("logits",)),
    "vit-b16": (("pixel_values",), ("logits",)),
    "whisper-tiny-decoder": (("input_ids", "encoder_hidden_states"), ("logits",)),
    "whisper-tiny-encoder": (("input_features",), ("last_hidden_state",)),
    "yolov8n": (("images",), ("output0",)),
}

every_model = pytest.mark.parametrize("name", INTERFACES)


def structure_with_weights_as_inputs(name: str) -> onnx.ModelProto:
    """The stored graph in a form that ONNX's checker accepts without drawing a weight."""
    model = read_structure(read_structure_bytes(name))
    kept = []
    for tensor in model.graph.initializer:
        if recipe_of(tensor) is None:
            kept.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
        else:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def declared_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_names_are_the_thirteen_models() -> None:
    assert zoo.names() == tuple(sorted(INTERFACES))


def test_paper_models_are_ten_of_the_zoo() -> None:
    assert len(set(zoo.PAPER_MODELS)) == 10
    assert set(zoo.PAPER_MODELS) <= set(zoo.names())


def test_every_card_has_its_structure_and_nothing_else_is_shipped() -> None:
    shipped = {entry.name for entry in (resources.files("parallax.zoo") / "data").iterdir()}
    assert shipped == {f"{name}{suffix}" for name in zoo.names() for suffix in (".json", ".onnx.gz")}


@every_model
def test_stored_form_is_small(name: str) -> None:
    assert len(read_structure_bytes(name)) < 100 * 1024
    assert zoo.info(name).weight_bytes > 5 * 2**20


@every_model
def test_structure_is_valid_onnx_with_inferable_shapes(name: str) -> None:
    onnx.checker.check_model(structure_with_weights_as_inputs(name), full_check=True)


@every_model
def test_card_tells_the_graphs_interface(name: str) -> None:
    card = zoo.info(name)
    graph = read_structure(read_structure_bytes(name)).graph
    assert (tuple(entry.name for entry in card.inputs), card.outputs) == INTERFACES[name]
    assert tuple(value.name for value in graph.output) == card.outputs
    for entry, value in zip(card.inputs, graph.input, strict=True):
        assert entry.name == value.name
        assert entry.shape == declared_shape(value)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        assert entry.dtype == dtype.name


@every_model
def test_dynamic_dims_are_those_of_the_inputs(name: str) -> None:
    card = zoo.info(name)
    named = {size for entry in card.inputs for size in entry.shape if isinstance(size, str)}
    assert {dim.name for dim in card.dynamic_dims} == named
    for entry in card.inputs:
        assert all(isinstance(size, int) and size > 0 for size in entry.typical_shape)


@every_model
def test_card_counts_what_the_graph_holds(name: str) -> None:
    card = zoo.info(name)
    model = read_structure(read_structure_bytes(name))

    def count(graph: onnx.GraphProto) -> int:
        bodies = (a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
        return len(graph.node) + sum(count(body) for body in bodies)

    assert card.nodes == count(model.graph)
    assert card.opset == next(entry.version for entry in model.opset_import if entry.domain == "")
    weight_bytes = 0
    for tensor in model.graph.initializer:
        elements = 1
        for size in tensor.dims:
            elements *= size
        weight_bytes += elements * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    assert card.weight_bytes == weight_bytes


@every_model
def test_card_tells_the_size_of_the_whole_file(name: str) -> None:
    class Announced(Exception):
        pass

    def stop(written: int, total: int) -> None:
        raise Announced(total)

    with pytest.raises(Announced) as announced:
        materialise(read_structure(read_structure_bytes(name)), io.BytesIO(), progress=stop)
    assert announced.value.args == (zoo.info(name).file_bytes,)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_architecture_has_the_published_number_of_parameters(name: str) -> None:
    assert zoo.info(name).parameters == pytest.approx(PUBLISHED_PARAMETERS[name], rel=1e-3)


def test_both_halves_of_whisper_add_up_to_the_published_number_of_parameters() -> None:
    halves = (zoo.info("whisper-tiny-encoder"), zoo.info("whisper-tiny-decoder"))
    assert sum(half.parameters for half in halves) == WHISPER_TINY_PARAMETERS


def test_every_published_model_has_its_size_checked() -> None:
    checked = set(PUBLISHED_PARAMETERS) | OWN_DESIGNS | {"whisper-tiny-encoder", "whisper-tiny-decoder"}
    assert checked == set(zoo.names())


def test_control_flow_model_has_lstm_if_and_loop() -> None:
    graph = read_structure(read_structure_bytes("lstm-if-loop")).graph
    operators = {node.op_type for node in graph.node}
    assert {"LSTM", "If", "Loop"} <= operators
    (branching,) = (node for node in graph.node if node.op_type == "If")
    assert min(len(attribute.g.node) for attribute in branching.attribute) >= 10


def test_unknown_name_is_refused_with_the_list() -> None:
    for call in (zoo.info, zoo.load, zoo.example_inputs):
        with pytest.raises(ConfigError, match=r"no zoo model is called 'resnet-18'.*resnet18.*yolov8n"):
            call("resnet-18")


def test_cards_are_values() -> None:
    card = zoo.info("distilbert")
    assert pickle.loads(pickle.dumps(card)) == card
    assert hash(card) == hash(pickle.loads(pickle.dumps(card)))
