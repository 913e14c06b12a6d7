"""From a sub-model to OpenVINO's own graph, with the large weights shared instead of copied."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parallax.backends.openvino._rules import EXACT_INTEGER, NO_LIMIT
from parallax.backends.ort import bytes_at
from parallax.errors import BackendError
from parallax.graph import CONSTANT_BYTES, ELEMENT_TYPES
from parallax.model import SegmentModel, proto_with_weights

Weights = Mapping[str, npt.NDArray[np.generic]]

_SHARED_BYTES: Final = 1 << 14
"""Smaller weights are copied into the model's bytes: scales, axes and the like, whose values a translator may read."""

_INTEGER_TYPES: Final = ("i32", "i64")

_FEW_INTEGERS: Final = 256


_TYPE_NAMES: Final = {
    code: element.openvino_name for code, element in ELEMENT_TYPES.items() if element.openvino_name is not None
}
SHAREABLE_TYPES: Final = frozenset(_TYPE_NAMES)
"""Types of ``onnx.TensorProto.DataType`` whose elements lie in OpenVINO's memory as in ONNX's."""


def element_types(openvino: Any) -> Mapping[int, Any]:
    """OpenVINO's type for each of `SHAREABLE_TYPES`."""
    return {number: getattr(openvino.Type, name) for number, name in _TYPE_NAMES.items()}


def read_segment(openvino: Any, core: Any, segment: SegmentModel) -> Any:
    """An ``openvino.Model``. It reads large weights where ``segment`` has them, so these must outlive it.

    Raises:
        RuntimeError: OpenVINO does not understand the model.
        BackendError: a constant is an integer that OpenVINO would not compute with exactly.
    """
    shared = _shared_weights(segment)
    model = core.read_model(proto_with_weights(segment, as_inputs=shared.keys(), raw=True))
    _bind(openvino, model, shared, segment.weight_types)
    for constant in _constants(model):
        _check_integers(constant, segment.name)
    return model


def fixed_copy(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The same ``openvino.Model`` for inputs of these shapes only; its weights are shared.

    Raises: RuntimeError if the model does not allow these shapes.
    """
    copy = model.clone()
    found = {name: parameter for parameter in copy.inputs for name in parameter.get_names() if name in shapes}
    copy.reshape({parameter: list(shapes[name]) for name, parameter in found.items()})
    return copy


def passed_on(model: Any) -> Mapping[int, int]:
    """Outputs that are an input, unchanged: position of the output -> of the input.

    OpenVINO 2026.4 does not write such an output to the tensor it is given for it.
    """
    positions = {parameter.get_friendly_name(): at for at, parameter in enumerate(model.get_parameters())}
    sources = [result.input_value(0).get_node() for result in model.get_results()]
    return {
        at: positions[source.get_friendly_name()]
        for at, source in enumerate(sources)
        if source.get_type_name() == "Parameter"
    }


def read_partially(frontend: Any, segment: SegmentModel) -> Any:
    """Likewise for questions only: weights stay inputs, and what is not understood stays as a placeholder."""
    proto = proto_with_weights(segment, as_inputs=_shared_weights(segment).keys(), raw=True)
    return frontend.convert_partially(frontend.load(io.BytesIO(proto)))


def placeholders(model: Any) -> list[Any]:
    """Operations of a partly converted model that OpenVINO does not understand."""
    # They live in an operator set of the frontend's own, under names that have changed between releases.
    return [operation for operation in model.get_ops() if not _is_standard(operation)]


def _is_standard(operation: Any) -> bool:
    info = operation.get_type_info()
    return str(info.version_id).startswith("opset") and "ONNX" not in str(info.name)


def _shared_weights(segment: SegmentModel) -> Weights:
    return {
        name: array
        for name, array in segment.weights.items()
        if array.nbytes >= _SHARED_BYTES and segment.weight_types[name] in SHAREABLE_TYPES
    }


def _bind(openvino: Any, model: Any, weights: Weights, types: Mapping[str, int]) -> None:
    """Put constants that share memory with ``weights`` in place of the inputs of these names."""
    elements = element_types(openvino)
    for parameter in list(model.get_parameters()):
        name = next((name for name in parameter.output(0).get_names() if name in weights), None)
        if name is None:
            continue
        array = weights[name]
        # The weights are read-only and OpenVINO insists on writable arrays, although it writes to none of them.
        address, _ = array.__array_interface__["data"]
        tensor = openvino.Tensor(bytes_at(address, array.nbytes), list(array.shape), elements[types[name]])
        constant = openvino.op.Constant(tensor, shared_memory=True)
        constant.set_friendly_name(parameter.get_friendly_name())
        parameter.output(0).replace(constant.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _constants(model: Any) -> Iterator[Any]:
    return (operation for operation in model.get_ops() if operation.get_type_name() == "Constant")


def _check_integers(constant: Any, segment: str) -> None:
    if constant.get_element_type().get_type_name() not in _INTEGER_TYPES:
        return
    values = constant.data
    if values.size and not exact(values):
        unsafe = np.abs(values.astype(np.float64)).reshape(-1)
        unsafe = unsafe[unsafe > EXACT_INTEGER]
        # Small ones that say "to the end" or "no limit" are judged by who reads them, before it comes to this.
        if constant.get_byte_size() >= CONSTANT_BYTES or unsafe.min() < NO_LIMIT:
            raise BackendError(
                f"a constant holds {int(unsafe.max())}, and OpenVINO computes with integers up to 2**24 exactly",
                where=f"segment {segment!r}, constant {constant.get_friendly_name()!r}",
                fix="run this part on the CPU",
            )


def exact(integers: npt.NDArray[Any]) -> bool:
    """Whether all of them are exact in float32."""
    if not integers.size:
        return True
    if integers.size <= _FEW_INTEGERS:  # after a run, when nothing of numpy is in the caches, this takes a third
        few: list[int] = integers.reshape(-1).tolist()
        return max(few) <= EXACT_INTEGER and min(few) >= -EXACT_INTEGER
    return bool(integers.max() <= EXACT_INTEGER and integers.min() >= -EXACT_INTEGER)


_EXPONENTS: Final = {10: 0x7C00, 16: 0x7F80}
"""Bits of the exponent of float16 and bfloat16: all set in NaNs and infinities."""


def all_finite(data: npt.NDArray[np.uint8], onnx_type: int) -> bool:
    """Whether no element is NaN or infinite, of the bytes of a float, float16 or bfloat16 tensor.

    A sum tells it for floats in a third of the time, as long as it does not overflow itself.
    """
    if onnx_type == 1:
        floats = data.view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduce(floats)
        return bool(np.isfinite(total)) or bool(np.isfinite(floats).all())
    mask = np.uint16(_EXPONENTS[onnx_type])
    return not bool(((data.view(np.uint16) & mask) == mask).any())
