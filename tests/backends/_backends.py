"""The backends that can be tested here, and tensors for them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends import Backend, CompiledModel, CompileOptions, open_backend
from parallax.backends.ort._plugins import WEBGPU, unload_plugin
from parallax.model import Model, SegmentModel, load_model

NAMES = ("cpu", "openvino", "webgpu", "emulated:pixel-6-gpu")
CPU_DEVICE = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)
Array = np.ndarray[Any, Any]


def swiftshader() -> Path:
    """Where tools/install_swiftshader.py puts it."""
    chosen = os.environ.get("PARALLAX_SWIFTSHADER")
    return Path(chosen) if chosen else Path(sys.prefix) / "share" / "swiftshader"


def hide_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package were not installed, whether it is or not."""

    class Hidden(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> None:
            if fullname == package:
                raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden, *sys.meta_path])


def obstacle(name: str) -> str | None:
    """Why a backend cannot be tested here, without loading anything that another test could notice."""
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'parallax-runtime[openvino]'"
    if name == "webgpu":
        if importlib.util.find_spec("onnxruntime_ep_webgpu") is None:
            return "the WebGPU plugin is not installed: pip install 'parallax-runtime[webgpu]'"
        if not (swiftshader() / "libvk_swiftshader.so").is_file() and not _gpu_is_promised():
            return "tools/install_swiftshader.py was not run, and PARALLAX_TEST_GPU=1 does not say that there is a GPU"
    return None


def _gpu_is_promised() -> bool:
    return os.environ.get("PARALLAX_TEST_GPU") == "1"


@contextlib.contextmanager
def opened(name: str) -> Iterator[Backend]:
    """A backend, and the process afterwards as it was before: sessions of other tests must not see the plugin."""
    if name != "webgpu":
        yield open_backend(name)
        return
    with contextlib.ExitStack() as stack:
        if not _gpu_is_promised():
            load_swiftshader(swiftshader())
            stack.enter_context(
                _environment(
                    VK_ICD_FILENAMES=str(swiftshader() / "vk_swiftshader_icd.json"),
                    ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER="1",
                )
            )
        backend: Backend = open_backend(name)
        yield backend
        del backend
        gc.collect()
        unload_plugin(WEBGPU)


@functools.cache
def load_swiftshader(folder: Path) -> ctypes.CDLL:
    """Open the Vulkan loader, so that whoever looks for a library of its name finds this one."""
    return ctypes.CDLL(str(folder / "libvulkan.so.1"), mode=ctypes.RTLD_GLOBAL)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    outputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model from its parts; types are (element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def whole(model: Model) -> SegmentModel:
    graph = model.graph
    return model.extract(
        range(len(graph.nodes)),
        [info.name for info in (*graph.inputs, *graph.overridable)],
        [info.name for info in graph.outputs],
        name="whole",
    )


def compiled(
    backend: Backend, proto: onnx.ModelProto, *, width: int = 1, options: CompileOptions | None = None
) -> CompiledModel:
    return backend.compile(whole(load_model(proto)), width=width, options=options or CompileOptions())


def value(array: Array, onnx_type: int = 0) -> Any:
    """A C OrtValue over the array, which must outlive it."""
    if onnx_type:
        return C.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx_type)
    return C.OrtValue.ortvalue_from_numpy(array, CPU_DEVICE)


def on_the_processor(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime's own provider computes, with no help of ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def run(model: CompiledModel, feeds: Mapping[str, Array]) -> list[Array]:
    values = {name: value(array) for name, array in feeds.items()}
    return [np.array(made.numpy()) for made in model.run_with_ort_values(values, model.interface.output_names)]
