"""A model compiled by OpenVINO, behind the interface of ONNX Runtime's sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from parallax.device._arguments import stated_argument
from parallax.device._backend import HOST_MEMORY, MemoryDomain, Place, TensorArgument, UnfitFeedsError
from parallax.device._foreign import TERMINATED
from parallax.device._openvino_convert import Weights, element_types, exact
from parallax.device._openvino_rules import EXACT_INTEGER
from parallax.device._ort_values import Bytes, empty_host_value, host_bytes, is_on_host
from parallax.errors import BackendError, InputError, ParallaxError, RunCancelled
from parallax.model import SegmentInterface

_INTEGER_VIEWS: Final = {6: np.int32, 7: np.int64}
_SHAPES_KEPT: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    name: str
    position: int
    onnx_type: int
    element: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    name: str
    position: int
    onnx_type: int
    element: Any
    shape: tuple[int, ...] | None
    """None where only a run can tell: OpenVINO allocates such an output, and it is copied. Also with a ``source``."""
    source: str | None
    """The input it is, unchanged."""


class OpenVinoModel:
    """A compiled part. Inputs are read, and outputs of known size written, where the caller has them.

    Runs of several threads have a request each, and take turns inside OpenVINO, which holds one set of intermediate
    tensors: more than one would be more threads than were asked for.

    Args:
        openvino: the module.
        compiled: an ``openvino.CompiledModel``.
        interface: what the part declares; some inputs may have been unused and dropped.
        passed_on: see `passed_on`.
        weights: memory that ``compiled`` reads.
        checks_integers: whether fed integers must be exact in float32.
        name: of the part, for messages.
    """

    def __init__(
        self,
        openvino: Any,
        compiled: Any,
        *,
        interface: SegmentInterface,
        passed_on: Mapping[int, int],
        weights: Weights,
        checks_integers: bool,
        name: str,
    ) -> None:
        self._infer = _plain_infer(openvino)
        self._tensor = openvino.Tensor
        self._shape = openvino.Shape
        # A tensor from a ready shape takes 1 us, from a list 10.
        self._shapes: dict[tuple[int, ...], Any] = {}
        self._compiled = compiled
        self._weights = weights
        self._checks_integers = checks_integers
        self._where = f"segment {name!r}, backend openvino"
        self._interface = interface
        self._overridable = frozenset(info.name for info in interface.overridable)
        self._declared = {info.name: info for info in interface.inputs}
        self._inputs = self._read_inputs(element_types(openvino))
        self._outputs = self._read_outputs(
            element_types(openvino), [info.name for info in interface.outputs], passed_on
        )
        self._idle: deque[Any] = deque()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names to feed."""
        return tuple(self._declared)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names to ask for."""
        return tuple(self._outputs)

    @property
    def memory(self) -> MemoryDomain:
        """The processor's, whatever the device: OpenVINO moves tensors by itself."""
        return HOST_MEMORY

    @property
    def inputs_meta(self) -> Sequence[TensorArgument]:
        """See `CompiledModel`."""
        return [stated_argument(info) for info in self._interface.inputs]

    @property
    def overridable_initializers(self) -> Sequence[TensorArgument]:
        """See `CompiledModel`: to feed one is refused, though, as its value is built in."""
        return [stated_argument(info) for info in self._interface.overridable]

    @property
    def outputs_meta(self) -> Sequence[TensorArgument]:
        """See `CompiledModel`."""
        return [stated_argument(info) for info in self._interface.outputs]

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`. ``run_options.terminate`` is looked at before and after the run."""
        made = self._run(feeds, dict.fromkeys(outputs), run_options)
        return [made[name] for name in outputs]

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        """See `CompiledModel`."""
        return self._run(feeds, targets, run_options)

    def _run(self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any) -> dict[str, Any]:
        self._check_names(feeds, targets)
        _heed(run_options)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            for port in self._inputs:
                request.set_input_tensor(port.position, self._fed(port, feeds[port.name]))
            made = {}
            for output in self._outputs.values():
                if output.shape is not None:
                    value = self._target(output, output.shape, targets.get(output.name))
                    made[output.name] = value
                    # Outputs nobody asked for are bound too: the request may still hold the memory of a run before.
                    request.set_output_tensor(
                        output.position, self._wrap(host_bytes(value), output.shape, output.element)
                    )
            self._infer(request, {}, share_outputs=True, decode_strings=False)
            for name in targets:
                output = self._outputs[name]
                if output.source is not None:
                    fed = feeds[output.source]
                    made[name] = self._target(output, fed.shape(), targets[name])
                    host_bytes(made[name])[:] = host_bytes(fed)
                elif name not in made:
                    made[name] = self._copied(output, request, targets[name])
        except ParallaxError:
            raise
        except Exception as error:
            raise self._failure(error, feeds) from error
        self._idle.append(request)
        _heed(run_options)
        return {name: made[name] for name in targets}

    def _fed(self, port: _Input, value: Any) -> Any:
        if not value.is_tensor() or value.element_type() != port.onnx_type:
            raise InputError(
                f"input {port.name!r} is of type {value.data_type()}",
                where=self._where,
                fix=f"feed a tensor of element type {port.element}",
            )
        if not is_on_host(value):
            raise InputError(f"input {port.name!r} is not in the processor's memory", where=self._where)
        data = host_bytes(value)
        view = _INTEGER_VIEWS.get(port.onnx_type)
        if view is not None and self._checks_integers and not exact(data.view(view)):
            raise UnfitFeedsError(
                f"input {port.name!r} holds integers beyond {EXACT_INTEGER}, which OpenVINO does not keep exact",
                where=self._where,
                fix="run this part on the CPU",
            )
        return self._wrap(data, value.shape(), port.element)

    def _wrap(self, data: Bytes, shape: Sequence[int], element: Any) -> Any:
        key = tuple(shape)
        made = self._shapes.get(key)
        if made is None:
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            made = self._shapes[key] = self._shape(key)
        return self._tensor(data, made, element) if data.size else self._tensor(element, made)

    def _target(self, output: _Output, shape: Sequence[int], given: Any) -> Any:
        if given is None or given is Place.HOST:
            return empty_host_value(shape, output.onnx_type)
        if not is_on_host(given) or given.element_type() != output.onnx_type or list(given.shape()) != list(shape):
            raise InputError(
                f"the target of output {output.name!r} is {given.data_type()} of shape {list(given.shape())}",
                where=self._where,
                fix=f"give a tensor of type {output.element} and shape {list(shape)} in the processor's memory",
            )
        return given

    def _copied(self, output: _Output, request: Any, given: Any) -> Any:
        tensor = request.get_output_tensor(output.position)
        target = self._target(output, tuple(tensor.get_shape()), given)
        if tensor.get_byte_size():
            host_bytes(target)[:] = tensor.data.reshape(-1).view(np.uint8)
        return target

    def _check_names(self, feeds: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        missing = [name for name in self._declared if name not in feeds]
        if missing:
            raise InputError(f"inputs {missing} are missing", where=self._where)
        if len(feeds) > len(self._declared):
            for name in feeds.keys() - self._declared.keys():
                if name in self._overridable:
                    raise UnfitFeedsError(
                        f"a value for {name!r} was fed, which is built into what OpenVINO compiled",
                        where=self._where,
                        fix="run this part on the CPU",
                    )
                raise InputError(f"there is no input {name!r}", where=self._where, fix=f"feed {list(self._declared)}")
        unknown = [name for name in targets if name not in self._outputs]
        if unknown:
            raise InputError(f"there are no outputs {unknown}", where=self._where, fix=f"ask for {self.outputs}")

    def _failure(self, error: Exception, feeds: Mapping[str, Any]) -> ParallaxError:
        """OpenVINO has one exception for everything, so a wrong shape is looked for in the feeds."""
        for name, info in self._declared.items():
            shape = feeds[name].shape()
            fits = info.shape is None or (
                len(shape) == len(info.shape)
                and all(not isinstance(dim, int) or dim == size for dim, size in zip(info.shape, shape, strict=True))
            )
            if not fits:
                return InputError(
                    f"input {name!r} has shape {list(shape)}", where=self._where, fix=f"feed {list(info.shape or ())}"
                )
        return BackendError(str(error).strip(), where=self._where, fix="run this part on the CPU")

    def _read_inputs(self, elements: Mapping[int, Any]) -> tuple[_Input, ...]:
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
            inputs.append(_Input(name=name, position=position, onnx_type=onnx_type, element=elements[onnx_type]))
        return tuple(inputs)

    def _read_outputs(
        self, elements: Mapping[int, Any], names: Sequence[str], passed_on: Mapping[int, int]
    ) -> dict[str, _Output]:
        onnx_types = {str(element): number for number, element in elements.items()}
        found = {}
        for position, port in enumerate(self._compiled.outputs):
            element = port.get_element_type()
            shape = port.get_partial_shape()
            for name in port.get_names() & set(names):
                found[name] = _Output(
                    name=name,
                    position=position,
                    onnx_type=onnx_types[str(element)],
                    element=element,
                    shape=tuple(port.get_shape()) if shape.is_static and position not in passed_on else None,
                    source=self._inputs[passed_on[position]].name if position in passed_on else None,
                )
        lost = [name for name in names if name not in found]
        if lost:
            raise RuntimeError(f"the outputs {lost} have lost their names")
        return {name: found[name] for name in names}


def _plain_infer(openvino: Any) -> Callable[..., Any]:
    """``InferRequest.infer`` as the binding has it: its wrapper sorts inputs for 10 us and more, and we pass none."""
    wrapper: Any = openvino.InferRequest
    bound = [kind for kind in wrapper.__mro__ if "infer" in vars(kind)]
    plain: Callable[..., Any] = bound[-1].infer
    return plain


def _heed(run_options: Any) -> None:
    if run_options is not None and run_options.terminate:
        raise RunCancelled(f"the run was stopped: {TERMINATED}", fix="run again to start over")
