"""Bad input through the command line: exit code 2, one line that says what and how to mend, nothing on stdout."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.cli._models import affine, invoke, save, two_inputs, value

COMMANDS = ("inspect", "run", "bench", "tune", "compile")


def assert_refused(*arguments: object, says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert says in line
    # What is wrong and how to mend it are two clauses.
    assert "; " in line


def _truncated(folder: Path) -> Path:
    path = affine(folder / "whole.onnx")
    data = path.read_bytes()
    (folder / "cut.onnx").write_bytes(data[: len(data) // 2])
    return folder / "cut.onnx"


def _random_bytes(folder: Path) -> Path:
    path = folder / "noise.onnx"
    path.write_bytes(random.Random(7).randbytes(4096))
    return path


def _empty(folder: Path) -> Path:
    path = folder / "empty.onnx"
    path.write_bytes(b"")
    return path


def _text(folder: Path) -> Path:
    path = folder / "page.onnx"
    path.write_text("<!DOCTYPE html><html>sign in to download</html>")
    return path


def _cyclic(folder: Path) -> Path:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return save(
        nodes, [value("x", TensorProto.FLOAT, [4])], [value("b", TensorProto.FLOAT, [4])], folder / "cycle.onnx"
    )


def _undefined_tensor(folder: Path) -> Path:
    nodes = [helper.make_node("Add", ["x", "nowhere"], ["y"])]
    return save(nodes, [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])], folder / "gap.onnx")


def _future_opset(folder: Path) -> Path:
    path = affine(folder / "future.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 9999
    onnx.save(model, path)
    return path


def _external(folder: Path, location: str) -> Path:
    """A model whose one weight is said to lie at ``location``."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "test",
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
        [tensor],
    )
    path = folder / "external.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def _missing_external(folder: Path) -> Path:
    return _external(folder, "gone.bin")


def _escaping_external(folder: Path) -> Path:
    (folder / "secret.bin").write_bytes(bytes(16))
    (folder / "model").mkdir()
    return _external(folder / "model", "../secret.bin")


def _unknown_operator(folder: Path) -> Path:
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"])]
    return save(nodes, [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])], folder / "odd.onnx")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "make",
    [
        *(_truncated, _random_bytes, _empty, _text, _cyclic, _undefined_tensor, _future_opset),
        *(_missing_external, _escaping_external),
    ],
)
def test_a_broken_model_is_refused_by_every_command(command: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_refused(command, make(tmp_path), says="")


@pytest.mark.parametrize("command", ["run", "bench", "tune", "compile"])
def test_an_operator_that_nobody_knows_is_named(command: str, tmp_path: Path) -> None:
    assert_refused(command, _unknown_operator(tmp_path), says="NoSuchOperator")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_not_there_is_named(command: str, tmp_path: Path) -> None:
    assert_refused(command, tmp_path / "gone.onnx", says="gone.onnx")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_is_not_a_model(command: str, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, says="is a folder")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_zoo_name_lists_those_there_are(command: str) -> None:
    assert_refused(command, "zoo:resnet19", says="resnet18")


def test_a_zoo_name_without_its_prefix_is_recognised() -> None:
    assert_refused("inspect", "resnet18", says="did you mean zoo:resnet18?")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("x=nan,3", "'nan'"),
        ("x=2,-3", "'-3'"),
        ("x=2,3.5", "'3.5'"),
        ("x=inf,3", "'inf'"),
        ("x=٢,3", "'٢'"),
        ("2,3", "names no input"),
        ("=2,3", "names no input"),
        ("x=2,99999999999999999999", "64 bits"),
    ],
)
def test_a_shape_that_is_none_is_refused(command: str, shape: str, says: str, tmp_path: Path) -> None:
    assert_refused(command, affine(tmp_path / "m.onnx"), "--shape", shape, says=says)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("shape", "says"), [("z=2,3", "'z'"), ("x=2", "rank 1"), ("x=2,4", "3")])
def test_a_shape_that_does_not_fit_is_refused(command: str, shape: str, says: str, tmp_path: Path) -> None:
    assert_refused(command, affine(tmp_path / "m.onnx"), "--shape", shape, says=says)


@pytest.mark.parametrize(
    ("value_of_input", "says"),
    [
        ("z=random", "did you mean"),
        ("w=gone.npy", "no input 'w'"),
        ("index=gone.npy", "gone.npy"),
        ("index=words", "cannot read --input"),
        ("index=1.5", "whole numbers"),
        ("index=1e99999", "whole numbers"),
        ("index=99999999999999999999", "out of range"),
        ("random", "names no input"),
        ("table=1,2,3,4,5", "do not fill"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(value_of_input: str, says: str, tmp_path: Path) -> None:
    path = two_inputs(tmp_path / "m.onnx")
    result = invoke("run", path, "--input", value_of_input.replace("z=", "tabel="))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3), np.float64), ".astype('float32')"),
        (np.zeros((2, 3), np.int64), "takes float32, not int64"),
        (np.zeros((2, 3, 1), np.float32), "rank 3"),
        (np.zeros((2, 4), np.float32), "size 4 along axis 1"),
        (np.array(["a", "b"]), "takes float32"),
    ],
)
def test_an_array_that_does_not_fit_its_input_is_refused(array: np.ndarray, says: str, tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", array)
    assert_refused("run", path, "--input", f"x={tmp_path / 'x.npy'}", says=says)


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert_refused("run", affine(tmp_path / "m.onnx"), "--input", f"x={tmp_path / 'x.npy'}", says="cannot read")


def test_an_array_file_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.float32)) | {"shape": (1 << 40,)}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    assert_refused("run", affine(tmp_path / "m.onnx"), "--input", f"x={tmp_path / 'x.npy'}", says="cannot read")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert_refused("run", affine(tmp_path / "m.onnx"), "--input", str(tmp_path / "x.npz"), says="cannot read")


def test_a_random_input_larger_than_memory_is_refused(tmp_path: Path) -> None:
    path = two_inputs(tmp_path / "m.onnx")
    assert_refused("run", path, "--shape", "table=1000000000000,4", says="GiB")


@pytest.mark.parametrize("option", ["--trace", "--save"])
def test_an_output_file_without_a_folder_is_refused_before_the_run(option: str, tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    assert_refused("run", path, option, tmp_path / "gone" / "file", says="there is no folder")


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "m.onnx", "--runs", "0"], ["inspect", "m.onnx", "--rule", "no"]]
)
def test_wrong_usage_exits_with_2_and_points_to_help(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "--help" in result.stderr
