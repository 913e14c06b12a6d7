"""Regenerate the structure-only models of `parallax.zoo`: python tools/zoo/export.py [NAME ...]

Builds each model with seeded random weights, exports it, checks ONNX Runtime against torch, condenses it, draws it
back, and checks that the drawn model is sane. Only then are its card and structure written. See README.md here.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

import attention
import nasnet
import recurrent
import vision
import yolo
from condense import condense
from parallax.zoo._card import ModelInfo, parse_card
from parallax.zoo._inputs import example_inputs_of
from parallax.zoo._structure import materialise, read_structure
from spec import ModelSpec
from weights import gather_weights

DATA = Path(__file__).resolve().parents[2] / "src" / "parallax" / "zoo" / "data"
OPSET = 17
DRAWS = 5
SPECS = {spec.name: spec for spec in (*vision.SPECS, *yolo.SPECS, *attention.SPECS, *nasnet.SPECS, *recurrent.SPECS)}


class ExportError(Exception):
    """An exported or redrawn model is not what it should be; nothing was written for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(SPECS)}; all by default")
    names = parser.parse_args().names or list(SPECS)
    unknown = [name for name in names if name not in SPECS]
    if unknown:
        parser.error(f"unknown model {', '.join(unknown)}; choose from {', '.join(SPECS)}")
    for name in names:
        export(SPECS[name])


def export(spec: ModelSpec) -> None:
    """Make one model's card and structure in `DATA`. Raises ExportError if a check fails."""
    torch.manual_seed(zlib.crc32(spec.name.encode()))
    module = spec.build().eval()
    card = _stated_card(spec)
    info = parse_card(spec.name, {**card, "opset": 0, "nodes": 0, "parameters": 0, "weight_bytes": 0, "file_bytes": 0})
    model = spec.export(module) if spec.export is not None else _torch_export(spec, module, info)
    model = gather_weights(model)
    onnx.checker.check_model(model, full_check=True)
    feeds = [example_inputs_of(info, seed=seed, dims=dims) for dims in spec.checked_dims for seed in spec.checked_seeds]
    for arrays in feeds:
        _check_against_torch(spec, module, model, arrays)
    stored, drawn, file_bytes = _condense_and_check(spec, model, feeds)
    card |= {
        "opset": next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        "nodes": sum(1 for _ in _all_nodes(model.graph)),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "weight_bytes": sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer),
        "file_bytes": file_bytes,
    }
    DATA.mkdir(exist_ok=True)
    (DATA / f"{spec.name}.onnx.gz").write_bytes(stored)
    (DATA / f"{spec.name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(
        f"{spec.name}: {card['nodes']} nodes, {card['parameters']:,} parameters, "
        f"{card['weight_bytes'] / 2**20:.1f} MiB in {len(stored) / 1024:.1f} KiB, {drawn} weights drawn",
        flush=True,
    )


def _condense_and_check(
    spec: ModelSpec, model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[bytes, int, int]:
    """Condense with the first set of seeds that redraws to a sane model.

    Returns: the stored form, the number of weights drawn, the size of the whole file in bytes.
    """
    for draw in range(DRAWS):
        stored, drawn = condense(model, spec.name, draw)
        whole = io.BytesIO()
        materialise(read_structure(stored), whole)
        redrawn = onnx.ModelProto.FromString(whole.getvalue())
        onnx.checker.check_model(redrawn, full_check=True)
        try:
            for arrays in feeds:
                _check_redrawn(spec, model, redrawn, arrays)
        except ExportError as error:
            print(f"{error}; drawing again", flush=True)
            continue
        return stored, drawn, len(whole.getvalue())
    raise ExportError(f"{spec.name}: none of {DRAWS} draws gave a sane model")


def _stated_card(spec: ModelSpec) -> dict[str, Any]:
    return {
        "title": spec.title,
        "task": spec.task,
        "source": spec.source,
        "licence": spec.licence,
        "inputs": [{**dataclasses.asdict(entry), "parameters": dict(entry.parameters)} for entry in spec.inputs],
        "outputs": list(spec.outputs),
        "dynamic_dims": [dataclasses.asdict(dim) for dim in spec.dims],
    }


def _torch_export(spec: ModelSpec, module: torch.nn.Module, info: ModelInfo) -> onnx.ModelProto:
    """Export by tracing: the graphs that most users' models consist of come from this exporter."""
    arrays = example_inputs_of(info, seed=0, dims={})
    axes = {
        entry.name: {axis: size for axis, size in enumerate(entry.shape) if isinstance(size, str)}
        for entry in spec.inputs
    }
    axes |= {name: dict(dynamic) for name, dynamic in spec.outputs.items()}
    target = io.BytesIO()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(array) for array in arrays.values()),
            str(path),
            input_names=list(arrays),
            output_names=list(spec.outputs),
            dynamic_axes={name: sizes for name, sizes in axes.items() if sizes},
            opset_version=OPSET,
            dynamo=False,
        )
        target.write(path.read_bytes())
    return onnx.ModelProto.FromString(target.getvalue())


def _check_against_torch(
    spec: ModelSpec, module: torch.nn.Module, model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]]
) -> None:
    with torch.no_grad():
        result = module(*(torch.from_numpy(array) for array in arrays.values()))
    expected = [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]
    actual = _session(model).run(list(spec.outputs), dict(arrays))
    for name, want, got in zip(spec.outputs, expected, actual, strict=True):
        if want.shape != got.shape:
            raise ExportError(f"{spec.name}: output {name} has shape {got.shape}, torch gives {want.shape}")
        error = float(np.abs(want.astype(np.float64) - got).max() / max(float(np.abs(want).max()), 1e-12))
        if not error <= spec.tolerance:
            raise ExportError(f"{spec.name}: output {name} differs from torch by {error:.2e} of its largest value")


def _check_redrawn(
    spec: ModelSpec, model: onnx.ModelProto, redrawn: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """The redrawn model is alive: all tensors finite and moderate, none dead, outputs as large as with true weights."""
    want = _all_floats(model, arrays)
    for name, got in _all_floats(redrawn, arrays).items():
        masked = got <= -1e30  # additive attention masks: softmax turns these into zeros
        if not np.isfinite(got[~masked]).all() or np.abs(got[~masked]).max(initial=0.0) > 1e5:
            raise ExportError(f"{spec.name}: redrawn tensor {name} is not finite, or far too large")
        if not got.any() and want[name].any():
            raise ExportError(f"{spec.name}: redrawn tensor {name} is all zeros")
    outputs = [_session(graph).run(list(spec.outputs), dict(arrays)) for graph in (model, redrawn)]
    for name, true, got in zip(spec.outputs, *outputs, strict=True):
        if got.dtype.kind != "f":
            continue
        if not np.isfinite(got).all() or got.std() == 0:
            raise ExportError(f"{spec.name}: redrawn output {name} is not finite, or constant")
        ratio = float(got.std() / true.std())
        if got.size >= 64 and not 0.25 <= ratio <= 4:
            raise ExportError(f"{spec.name}: redrawn output {name} deviates {ratio:.3g} times as much as the true one")


def _all_floats(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every float32 tensor that a node of the main graph makes, from a run without graph optimisation."""
    inferred = onnx.shape_inference.infer_shapes(model)
    outputs = {name for node in inferred.graph.node for name in node.output}
    names = [
        value.name
        for value in inferred.graph.value_info
        if value.name in outputs and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    inferred.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = _session(inferred, optimise=False)
    return dict(zip(names, session.run(names, dict(arrays)), strict=True))


def _session(model: onnx.ModelProto, *, optimise: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _all_nodes(body)


if __name__ == "__main__":
    main()
