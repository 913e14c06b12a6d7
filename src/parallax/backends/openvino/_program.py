"""One compilation of a part by OpenVINO: what its ports are, and requests that wait to be used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallax.backends.openvino._convert import element_types
from parallax.model import SegmentInterface


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPort:
    """An input of what was compiled."""

    name: str
    position: int
    onnx_type: int
    element: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPort:
    """An output of what was compiled."""

    name: str
    position: int
    onnx_type: int
    element: Any
    shape: tuple[int, ...] | None
    """None where only a run can tell: OpenVINO allocates such an output, and it is copied. Also with a ``source``."""
    source: str | None
    """The input it is, unchanged."""


class Request:
    """An ``openvino.InferRequest``, and what its inputs are bound to."""

    __slots__ = ("bound", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.bound: dict[int, tuple[int, Sequence[int]]] = {}
        """Position -> address and shape."""


class Program:
    """A compiled part, for shapes that are open or fixed.

    Args:
        openvino: the module.
        compiled: an ``openvino.CompiledModel``.
        interface: what the part declares; some inputs may have been unused and dropped.
        passed_on: see `passed_on`.
    """

    def __init__(
        self, openvino: Any, compiled: Any, *, interface: SegmentInterface, passed_on: Mapping[int, int]
    ) -> None:
        self._compiled = compiled
        self._declared = {info.name: info for info in interface.inputs}
        self._idle: deque[Request] = deque()
        self.inputs = self._read_inputs(element_types(openvino))
        self.outputs = self._read_outputs(element_types(openvino), [info.name for info in interface.outputs], passed_on)

    def borrow_request(self) -> Request:
        """One that no other run has."""
        try:
            return self._idle.pop()
        except IndexError:
            return Request(self._compiled.create_infer_request())

    def give_back(self, request: Request) -> None:
        """Let a later run have it. Not after a failure."""
        self._idle.append(request)

    def _read_inputs(self, elements: Mapping[int, Any]) -> tuple[InputPort, ...]:
        ports = list(self._compiled.inputs)
        names = [next((name for name in port.get_names() if name in self._declared), None) for port in ports]
        lost = [name for name in self._declared if name not in names]
        inputs = []
        for position, (port, name) in enumerate(zip(ports, names, strict=True)):
            if name is None:
                # An operator that hands an input on (Dropout) has renamed it; which, is clear if it is the only one.
                if len(lost) != 1 or names.count(None) != 1:
                    raise RuntimeError(f"an input of the names {sorted(port.get_names())} cannot be told from others")
                name = lost[0]
            onnx_type = self._declared[name].dtype
            inputs.append(InputPort(name=name, position=position, onnx_type=onnx_type, element=elements[onnx_type]))
        return tuple(inputs)

    def _read_outputs(
        self, elements: Mapping[int, Any], names: Sequence[str], passed_on: Mapping[int, int]
    ) -> dict[str, OutputPort]:
        onnx_types = {str(element): number for number, element in elements.items()}
        found = {}
        for position, port in enumerate(self._compiled.outputs):
            element = port.get_element_type()
            shape = port.get_partial_shape()
            for name in port.get_names() & set(names):
                found[name] = OutputPort(
                    name=name,
                    position=position,
                    onnx_type=onnx_types[str(element)],
                    element=element,
                    shape=tuple(port.get_shape()) if shape.is_static and position not in passed_on else None,
                    source=self.inputs[passed_on[position]].name if position in passed_on else None,
                )
        lost = [name for name in names if name not in found]
        if lost:
            raise RuntimeError(f"the outputs {lost} have lost their names")
        return {name: found[name] for name in names}
