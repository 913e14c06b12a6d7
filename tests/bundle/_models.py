"""Models with weights worth packing, and what the tests do with bundles of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import parallax

FloatArray = NDArray[np.float32]


def branching(path: Path, *, width: int = 64, seed: int = 0, external: bool = False) -> Path:
    """y = join of two chains of matrix products over float32 [rows, width]; ``width`` 600 has over 4 MiB of weights."""
    rng = np.random.default_rng(seed)
    weights, nodes, ends = [], [helper.make_node("Relu", ["x"], ["start"])], []
    for side in ("left", "right"):
        current = "start"
        for link in range(2):
            weight = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
            weights.append(numpy_helper.from_array(weight, f"w_{side}_{link}"))
            nodes.append(helper.make_node("MatMul", [current, f"w_{side}_{link}"], [f"{side}_{link}"]))
            nodes.append(helper.make_node("Tanh", [f"{side}_{link}"], [f"{side}_{link}_tanh"]))
            current = f"{side}_{link}_tanh"
        ends.append(current)
    nodes.append(helper.make_node("Add", ends, ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])
    graph = helper.make_graph(nodes, "branching", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.producer_name = "tests"
    entry = model.metadata_props.add()
    entry.key, entry.value = "labels", "cat,dog"
    onnx.save_model(model, path, save_as_external_data=external, location="weights/w.bin" if external else None)
    return path


def feeds(rows: int = 3, *, width: int = 64) -> dict[str, FloatArray]:
    return {"x": np.random.default_rng(7).standard_normal((rows, width)).astype(np.float32)}


def expected(path: Path, fed: dict[str, FloatArray]) -> FloatArray:
    """What plain ONNX Runtime says."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: FloatArray = session.run(None, fed)[0]
    return result


def compiled(folder: Path, *, cut: bool = False, width: int = 64, **options: Any) -> Path:
    """A bundle of `branching` in ``folder``."""
    model = branching(folder / "model.onnx", width=width)
    options |= {"min_gain": 0, "threads": 2} if cut else {}
    return parallax.compile(model, folder / "model.plx", **options)


def generation(bundle: Path) -> Path:
    """The folder with the bundle's files."""
    return next(bundle.glob("g-*"))


def bundle_files(bundle: Path) -> list[Path]:
    """All files of the bundle, in a fixed order."""
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def copied(bundle: Path, target: Path) -> Path:
    shutil.copytree(bundle, target)
    return target


def python(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A Python process on ``script``."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def forge(bundle: Path, edit: Callable[[dict[str, Any]], None], *, rehash: bool = True) -> None:
    """Change the manifest as somebody who knows the format would: with digests and sizes that agree again."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())["manifest"]
    edit(manifest)
    for record in manifest["files"] if rehash else []:
        file = bundle / record["path"]
        if file.is_file():
            record |= {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    sign(path, manifest)


def forge_plan(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the plan likewise."""
    path = generation(bundle) / "plan.json"
    plan = json.loads(path.read_text())
    edit(plan)
    path.write_text(json.dumps(plan))
    forge(bundle, lambda manifest: None)


def sign(path: Path, manifest: Any) -> None:
    """Write a manifest of any content with its digest, in the form that is read."""
    body = json.dumps(manifest, indent=1)
    path.write_text(f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "manifest": {body}}}\n')
