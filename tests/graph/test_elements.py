"""The one table of element types, against what ONNX, numpy and ONNX Runtime say of each."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.graph import ELEMENT_TYPES, NUMPY_TYPES, RUNTIME_TYPES, STRING_TYPE, wrapped_type

ONNX_TYPES = sorted(set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED})
FLAT_TYPES = [code for code in ONNX_TYPES if code != STRING_TYPE]
ELEMENTS = 5  # of less than a byte they leave the last one partly empty

CPU = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)


def test_each_type_of_onnx_is_there_under_its_number():
    assert set(ONNX_TYPES) <= set(ELEMENT_TYPES)
    assert [element.code for element in ELEMENT_TYPES.values()] == list(ELEMENT_TYPES)
    assert STRING_TYPE == onnx.TensorProto.STRING


def test_names_are_told_apart():
    assert len({element.name for element in ELEMENT_TYPES.values()}) == len(ELEMENT_TYPES) == len(RUNTIME_TYPES)


@pytest.mark.parametrize("code", FLAT_TYPES, ids=onnx.TensorProto.DataType.Name)
def test_elements_take_as_many_bits_as_onnx_stores(code):
    stored = numpy_helper.from_array(np.zeros(ELEMENTS, onnx.helper.tensor_dtype_to_np_dtype(code)))
    assert stored.data_type == code
    assert len(stored.raw_data) == -(-ELEMENTS * ELEMENT_TYPES[code].bits // 8)
    assert ELEMENT_TYPES[code].is_packed == (len(stored.raw_data) % ELEMENTS != 0)


@pytest.mark.parametrize("code", FLAT_TYPES, ids=onnx.TensorProto.DataType.Name)
def test_numpy_has_the_types_that_are_said_to_be_its_own(code):
    known = onnx.helper.tensor_dtype_to_np_dtype(code)
    is_its_own = known.isbuiltin == 1 and known.kind != "c"
    assert (code in NUMPY_TYPES) == is_its_own
    if is_its_own:
        assert NUMPY_TYPES[code] == known
        assert ELEMENT_TYPES[code].name == known.name


@pytest.mark.parametrize("code", sorted(ELEMENT_TYPES), ids=lambda code: ELEMENT_TYPES[code].name)
def test_the_runtime_calls_wrapped_types_so_and_gives_them_as_much_room(code):
    element = ELEMENT_TYPES[code]
    assert RUNTIME_TYPES[element.runtime_type] is element
    assert wrapped_type(element.runtime_type) is (element if element.is_wrapped else None)
    if element.is_wrapped:
        value = C.OrtValue.ortvalue_from_shape_and_onnx_type([ELEMENTS], code, CPU)
        assert (value.data_type(), value.element_type()) == (element.runtime_type, code)
        assert value.tensor_size_in_bytes() == ELEMENTS * element.bits // 8


def test_openvino_has_the_types_that_it_shares_memory_with():
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    for element in ELEMENT_TYPES.values():
        if element.openvino_name is not None:
            theirs = getattr(openvino.Type, element.openvino_name)
            assert theirs.bitwidth == element.bits
            assert element.code not in NUMPY_TYPES or theirs.to_dtype() == NUMPY_TYPES[element.code]


def test_types_that_are_no_tensor_of_the_runtime_are_no_wrapped_ones():
    assert wrapped_type("tensor(of nothing)") is None
    assert wrapped_type("seq(tensor(float))") is None
