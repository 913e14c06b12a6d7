"""If, Loop and Scan run by the engine: each body is a plan of its own, with an executor of its own.

A lowered operator is a segment like any other, with an object in the place of the runtime's session. Values go from one
iteration to the next as they are; what a loop collects is written into one buffer that grows. Only the arm that is
taken runs. A body runs in the lane that runs its segment, and on no more cores than the segment is wide.

Where a run is none of the ordinary ones (no iteration, so that the shapes of what would have been collected can only be
inferred, or a count that is no single number), the runtime's own kernel does it, made when it is first needed.

After the ONNX specification of If, Loop and Scan (operator set 9 on for Scan); where it leaves something open, as ONNX
Runtime does it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import TERMINATED, RuntimeOptions, empty_host_value, host_bytes, load_session, make_session
from parallax.engine._delegate import SegmentSession
from parallax.engine._executor import Executor
from parallax.engine._lanes import InnerLanes, Lanes, lane_pool
from parallax.engine._segment import CompiledSegment
from parallax.errors import PlanError, SegmentError
from parallax.graph import ELEMENT_TYPES, Node
from parallax.model import Body, Model, SegmentModel, scan_axes
from parallax.schedule import Plan, Segment

if TYPE_CHECKING:
    from parallax.engine._observers import EventStream
    from parallax.engine._run_events import Scope
    from parallax.engine._transfers import Transfers

CompileBody = Callable[[Body[Model], Plan, RuntimeOptions, Lanes], Executor]

_INT64: Final = 7
_BOOL: Final = 9
_EXPECTED_BYTES: Final = 64 << 20
"""What is collected over a known number of iterations gets its whole buffer at once up to this size."""
_FIRST_ROWS: Final = 16


def compile_control_flow(
    model: Model, segment: Segment, options: RuntimeOptions, *, compile_body: CompileBody
) -> CompiledSegment:
    """Compile a segment that has plans for the bodies of its If, Loop or Scan.

    Raises:
        PlanError: the plan is for another model: the segment's nodes are not one such operator and constants, or
            a body has no plan or cannot be taken out.
        BackendError: the runtime refuses a part of a body; names its segment and nodes.
    """
    nodes = [model.graph.nodes[index] for index in segment.nodes]
    operators = [node for node in nodes if node.bodies]
    where = f"segment {segment.name!r}"
    if len(operators) != 1:
        raise PlanError(
            f"{len(operators)} operators with bodies where one was planned", where=where, fix="make the plan again"
        )
    node = operators[0]
    obstacle = model.why_no_bodies(node.index)
    planned = {body.attribute: body.plan for body in segment.bodies}
    if obstacle is None and planned.keys() != {name for name, _ in node.bodies}:
        obstacle = f"plans of {sorted(planned)} are not those of its bodies"
    if obstacle is not None:
        raise PlanError(f"{node.op_type} {node.name!r}: {obstacle}", where=where, fix="make the plan again")
    lanes = InnerLanes(lane_pool(), segment.width)
    bodies = {
        body.attribute: _Body(body, compile_body(body, planned[body.attribute], options, lanes))
        for body in model.bodies(node.index)
    }
    extracted = model.extract(segment.nodes, segment.inputs, segment.outputs, name=segment.name)
    session = ControlFlowSession(
        _OPERATORS[node.op_type](node, bodies),
        constants=_constants(model, segment, node, bodies),
        fallback=_Fallback(extracted, width=max(1, segment.width), options=options),
        described=load_session(extracted.proto),
    )
    return CompiledSegment(
        name=segment.name,
        node_names=tuple(entry.name for entry in nodes),
        width=segment.width,
        session=session,
        inputs=segment.inputs,
        outputs=segment.outputs,
        weights=extracted.weights,
    )


def _constants(model: Model, segment: Segment, node: Node, bodies: Mapping[str, _Body]) -> dict[str, Any]:
    """What the operator reads and nobody feeds it: initializers, and what other nodes of its segment make of these."""
    overridable = {info.name for info in model.graph.overridable}
    fed = set(segment.inputs) - overridable
    reads = dict.fromkeys((*node.inputs, *(name for body in bodies.values() for name in body.captures)))
    names = [name for name in reads if name and name not in fed]
    if not names:
        return {}
    others = [index for index in segment.nodes if index != node.index]
    made = model.extract(others, (), names, name=f"{segment.name}, constants")
    session = make_session(made, width=1, options=RuntimeOptions(log_severity_level=3))
    return dict(zip(names, session.run_with_ort_values({}, names, None), strict=True))


class ControlFlowSession(SegmentSession):
    """An If, Loop or Scan, called and asked like ONNX Runtime's C session. Thread-safe.

    Args:
        operator: runs it.
        constants: what is not fed, by tensor; also what need not be.
        fallback: the runtime's own.
        described: see `SegmentSession`.
    """

    def __init__(
        self, operator: _Operator, *, constants: Mapping[str, Any], fallback: _Fallback, described: Any
    ) -> None:
        super().__init__(described)
        self._operator = operator
        self._constants = constants
        self._fallback = fallback

    @property
    def executors(self) -> Mapping[str, Executor]:
        """Of the bodies, by attribute."""
        return {name: body.executor for name, body in self._operator.bodies.items()}

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """Run once; outputs are the caller's own.

        Raises: what the engine or the runtime raises for a part of a body.
        """
        return self._run(None, feeds, outputs, run_options)

    def run_within(
        self, scope: Scope, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `SegmentSession`; runs of the bodies belong to the scope."""
        return self._run(scope, feeds, outputs, run_options)

    def report_to(self, stream: EventStream, segment: str, transfers: Transfers) -> None:
        """See `SegmentSession`."""
        for body in self._operator.bodies.values():
            body.executor.report_to(stream)

    def _run(
        self, scope: Scope | None, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any
    ) -> Sequence[Any]:
        values = {**self._constants, **feeds}
        made = self._operator.run(values, run_options, scope)
        if made is None:
            return self._fallback.run(feeds, outputs, run_options)
        taken = {id(value) for value in values.values()}
        results = []
        for name in outputs:
            value = made[name]
            results.append(_copy(value) if id(value) in taken else value)
            taken.add(id(value))
        return results


class _Fallback:
    """The runtime's own kernel for the same segment."""

    def __init__(self, extracted: SegmentModel, *, width: int, options: RuntimeOptions) -> None:
        self._extracted = extracted
        self._width = width
        self._options = options
        self._lock = threading.Lock()
        self._session: Any = None

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any) -> Sequence[Any]:
        if self._session is None:
            with self._lock:
                if self._session is None:
                    self._session = make_session(self._extracted, width=self._width, options=self._options)
        made: Sequence[Any] = self._session.run_with_ort_values(feeds, outputs, run_options)
        return made


class _Body:
    """One body, ready to run."""

    def __init__(self, body: Body[Model], executor: Executor) -> None:
        self.attribute = body.attribute
        self.inputs = body.inputs
        self.captures = body.captures
        self.executor = executor
        formal = set(body.inputs)
        self.shapes = {info.name: info.shape or () for info in body.model.graph.inputs}
        self._outputs = body.outputs
        self._computed = list(dict.fromkeys(name for name in body.outputs if name not in formal))
        # What takes one call needs no dispatcher.
        self._only = executor.segments[0].inputs if len(executor.segments) == 1 else None

    def captured(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Feeds for the captures alone."""
        return {name: values[name] for name in self.captures}

    def run(self, feeds: Mapping[str, Any], options: Any, scope: Scope | None, number: int = 0) -> list[Any]:
        """The formal outputs, in order. Feeds that are handed through are returned as they are.

        Args:
            scope: the observed run that this is part of.
            number: of the iteration.
        """
        computed = self._computed
        inside = None if scope is None else scope.inside(self.attribute, number)
        made: Sequence[Any]
        try:
            if self._only is None:
                made = self.executor.run(feeds, computed, options, inside=inside)
            else:
                fed = {name: feeds[name] for name in self._only}
                made = self.executor.run_single(fed, computed, options, inside)
        except SegmentError as error:
            where = f"body {self.attribute!r}, {error.where}"
            raise type(error)(error.what, segment=error.segment, nodes=error.nodes, where=where) from error
        found = dict(zip(computed, made, strict=True))
        return [found[name] if name in found else feeds[name] for name in self._outputs]


class _Operator(Protocol):
    @property
    def bodies(self) -> Mapping[str, _Body]:
        """By attribute."""
        ...

    def run(self, values: Mapping[str, Any], options: Any, scope: Scope | None) -> Mapping[str, Any] | None:
        """Outputs by name; values that were fed may be among them. None: leave this run to the runtime."""
        ...


class _If:
    """Runs the arm that the condition picks."""

    def __init__(self, node: Node, bodies: Mapping[str, _Body]) -> None:
        self.bodies = bodies
        self._node = node

    def run(self, values: Mapping[str, Any], options: Any, scope: Scope | None) -> Mapping[str, Any] | None:
        condition = _single(values[self._node.inputs[0]], _BOOL)
        if condition is None:
            return None
        body = self.bodies["then_branch" if condition else "else_branch"]
        return dict(zip(self._node.outputs, body.run(body.captured(values), options, scope), strict=False))


class _Loop:
    """Runs its body while the condition holds, at most a number of times."""

    def __init__(self, node: Node, bodies: Mapping[str, _Body]) -> None:
        self.bodies = bodies
        self._node = node
        self._body = bodies["body"]
        inputs = (*node.inputs, "", "")
        self._count, self._condition = inputs[0], inputs[1]
        self._initial = node.inputs[2:]
        self._states = self._body.inputs[2:]
        # A formal input that the operator makes is a scalar, or has one element along one axis.
        self._number_shape, self._condition_shape = (
            (1,) * len(self._body.shapes[name]) for name in self._body.inputs[:2]
        )

    def run(self, values: Mapping[str, Any], options: Any, scope: Scope | None) -> Mapping[str, Any] | None:
        most = _single(values[self._count], _INT64) if self._count else None
        go = _single(values[self._condition], _BOOL) if self._condition else True
        if go is None or (self._count and most is None):
            return None
        state = [values[name] for name in self._initial]
        collected = [_Stack(expected=most) for _ in self._node.outputs[len(state) :]]
        if collected and (not go or (most is not None and most <= 0)):
            return None
        body = self._body
        feeds = body.captured(values)
        number_name, condition_name = body.inputs[:2]
        # The condition of an iteration that runs is true, always.
        feeds[condition_name] = _scalar(1, _BOOL, self._condition_shape)
        number = 0
        while go and (most is None or number < most):
            _check_terminate(options)
            feeds[number_name] = _scalar(number, _INT64, self._number_shape)
            feeds.update(zip(self._states, state, strict=True))
            condition, *made = body.run(feeds, options, scope, number)
            state = made[: len(state)]
            for stack, value in zip(collected, made[len(state) :], strict=False):
                stack.append(value)
            number += 1
            go = _single(condition, _BOOL)
            if go is None:
                return None
        finished = [*state, *(stack.finish() for stack in collected)]
        return dict(zip(self._node.outputs, finished, strict=False))


class _Scan:
    """Runs its body once for each slice of its scanned inputs."""

    def __init__(self, node: Node, bodies: Mapping[str, _Body]) -> None:
        self.bodies = bodies
        self._node = node
        self._body = bodies["body"]
        scanned = scan_axes(node)
        count = len(node.inputs) - len(scanned)
        self._initial = node.inputs[:count]
        self._states = self._body.inputs[:count]
        self._scanned = tuple(
            zip(
                node.inputs[count:],
                self._body.inputs[count:],
                scanned,
                _integers(node, "scan_input_directions", len(scanned)),
                strict=True,
            )
        )
        outputs = len(self._node.outputs) - count
        self._collected = tuple(
            zip(
                _integers(node, "scan_output_axes", outputs),
                _integers(node, "scan_output_directions", outputs),
                strict=False,
            )
        )

    def run(self, values: Mapping[str, Any], options: Any, scope: Scope | None) -> Mapping[str, Any] | None:
        sliced = []
        for name, formal, axis, backwards in self._scanned:
            value = values[name]
            rank = len(value.shape())
            if not -rank <= axis < rank:
                return None
            sliced.append((formal, _Slices(value, axis % rank), backwards))
        lengths = {slices.count for _, slices, _ in sliced}
        if len(lengths) != 1 or 0 in lengths:
            return None
        (length,) = lengths
        body = self._body
        feeds = body.captured(values)
        state = [values[name] for name in self._initial]
        collected = [_Stack(expected=length, axis=axis, backwards=bool(back)) for axis, back in self._collected]
        for number in range(length):
            _check_terminate(options)
            feeds.update(zip(self._states, state, strict=True))
            for formal, slices, backwards in sliced:
                feeds[formal] = slices.take(length - 1 - number if backwards else number)
            made = body.run(feeds, options, scope, number)
            state = made[: len(state)]
            for stack, value in zip(collected, made[len(state) :], strict=False):
                stack.append(value)
        finished = [*state, *(stack.finish() for stack in collected)]
        return dict(zip(self._node.outputs, finished, strict=False))


_OPERATORS: Final[Mapping[str, Callable[[Node, Mapping[str, _Body]], _Operator]]] = {
    "If": _If,
    "Loop": _Loop,
    "Scan": _Scan,
}


def _integers(node: Node, attribute: str, count: int) -> tuple[int, ...]:
    given = node.attributes.get(attribute)
    return tuple(given) if isinstance(given, tuple) else (0,) * count


class _Slices:
    """A tensor along one of its axes, slice by slice."""

    def __init__(self, value: Any, axis: int) -> None:
        shape = list(value.shape())
        self._element_type = int(value.element_type())
        self.count = shape.pop(axis)
        self._shape = shape
        self._value = value  # holds the bytes that rows may look at
        self._rows = _rows(value, axis)

    def take(self, number: int) -> Any:
        """A tensor of its own."""
        made = empty_host_value(self._shape, self._element_type)
        host_bytes(made)[:] = self._rows[number]
        return made


class _Stack:
    """Tensors of one type and shape, written one after the other into a buffer that grows.

    Args:
        expected: how many there will be at most, if that is known.
        axis: of the result, along which they lie.
        backwards: the last one first.
    """

    def __init__(self, *, expected: int | None, axis: int = 0, backwards: bool = False) -> None:
        self._expected = expected
        self._axis = axis
        self._backwards = backwards
        self._count = 0
        self._shape: tuple[int, ...] = ()
        self._element_type = 0
        self._row_bytes = 0
        self._buffer: Any = None
        self._bytes: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def append(self, value: Any) -> None:
        """Raises: RuntimeError if it is of another type or shape than those before it."""
        shape, element_type = tuple(value.shape()), int(value.element_type())
        if self._buffer is None:
            self._shape, self._element_type = shape, element_type
            self._row_bytes = int(value.tensor_size_in_bytes())
            known = self._expected if self._expected is not None else 0
            rows = known if known * self._row_bytes <= _EXPECTED_BYTES else 0
            self._grow(rows or _FIRST_ROWS)
        elif shape != self._shape or element_type != self._element_type:
            raise RuntimeError(f"an iteration made a tensor of shape {shape} where those before made {self._shape}")
        elif self._count == self._buffer.shape()[0]:
            self._grow(2 * self._count)
        begin = self._count * self._row_bytes
        self._bytes[begin : begin + self._row_bytes] = host_bytes(value)
        self._count += 1

    def _grow(self, rows: int) -> None:
        buffer = empty_host_value((rows, *self._shape), self._element_type)
        content = host_bytes(buffer)
        used = self._count * self._row_bytes
        content[:used] = self._bytes[:used]
        self._buffer, self._bytes = buffer, content

    def finish(self) -> Any:
        """All of them as one tensor. At least one must have been appended."""
        rank = len(self._shape) + 1
        axis = self._axis + rank if self._axis < 0 else self._axis
        if self._buffer.shape()[0] == self._count and axis == 0 and not self._backwards:
            return self._buffer
        rows = self._bytes[: self._count * self._row_bytes].view(f"V{_element_bytes(self._element_type)}")
        array = rows.reshape((self._count, *self._shape))
        moved = np.moveaxis(array[::-1] if self._backwards else array, 0, axis)
        made = empty_host_value(moved.shape, self._element_type)
        host_bytes(made)[:] = np.ascontiguousarray(moved).reshape(-1).view(np.uint8)
        return made


def _rows(value: Any, axis: int) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor's slices along an axis, a row each; a copy unless it is the first axis."""
    array = host_bytes(value).view(f"V{_element_bytes(int(value.element_type()))}").reshape(value.shape())
    moved = np.ascontiguousarray(np.moveaxis(array, axis, 0))
    rows = moved.shape[0]
    if not moved.size:
        return np.empty((rows, 0), np.uint8)
    return moved.reshape(-1).view(np.uint8).reshape(rows, -1)


def _element_bytes(element_type: int) -> int:
    return ELEMENT_TYPES[element_type].bits // 8


def _single(value: Any, element_type: int) -> int | None:
    """The only element of a tensor of integers or truth values; None for any other tensor."""
    if value.element_type() != element_type or any(size != 1 for size in value.shape()):
        return None
    return int(value.numpy().item())


def _scalar(number: int, element_type: int, shape: Sequence[int]) -> Any:
    made = empty_host_value(shape, element_type)
    host_bytes(made).view(np.int64 if element_type == _INT64 else np.uint8)[0] = number
    return made


def _copy(value: Any) -> Any:
    made = empty_host_value(value.shape(), int(value.element_type()))
    host_bytes(made)[:] = host_bytes(value)
    return made


def _check_terminate(options: Any) -> None:
    """Raises: what the runtime raises where ``RunOptions.terminate`` is set."""
    if options is not None and options.terminate:
        raise C.Fail(TERMINATED)
