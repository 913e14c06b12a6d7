"""Two versions of one model, told apart by what they compute, in every form a model file comes in."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

X = np.linspace(-2, 2, 8, dtype=np.float32)[:, None]


def version(number: int, columns: int = 64) -> onnx.ModelProto:
    """Two chains over x[N, 1] and a weight of ``columns`` elements each, all of the version's number."""
    nodes, weights = [], []
    for chain in ("a", "b"):
        weights.append(numpy_helper.from_array(np.full(columns, number, np.float32), f"w_{chain}"))
        nodes += [
            helper.make_node("Sin" if chain == "a" else "Cos", ["x"], [f"s_{chain}"], name=f"S_{chain}"),
            helper.make_node("Add", [f"s_{chain}", f"w_{chain}"], [f"m_{chain}"], name=f"M_{chain}"),
            helper.make_node("Tanh", [f"m_{chain}"], [f"t_{chain}"], name=f"T_{chain}"),
            helper.make_node("ReduceMax", [f"t_{chain}"], [f"r_{chain}"], name=f"R_{chain}", axes=[1]),
        ]
    nodes.append(helper.make_node("Add", ["r_a", "r_b"], ["y"], name="Join"))
    graph = helper.make_graph(
        nodes,
        "versions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(number: int) -> NDArray[np.float32]:
    """What `version` computes from `X`."""
    return np.asarray(np.tanh(np.sin(X) + number) + np.tanh(np.cos(X) + number), np.float32)


SMALL, MAPPED, LARGE = 64, 1 << 18, 9 << 19
"""Columns: a file that is read, one that is mapped (2 MiB), and one whose weights are too many to copy (36 MiB)."""


def write(path: Path, number: int, columns: int = SMALL, *, external: bool = False) -> Path:
    """Write a version into the file at ``path``, and its weights beside it if ``external``."""
    model = version(number, columns)
    if external:
        data = path.with_name(f"{path.name}.data")
        with open(data, "wb") as file:
            for tensor in model.graph.initializer:
                raw = tensor.raw_data
                set_external_data(tensor, data.name, offset=file.tell(), length=len(raw))
                tensor.ClearField("raw_data")
                file.write(raw)
    path.write_bytes(model.SerializeToString())
    return path


def replace(path: Path, number: int, columns: int = SMALL, *, external: bool = False) -> None:
    """Put another version in the file's place, as a deployment does."""
    staging = path.with_name("staging")
    staging.mkdir()
    write(staging / path.name, number, columns, external=external)
    for made in staging.iterdir():
        os.replace(made, path.with_name(made.name))
    staging.rmdir()


def runs(session: Any, number: int) -> None:
    """Raises AssertionError unless the session computes this version."""
    np.testing.assert_allclose(session.run(None, {"x": X})[0], answer(number), rtol=1e-5)


def binds(session: Any, number: int) -> None:
    """Likewise, by an IO binding, which asks for the session of the whole model."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.copy_outputs_to_cpu()[0], answer(number), rtol=1e-5)


def options(threads: int) -> onnxruntime.SessionOptions:
    """Session options with so many threads."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    return made


def in_fork(job: Callable[[], object]) -> str:
    """ "done" if ``job`` ends well in a forked child, else its error."""
    read, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = "done"
        try:
            job()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        os.write(write_end, said.encode()[:60_000])
        # At once: how a forked child's interpreter ends is ONNX Runtime's affair.
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
