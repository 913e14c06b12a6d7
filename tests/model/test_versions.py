from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from parallax.errors import UnsupportedModelError
from parallax.model import load_model
from tests.model._models import model, node, value


def loads_in_onnxruntime(proto: onnx.ModelProto) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


@pytest.mark.parametrize("opset", range(13, 31))
def test_an_opset_loads_if_and_only_if_onnxruntime_knows_it(opset: int) -> None:
    proto = model([node("Identity", "x", "y")], [value("x")], [value("y")], opset=opset)
    if loads_in_onnxruntime(proto):
        assert load_model(proto).opset_imports == {"": opset}
    else:
        with pytest.raises(UnsupportedModelError, match=rf"opset {opset}"):
            load_model(proto)


@pytest.mark.parametrize("ir_version", range(3, 18))
def test_an_ir_version_loads_if_and_only_if_onnxruntime_knows_it(ir_version: int) -> None:
    proto = model([node("Identity", "x", "y")], [value("x")], [value("y")], ir_version=ir_version)
    if loads_in_onnxruntime(proto):
        assert load_model(proto).ir_version == ir_version
    else:
        with pytest.raises(UnsupportedModelError, match=rf"IR version {ir_version}"):
            load_model(proto)


def test_domains_of_custom_operators_may_have_any_version() -> None:
    proto = model([node("Identity", "x", "y")], [value("x")], [value("y")])
    proto.opset_import.append(helper.make_opsetid("org.example", 999))
    assert load_model(proto).opset_imports["org.example"] == 999
