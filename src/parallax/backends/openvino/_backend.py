"""OpenVINO through its own Python package: the processor's kernels of oneDNN, and Intel's GPUs and NPUs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from parallax.backends._protocol import (
    DEFAULT_OPTIONS,
    HOST_MEMORY,
    BackendInfo,
    CompileOptions,
    DeviceKind,
    DeviceSpeed,
)
from parallax.backends.openvino._convert import (
    SHAREABLE_TYPES,
    fixed_copy,
    passed_on,
    placeholders,
    read_partially,
    read_segment,
)
from parallax.backends.openvino._model import OpenVinoModel, has_open_shapes
from parallax.backends.openvino._program import Program
from parallax.backends.openvino._rules import refused_nodes, unproven_nodes
from parallax.backends.openvino._shapes import ShapedPrograms, Signature
from parallax.backends.ort import TYPE_NAMES, compile_error
from parallax.errors import BackendError, ConfigError, MissingExtraError
from parallax.graph import Capability, OpGraph, Price, RefusedNode, Verdict, Work
from parallax.model import Model, SegmentInterface, SegmentModel, segment_interface

PACKAGE: Final = "openvino"
_TELEMETRY: Final = "openvino_telemetry"
_KINDS: Final = {"CPU": DeviceKind.CPU, "GPU": DeviceKind.GPU, "NPU": DeviceKind.NPU}


class OpenVinoBackend:
    """One of OpenVINO's devices.

    Args:
        device: "CPU", "GPU", "GPU.1", "NPU", ... as OpenVINO names them.
        options: OpenVINO's own properties, by name; they win over ours.
        speed: what to price by, or None.
        checks_feeds: whether numbers that it is not right with are refused when they are fed, on the processor. False
            is for finding out what it makes of them.

    Raises:
        MissingExtraError: the package is not installed.
        ConfigError: there is no such device here.
    """

    def __init__(
        self,
        device: str = "CPU",
        *,
        options: Mapping[str, Any] | None = None,
        speed: DeviceSpeed | None = None,
        checks_feeds: bool = True,
    ) -> None:
        self._openvino = _import()
        self._core = _core()
        devices = tuple(self._core.available_devices)
        if device not in devices and f"{device}.0" not in devices:
            raise ConfigError(f"OpenVINO has no device {device!r} here", fix=f"choose among {', '.join(devices)}")
        self._device = device
        self._options = dict(options or {})
        self._speed = speed
        self._checks_feeds = checks_feeds
        self._supported = frozenset(str(name) for name in self._core.get_property(device, "SUPPORTED_PROPERTIES"))
        self._kind = _KINDS.get(device.partition(".")[0], DeviceKind.OTHER)
        self._info = BackendInfo(
            name=PACKAGE if device == "CPU" else f"{PACKAGE}:{device}",
            kind=self._kind,
            device=str(self._core.get_property(device, "FULL_DEVICE_NAME")).strip(),
            version=str(self._openvino.get_version()),
            memory=HOST_MEMORY,
        )

    @property
    def info(self) -> BackendInfo:
        """What it is."""
        return self._info

    @property
    def host_flops(self) -> None:
        """Nothing: its prices are measured on the device itself."""
        return None

    def with_speed(self, speed: DeviceSpeed) -> OpenVinoBackend:
        """The same, priced by ``speed``."""
        return OpenVinoBackend(self._device, options=self._options, speed=speed, checks_feeds=self._checks_feeds)

    def capability(self, model: Model) -> Capability:
        """What its translator understands, its device has, and our rules on precision allow: of that, what was compared
        with ONNX Runtime, in the operators, attributes and element types of the table (`OperatorTable`).

        Where OpenVINO fails to answer, what it was asked about is refused.
        """
        graph = model.inferred()
        unproven = unproven_nodes(graph, model.opset_imports, version=self._info.version)
        refused = {**unproven, **refused_nodes(graph, model.opset_imports)}
        self._ask(model, graph, refused)
        return Capability(
            backend=self._info.name,
            taken=tuple(node.index for node in graph.nodes if node.index not in refused),
            refused=tuple(refused[index] for index in sorted(refused)),
        )

    def price(self, work: Work) -> Price | None:
        """By the speed it was made with; None without."""
        return None if self._speed is None else self._speed.price(work)

    def transfer_ns(self, size_bytes: int) -> int | None:
        """Nothing on the processor; by the speed it was made with elsewhere."""
        if self._kind is DeviceKind.CPU:
            return 0
        return None if self._speed is None else self._speed.transfer_ns(size_bytes)

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions = DEFAULT_OPTIONS) -> OpenVinoModel:
        """Compile a part for one stream of ``width`` threads, the caller's among them, that do not spin or pin.

        Large weights are read where ``segment`` has them. The result has no use for them on the processor once they
        are packed, so their pages may be dropped; only the packed form stays in memory.

        A part with open dimensions is compiled for ``options.shapes``, and for those that turn out to be likely:
        see `ShapedPrograms`.

        Raises: BackendError with the segment's name.
        """
        interface = segment_interface(segment)
        try:
            for info in (*interface.inputs, *interface.outputs):
                if info.kind != "tensor" or info.dtype not in SHAREABLE_TYPES:
                    raise TypeError(f"{info.name!r} is a {info.kind} of {TYPE_NAMES.get(info.dtype, 'unknown type')}")
            read = read_segment(self._openvino, self._core, segment)
            handed_on = passed_on(read)
            properties = self._properties(width)

            def compile_for(signature: Signature | None) -> Program:
                try:
                    model = read if signature is None else fixed_copy(read, dict(zip(names, signature, strict=True)))
                    compiled = self._core.compile_model(model, self._device, properties)
                    return Program(self._openvino, compiled, interface=interface, passed_on=handed_on)
                except Exception as error:
                    raise compile_error(error, backend=self._info.name, segment=segment.name) from error

            names = [info.name for info in interface.inputs]
            return OpenVinoModel(
                self._openvino,
                ShapedPrograms(
                    compile_for,
                    likely=_likely_signature(interface, options.shapes),
                    what=f"segment {segment.name!r}",
                ),
                interface=interface,
                weights=segment.weights,
                checks_numbers=self._checks_feeds and self._kind is DeviceKind.CPU,
                name=segment.name,
            )
        except BackendError:
            raise
        except Exception as error:
            raise compile_error(error, backend=self._info.name, segment=segment.name) from error

    def _properties(self, width: int) -> Mapping[str, Any]:
        wanted: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": width,
            "ENABLE_CPU_PINNING": False,
            "ENABLE_CPU_RESERVATION": False,
            # True leaves it to the width how many threads there are; False would count physical cores instead.
            "ENABLE_HYPER_THREADING": True,
            "EXECUTION_MODE_HINT": "ACCURACY",
            "INFERENCE_PRECISION_HINT": "f32",
            # Else activations are quantised where weights are.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        return {name: value for name, value in wanted.items() if name in self._supported} | self._options

    def _ask(self, model: Model, graph: OpGraph, refused: dict[int, RefusedNode]) -> None:
        """Add to ``refused`` what the translator or the device does not know, or fails to be asked about."""
        constants = {node.outputs[0]: node.index for node in graph.nodes if node.op_type == "Constant"}
        for run in list(_runs(graph, refused)):
            whole = len(run) == len(graph.nodes)
            obstacle = self._obstacle(model.extract_whole() if whole else _part(model, run, constants))
            if obstacle is None:
                continue
            # Which node is at fault is not told reliably for several, so each is asked about alone.
            alone = {
                index: self._obstacle(_part(model, (index,), constants))
                for index in run
                if graph.nodes[index].op_type != "Constant"
            }
            found = {index: why for index, why in alone.items() if why is not None}
            for index, (reason, detail) in (found or dict.fromkeys(alone, obstacle)).items():
                refused[index] = RefusedNode(node=index, reason=reason, detail=f"{self._info.name} {detail}")

    def _obstacle(self, segment: SegmentModel) -> tuple[Verdict, str] | None:
        """What speaks against a part, or None."""
        try:
            read = read_partially(_frontend(), segment)
            if placeholders(read):
                return Verdict.UNSUPPORTED_OPERATOR, "has no translation for it"
            if any(port.get_partial_shape().rank.is_dynamic for port in read.inputs):
                return Verdict.DYNAMIC_SHAPE, "needs to know the rank of its inputs"
            held = self._core.query_model(read, self._device)
        except (RuntimeError, TypeError, ValueError) as error:
            return Verdict.UNSUPPORTED_FORM, f"fails when it is asked about it: {_first_line(error)}"
        lacking = sorted({op.get_type_name() for op in read.get_ops() if op.get_friendly_name() not in held})
        return (Verdict.UNSUPPORTED_OPERATOR, f"has no kernel for {', '.join(lacking)}") if lacking else None


def _first_line(error: Exception) -> str:
    """What an error of OpenVINO's says, without the places in its sources that it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception from ")]
    return (told or lines or [type(error).__name__])[0]


def _likely_signature(interface: SegmentInterface, shapes: Mapping[str, tuple[int, ...]]) -> Signature | None:
    """The shapes to compile for at once, if they are known for all inputs and some of these are open."""
    if not has_open_shapes(interface) or any(info.name not in shapes for info in interface.inputs):
        return None
    return tuple(shapes[info.name] for info in interface.inputs)


def _part(model: Model, nodes: Sequence[int], constants: Mapping[str, int]) -> SegmentModel:
    """Some nodes as a model, with the constants they read; all that they make is an output."""
    graph = model.graph
    held = set(nodes)
    read = dict.fromkeys(name for index in nodes for name in graph.nodes[index].inputs if name)
    held |= {constants[name] for name in read if name in constants}
    made = {name for index in held for name in graph.nodes[index].outputs if name}
    fed = [name for name in read if name not in made and name not in graph.initializers]
    outputs = [name for index in nodes for name in graph.nodes[index].outputs if name]
    return model.extract(sorted(held), fed, outputs, name=f"nodes from {graph.nodes[nodes[0]].name}")


def _runs(graph: OpGraph, refused: Mapping[int, RefusedNode]) -> Iterator[tuple[int, ...]]:
    """Nodes that follow each other in the graph's order without a refused one between."""
    run: list[int] = []
    for node in graph.nodes:
        if node.index not in refused:
            run.append(node.index)
        elif run:
            yield tuple(run)
            run = []
    if run:
        yield tuple(run)


def _import() -> Any:
    try:
        with _without_telemetry():
            return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
        raise MissingExtraError(
            "the backend openvino needs the package openvino, which is not installed",
            fix="pip install 'parallax-runtime[openvino]'",
        ) from error


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import OpenVINO as if the package were absent by which it reports its import to its makers.

    Who asks Parallax for quicker kernels has not asked for that; nor for the process that it forks for it, into a
    process full of threads. A program that has imported either package itself keeps what it has.
    """
    if PACKAGE in sys.modules or _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)


@functools.cache
def _core() -> Any:
    """One per process: it holds the plugins."""
    return _import().Core()


@functools.cache
def _frontend() -> Any:
    return importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")
