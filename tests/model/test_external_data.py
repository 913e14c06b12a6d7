from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from parallax.errors import ExternalDataError, ModelError
from parallax.model import load_model
from tests.model._models import FLOAT, model, node, run, value, weight

DATA = weight((1000,))
FEEDS = {"x": weight((1000,), 1)}


def external(location: str, **entries: str) -> onnx.ModelProto:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[1000], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)
    return model([node("Add", "x w", "y")], [value("x", (1000,))], [value("y", (1000,))], [tensor])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "w.bin").write_bytes(DATA.tobytes())
    (tmp_path / "outside.bin").write_bytes(DATA.tobytes())
    return inside


def saved(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def check_runs(path: Path) -> None:
    loaded = load_model(path)
    assert loaded.weight_bytes == DATA.nbytes
    segment = loaded.extract([0], ["x"], ["y"], name="all")
    np.testing.assert_array_equal(segment.weights["w"], DATA)
    np.testing.assert_array_equal(run(segment, FEEDS)[0], FEEDS["x"] + DATA)


@pytest.mark.parametrize("entries", [{}, {"offset": "0", "length": "4000"}, {"offset": "0"}])
def test_external_weights_are_views_on_the_file(folder: Path, entries: dict[str, str]) -> None:
    check_runs(saved(folder, external("w.bin", **entries)))


def test_offsets_need_not_be_aligned(folder: Path) -> None:
    (folder / "odd.bin").write_bytes(b"abc" + DATA.tobytes())
    check_runs(saved(folder, external("odd.bin", offset="3", length="4000")))


def test_a_folder_below_the_model_is_inside(folder: Path) -> None:
    (folder / "data").mkdir()
    shutil.copy(folder / "w.bin", folder / "data" / "w.bin")
    check_runs(saved(folder, external("data/w.bin")))


def test_models_saved_by_onnx_with_external_data_load(folder: Path) -> None:
    proto = model([node("Add", "x w", "y")], [value("x", (1000,))], [value("y", (1000,))], {"w": DATA})
    path = folder / "saved.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="saved.data", size_threshold=0)
    check_runs(path)


def test_bytes_look_in_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    loaded = load_model(external("w.bin").SerializeToString())
    np.testing.assert_array_equal(loaded.extract([0], ["x"], ["y"], name="all").weights["w"], DATA)


@pytest.mark.parametrize(
    "location",
    [
        "../outside.bin",
        "a/../../outside.bin",
        "..\\outside.bin",
        "/etc/hosts",
        "C:\\secret",
        "C:secret",
        "\\\\host\\share",
        "",
    ],
)
def test_locations_that_leave_the_folder_are_refused(folder: Path, location: str) -> None:
    with pytest.raises(ExternalDataError, match=r"leaves the model's folder|no usable location") as raised:
        load_model(saved(folder, external(location)))
    assert "tensor 'w'" in str(raised.value)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
class TestLinks:
    def test_a_link_out_of_the_folder_is_refused(self, folder: Path) -> None:
        (folder / "link.bin").symlink_to("../outside.bin")
        with pytest.raises(ExternalDataError, match="link that leaves"):
            load_model(saved(folder, external("link.bin")))

    def test_a_linked_folder_is_refused(self, folder: Path) -> None:
        (folder / "link").symlink_to("..", target_is_directory=True)
        with pytest.raises(ExternalDataError, match="link that leaves"):
            load_model(saved(folder, external("link/outside.bin")))

    def test_a_link_within_the_folder_is_followed(self, folder: Path) -> None:
        (folder / "link.bin").symlink_to("w.bin")
        check_runs(saved(folder, external("link.bin")))

    def test_a_hub_cache_links_model_and_data_into_one_folder(self, folder: Path, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        saved(blobs, external("model.data"), "abc")
        (blobs / "def").write_bytes(DATA.tobytes())
        (snapshot / "model.onnx").symlink_to("../../blobs/abc")
        (snapshot / "model.data").symlink_to("../../blobs/def")
        check_runs(snapshot / "model.onnx")

    def test_a_link_to_itself_is_missing(self, folder: Path) -> None:
        (folder / "loop.bin").symlink_to("loop.bin")
        with pytest.raises(ExternalDataError, match="cannot read"):
            load_model(saved(folder, external("loop.bin")))


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ExternalDataError, match=r"cannot read external data 'gone\.bin': no such file") as raised:
        load_model(saved(folder, external("gone.bin")))
    assert str(folder) in str(raised.value)


def test_a_folder_is_no_data(folder: Path) -> None:
    os.mkdir(folder / "sub")
    with pytest.raises(ExternalDataError, match="is a folder"):
        load_model(saved(folder, external("sub")))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "4"}, "has 4000 bytes, but 4000 are needed from byte 4"),
        ({"offset": str(10**18)}, "has 4000 bytes"),
        ({"offset": "-4"}, "offset that is not a count"),
        ({"offset": "9" * 5000}, "offset that is not a count"),
        ({"length": "nan"}, "length that is not a count"),
        ({"length": "3996"}, "needs 4000 bytes but its data has 3996"),
        ({"length": "8000"}, "needs 4000 bytes but its data has 8000"),
    ],
)
def test_wrong_extents_are_refused(folder: Path, entries: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(saved(folder, external("w.bin", **entries)))


def test_huge_dimensions_are_refused_before_anything_is_allocated(folder: Path) -> None:
    proto = external("w.bin")
    proto.graph.initializer[0].dims[:] = [2**40, 2**30]
    with pytest.raises(ExternalDataError, match="has 4000 bytes"):
        load_model(saved(folder, proto))


def test_external_strings_are_refused(folder: Path) -> None:
    proto = external("w.bin")
    proto.graph.initializer[0].data_type = onnx.TensorProto.STRING
    with pytest.raises(ExternalDataError, match="string"):
        load_model(saved(folder, proto))


def test_external_tensors_inside_nodes_are_put_back(folder: Path) -> None:
    tensor = external("w.bin").graph.initializer[0]
    body = helper.make_graph([node("Add", "x w", "o")], "body", [], [value("o", (1000,))], [tensor])
    proto = model(
        [
            node("Constant", "", "k", value=tensor),
            node("If", "c", "z", then_branch=body, else_branch=body),
            node("Add", "z k", "y"),
        ],
        [value("x", (1000,)), value("c", (), onnx.TensorProto.BOOL)],
        [value("y", (1000,))],
    )
    loaded = load_model(saved(folder, proto))
    segment = loaded.extract([0, 1, 2], ["x", "c"], ["y"], name="all")
    feeds = {**FEEDS, "c": np.array(True)}
    np.testing.assert_array_equal(run(segment, feeds)[0], FEEDS["x"] + DATA + DATA)


def test_the_key_that_marks_lifted_tensors_cannot_be_forged(folder: Path) -> None:
    tensor = external("w.bin", **{"parallax.payload": "0"}).graph.initializer[0]
    proto = model([node("Constant", "", "y", value=tensor)], [], [value("y", (1000,))])
    with pytest.raises(ModelError, match="reserved key"):
        load_model(saved(folder, proto))
