from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from parallax.errors import UnsupportedModelError
from parallax.model import Model, load_model, read_graph_only
from tests.model._models import changed, conv_model, model, node, run, value, weight

FEEDS = {"x": weight((2, 3, 8, 8), 9)}


def everything(loaded: Model) -> list[np.ndarray]:
    names = [[info.name for info in infos] for infos in (loaded.graph.inputs, loaded.graph.outputs)]
    return run(loaded.extract(range(len(loaded.graph.nodes)), *names, name="all"), FEEDS)


class _PathLike:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_every_kind_of_source_gives_the_same_model(tmp_path: Path) -> None:
    proto = conv_model()
    data = proto.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    expected = run(proto, FEEDS)
    digests = set()
    for source in (path, str(path), _PathLike(path), data, bytearray(data), memoryview(data), proto):
        loaded = load_model(source)  # type: ignore[arg-type]
        digests.add(loaded.structure_digest)
        for ours, theirs in zip(everything(loaded), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        if loaded.path is None:
            assert loaded.whole() == data
        else:
            assert loaded.path == path
            assert loaded.whole() == str(path)
    assert len(digests) == 1


def test_the_callers_message_is_left_alone() -> None:
    proto = conv_model()
    before = proto.SerializeToString()
    load_model(proto, shapes={"x": (1, 3, 8, 8)})
    assert proto.SerializeToString() == before


def test_metadata_versions_and_weight_bytes_are_those_of_the_file() -> None:
    proto = changed(conv_model(), lambda m: helper.set_model_props(m, {"author": "someone"}))
    loaded = load_model(proto)
    assert loaded.metadata == {"author": "someone"}
    assert loaded.ir_version == 10
    assert loaded.opset_imports[""] == 21
    assert loaded.weight_bytes == 16 * 27 * 4 + 16 * 4 + 2 * 8 + 640 * 2 + 400 * 4 + 2


def test_the_digest_sees_structure_shapes_and_small_constants_but_no_weights() -> None:
    def digest(change: object = None, **options: object) -> str:
        proto = conv_model() if change is None else changed(conv_model(), change)  # type: ignore[arg-type]
        return load_model(proto, **options).structure_digest  # type: ignore[arg-type]

    def set_raw(index: int, array: np.ndarray) -> object:
        return lambda m: setattr(m.graph.initializer[index], "raw_data", array.tobytes())

    base = digest()
    assert digest(set_raw(0, weight((16, 3, 3, 3), 5))) == base
    assert digest(set_raw(1, weight((16,), 5))) != base
    assert digest(lambda m: m.graph.node[0].attribute.pop()) != base
    assert digest(shapes={"x": (1, 3, 8, 8)}) != base
    assert digest(shapes={"x": (1, 3, 8, 8)}) != digest(shapes={"x": (2, 3, 8, 8)})
    loaded = load_model(conv_model())
    assert loaded.with_shapes({"x": (1, 3, 8, 8)}).structure_digest == digest(shapes={"x": (1, 3, 8, 8)})


def test_weights_are_read_only_views_of_the_given_bytes() -> None:
    data = conv_model().SerializeToString()
    segment = load_model(data).extract([0], ["x"], ["c0"], name="conv")
    array = segment.weights["w"]
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    address = array.__array_interface__["data"][0]
    assert start <= address < start + len(data)
    assert not array.flags.writeable


def test_a_dropped_model_lets_go_of_its_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_model().SerializeToString())
    gc.collect()
    gc.disable()
    try:
        loaded = load_model(path)
        loaded.inferred()
        segment = loaded.extract([0], ["x"], ["c0"], name="conv")
        gone = weakref.ref(loaded)
        del loaded
        assert gone() is None, "the model is in a reference cycle"
        assert segment.weights["w"].sum() != 0, "a segment keeps the file mapped by itself"
    finally:
        gc.enable()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors under /proc")
def test_loading_many_times_leaks_no_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_model().SerializeToString())
    load_model(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        load_model(path)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_threads_share_one_inference() -> None:
    loaded = load_model(conv_model())
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(loaded.inferred())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(map(id, results))) == 1


@pytest.mark.parametrize("size", [3, 31, 32, 600], ids=str)
def test_of_an_initializer_defined_twice_the_one_that_the_runtime_takes_is_kept(size: int) -> None:
    proto = model([node("Sum", "w", "y")], [], [value("y", None)], {"w": weight((size,))})
    later = model([node("Sum", "w", "y")], [], [value("y", None)], {"w": weight((size,), 1)})
    proto.graph.initializer.extend(later.graph.initializer)
    loaded = load_model(proto)
    assert loaded.why_whole is None
    np.testing.assert_array_equal(run(loaded.extract([0], [], ["y"], name="all"), {})[0], run(proto, {})[0])


def test_a_constant_node_under_the_name_of_an_initializer_is_settled_too() -> None:
    first, second = weight((600,)), weight((600,), 1)
    constant = node("Constant", "", "w", value=numpy_helper.from_array(second))
    proto = model([constant, node("Sum", "w", "y")], [], [value("y", None)], {"w": first})
    loaded = load_model(proto)
    assert [item.op_type for item in loaded.graph.nodes] == ["Sum"]
    np.testing.assert_array_equal(run(loaded.extract([0], [], ["y"], name="all"), {})[0], run(proto, {})[0])


@pytest.mark.parametrize(("first", "second"), [((600,), (3,)), ((3,), (600,))])
def test_of_a_model_that_defines_an_initializer_in_two_shapes_no_part_is_taken_out(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    proto = model([node("Sum", "w", "y")], [], [value("y", None)], {"w": weight(first)})
    later = model([node("Sum", "w", "y")], [], [value("y", None)], {"w": weight(second, 1)})
    proto.graph.initializer.extend(later.graph.initializer)
    loaded = load_model(proto)
    assert loaded.why_whole == "initializer 'w' is defined more than once"
    with pytest.raises(UnsupportedModelError, match="more than once"):
        loaded.extract([0], [], ["y"], name="all")


def test_an_outline_needs_no_weights(tmp_path: Path) -> None:
    proto = conv_model()
    del proto.functions[:]
    proto.graph.node[1].CopyFrom(node("Relu", "c0", "c1"))
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="gone.data", size_threshold=0)
    (tmp_path / "gone.data").unlink()
    outline = read_graph_only(path)
    assert [node.op_type for node in outline.graph.nodes][:2] == ["Conv", "Relu"]
    assert outline.stated_names[:2] == ("conv", "")


def test_an_unnamed_initializer_is_ignored() -> None:
    proto = model([node("Relu", "x", "y")], [value("x")], [value("y")], {"": weight((3,))})
    loaded = load_model(proto)
    assert loaded.graph.initializers == {}
