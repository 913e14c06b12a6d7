"""A model compiled by OpenVINO, behind the interface of ONNX Runtime's sessions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from parallax.backends._arguments import stated_argument
from parallax.backends._protocol import HOST_MEMORY, Interface, MemoryDomain, Place, UnfitFeedsError
from parallax.backends.openvino._convert import Weights, all_finite, exact
from parallax.backends.openvino._program import InputPort, OutputPort, Program, Request
from parallax.backends.openvino._rules import EXACT_INTEGER
from parallax.backends.openvino._shapes import ShapedPrograms, Signature
from parallax.backends.ort import TERMINATED, Bytes, empty_host_value, host_bytes, is_on_host
from parallax.errors import BackendError, InputError, ParallaxError, RunCancelled
from parallax.model import SegmentInterface

_INTEGER_VIEWS: Final = {6: np.int32, 7: np.int64}
_FLOAT_TYPES: Final = frozenset({1, 10, 16})
_SHAPES_KEPT: Final = 1024


class OpenVinoModel:
    """A compiled part. Inputs are read, and outputs of known size written, where the caller has them.

    Runs of several threads have a request each, and take turns inside OpenVINO, which holds one set of intermediate
    tensors: more than one would be more threads than were asked for.

    Args:
        openvino: the module.
        programs: what it was compiled to, by the shapes of its inputs.
        interface: what the part declares.
        weights: memory that the programs read.
        checks_numbers: whether fed integers must be exact in float32, fed floats finite, and nothing that is fed
            empty: of NaNs, infinities and empty tensors libraries make different things.
        name: of the part, for messages.
    """

    def __init__(
        self,
        openvino: Any,
        programs: ShapedPrograms[Program],
        *,
        interface: SegmentInterface,
        weights: Weights,
        checks_numbers: bool,
        name: str,
    ) -> None:
        self._infer = _plain_infer(openvino)
        self._tensor = openvino.Tensor
        self._shape = openvino.Shape
        # A tensor from a ready shape takes 1 us, from a list 10.
        self._shapes: dict[tuple[int, ...], Any] = {}
        self._programs = programs
        self._weights = weights
        self._checks_numbers = checks_numbers
        self._where = f"segment {name!r}, backend openvino"
        self._interface = interface
        self._overridable = frozenset(info.name for info in interface.overridable)
        self._declared = {info.name: info for info in interface.inputs}
        self._is_open = has_open_shapes(interface)
        self._outputs = tuple(programs.any().outputs)

    @property
    def interface(self) -> Interface:
        """What the part is fed and returns. To feed what may be fed is refused, though: its value is built in."""
        told = self._interface
        return Interface(
            inputs=tuple(map(stated_argument, told.inputs)),
            overridable=tuple(map(stated_argument, told.overridable)),
            outputs=tuple(map(stated_argument, told.outputs)),
        )

    @property
    def memory(self) -> MemoryDomain:
        """The processor's, whatever the device: OpenVINO moves tensors by itself."""
        return HOST_MEMORY

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
        signature = self._signature(feeds) if self._is_open else ()
        program = self._programs.pick(signature) if self._is_open else self._programs.any()
        begin = time.perf_counter_ns()
        borrowed = program.borrow_request()
        request = borrowed.request
        try:
            for port in program.inputs:
                self._feed(borrowed, port, feeds[port.name])
            made = {}
            for output in program.outputs.values():
                if output.shape is not None:
                    value = self._target(output, output.shape, targets.get(output.name))
                    made[output.name] = value
                    # Outputs nobody asked for are bound too: the request may still hold the memory of a run before.
                    request.set_output_tensor(
                        output.position, self._wrap(host_bytes(value), output.shape, output.element)
                    )
            self._infer(request, {}, share_outputs=True, decode_strings=False)
            for name in targets:
                output = program.outputs[name]
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
        program.give_back(borrowed)
        if self._is_open and self._programs.is_open(program):
            self._programs.note(signature, time.perf_counter_ns() - begin)
        _heed(run_options)
        return {name: made[name] for name in targets}

    def _signature(self, feeds: Mapping[str, Any]) -> Signature:
        # What is no tensor is refused a moment later.
        return tuple(
            [tuple(value.shape()) if value.is_tensor() else () for value in (feeds[name] for name in self._declared)]
        )

    def _feed(self, borrowed: Request, port: InputPort, value: Any) -> None:
        """Bind an input to what is fed, unless it is already: the same memory may be fed with other content."""
        if not value.is_tensor() or value.element_type() != port.onnx_type:
            raise InputError(
                f"input {port.name!r} is of type {value.data_type()}",
                where=self._where,
                fix=f"feed a tensor of element type {port.element}",
            )
        if not is_on_host(value):
            raise InputError(f"input {port.name!r} is not in the processor's memory", where=self._where)
        shape = value.shape()
        unfit = _why_unfit(port.onnx_type, shape, host_bytes(value)) if self._checks_numbers else None
        if unfit is not None:
            raise UnfitFeedsError(f"input {port.name!r} {unfit}", where=self._where, fix="run this part on the CPU")
        binding = (value.data_ptr(), shape)
        if borrowed.bound.get(port.position) != binding:
            borrowed.request.set_input_tensor(port.position, self._wrap(host_bytes(value), binding[1], port.element))
            borrowed.bound[port.position] = binding

    def _wrap(self, data: Bytes, shape: Sequence[int], element: Any) -> Any:
        key = tuple(shape)
        made = self._shapes.get(key)
        if made is None:
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            made = self._shapes[key] = self._shape(key)
        return self._tensor(data, made, element) if data.size else self._tensor(element, made)

    def _target(self, output: OutputPort, shape: Sequence[int], given: Any) -> Any:
        if given is None or given is Place.HOST:
            return empty_host_value(shape, output.onnx_type)
        if not is_on_host(given) or given.element_type() != output.onnx_type or list(given.shape()) != list(shape):
            raise InputError(
                f"the target of output {output.name!r} is {given.data_type()} of shape {list(given.shape())}",
                where=self._where,
                fix=f"give a tensor of type {output.element} and shape {list(shape)} in the processor's memory",
            )
        return given

    def _copied(self, output: OutputPort, request: Any, given: Any) -> Any:
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
            raise InputError(f"there are no outputs {unknown}", where=self._where, fix=f"ask for {self._outputs}")

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


def _why_unfit(onnx_type: int, shape: Sequence[int], data: Bytes) -> str | None:
    """What of a tensor is not computed with as ONNX Runtime does, or None."""
    if 0 in shape:
        return "is empty, of which OpenVINO makes something else"
    whole = _INTEGER_VIEWS.get(onnx_type)
    if whole is not None and not exact(data.view(whole)):
        return f"holds integers beyond {EXACT_INTEGER}, which OpenVINO does not keep exact"
    if onnx_type in _FLOAT_TYPES and not all_finite(data, onnx_type):
        return "holds NaNs or infinities, which OpenVINO loses"
    return None


def has_open_shapes(interface: SegmentInterface) -> bool:
    """Whether runs may bring inputs of different shapes."""
    return any(info.shape is None or not all(isinstance(dim, int) for dim in info.shape) for info in interface.inputs)


def _plain_infer(openvino: Any) -> Callable[..., Any]:
    """``InferRequest.infer`` as the binding has it: its wrapper sorts inputs for 10 us and more, and we pass none."""
    wrapper: Any = openvino.InferRequest
    bound = [kind for kind in wrapper.__mro__ if "infer" in vars(kind)]
    plain: Callable[..., Any] = bound[-1].infer
    return plain


def _heed(run_options: Any) -> None:
    if run_options is not None and run_options.terminate:
        raise RunCancelled(f"the run was stopped: {TERMINATED}", fix="run again to start over")
