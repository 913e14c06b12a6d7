"""An accelerator that is not there: its operators and its speed from a profile, its answers from the processor.

For comparing placements without the device, not for speed. A part computes on ONNX Runtime's own provider the first
time it sees an input; the next time it answers from memory and takes exactly the time the profile gives it, while the
calling thread sleeps. The device runs one part at a time, like a queue. Whatever it takes part in is marked: its name
begins with "emulated:".
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime

from parallax.backends._protocol import (
    DEFAULT_OPTIONS,
    Backend,
    BackendInfo,
    CompiledModel,
    CompileOptions,
    DeviceKind,
    DeviceSpeed,
    Interface,
    MemoryDomain,
    Place,
    UnfitFeedsError,
)
from parallax.backends.emulated._condition import STEADY, Condition, ConditionStep, load_condition
from parallax.backends.emulated._host_speed import host_gemm_flops
from parallax.backends.emulated._profiles import DeviceProfile, DeviceRates, load_profile, profile_names
from parallax.backends.emulated._queue import Clock, DeviceQueue, Since, is_cancelled, queue_of, since_first_opened
from parallax.backends.ort import (
    CPU_PROVIDER,
    Bytes,
    OnnxRuntimeBackend,
    compile_error,
    empty_host_value,
    host_bytes,
    is_on_host,
)
from parallax.errors import ConfigError, InputError
from parallax.graph import STRING_TYPE, Capability, OpGraph, Price, RefusedNode, Work
from parallax.machine import available_cores
from parallax.model import Model, SegmentModel, segment_graph

PREFIX: Final = "emulated"

MEMORY_LIMIT_BYTES: Final = 256 << 20
"""Of inputs and answers that one compiled part remembers; the least recently used are forgotten."""


class EmulatedBackend:
    """A device described by a profile.

    Args:
        profile: the device.
        speed: how many times as fast as the device itself. By default what keeps the ratio of processor and
            accelerator: ``host_flops`` over the matrix product of the device's processor.
        host_flops: FLOP/s of a large matrix product on this machine's processor; by default measured when needed.
        processor: computes the answers; by default ONNX Runtime's own provider.
        clock: on which the device's time passes; by default the machine's, and then all backends of the process that
            emulate the same device share its time.
        condition: how it becomes slower and quicker, which its prices do not tell.
        since: the moment on its clock that the condition counts from; by default now.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        *,
        speed: float | None = None,
        host_flops: float | None = None,
        processor: Backend | None = None,
        clock: Clock | None = None,
        condition: Condition = STEADY,
        since: Since | None = None,
    ) -> None:
        self.profile = profile
        self._host_flops = host_flops
        self.speed = self.host_flops / profile.cpu_gemm_flops if speed is None else speed
        self._rates = profile.rates(speed=self.speed)
        self._processor = OnnxRuntimeBackend(CPU_PROVIDER) if processor is None else processor
        self._queue = queue_of(profile.name) if clock is None else DeviceQueue(clock)
        self.residents = _Residents()
        self._condition = condition
        self.since = Since(self._queue.clock.now()) if since is None else since
        name = f"{PREFIX}:{profile.name}"
        self._info = BackendInfo(
            name=name,
            kind=DeviceKind.GPU,
            device=f"{profile.accelerator} of {profile.title}, emulated at {self.speed:.3g} times its speed",
            version=f"onnxruntime {onnxruntime.__version__}",
            # Its tensors are the processor's in truth, so that anybody can read them; moving them is priced.
            memory=MemoryDomain(name=name, is_host=True),
            is_emulated=True,
        )

    @property
    def info(self) -> BackendInfo:
        """What it is, marked as emulated."""
        return self._info

    @property
    def host_flops(self) -> float:
        """FLOP/s of this machine's processor, as stated or measured: what its costs are to be scaled by."""
        return host_gemm_flops() if self._host_flops is None else self._host_flops

    def with_speed(self, speed: DeviceSpeed) -> EmulatedBackend:
        """Itself: the profile has its prices, and its parts take as long as they say."""
        return self

    @property
    def rates(self) -> DeviceRates:
        """What it takes for what, at its speed, as its profile says."""
        return self._rates

    def condition_at(self, moment: float) -> ConditionStep:
        """How it is at a moment on its clock."""
        return self._condition.at(moment - self.since.moment)

    def capability(self, model: Model) -> Capability:
        """What the delegate's list of operators covers; constants go along with whatever reads them."""
        graph = model.inferred()
        folded = _folded(graph)
        constants = {name for node in folded for name in graph.nodes[node].outputs}
        refused = []
        for node in graph.nodes:
            found = None
            if node.index not in folded:
                found = self.profile.coverage.uncovered(graph, node, constants=constants)
            if found is not None:
                refused.append(RefusedNode(node=node.index, reason=found.verdict, detail=found.detail))
        left_out = {entry.node for entry in refused}
        return Capability(
            backend=self._info.name,
            taken=tuple(node.index for node in graph.nodes if node.index not in left_out),
            refused=tuple(refused),
        )

    def price(self, work: Work) -> Price:
        """What the profile gives for it, at this speed."""
        rates = self._rates
        return Price(
            launch_ns=round(rates.launch_ns),
            compute_ns=sum(rates.operator_ns(entry.flops, entry.touched_bytes) for entry in work.operators),
            transfer_ns=sum(map(rates.transfer_ns, work.moved_bytes)),
        )

    def transfer_ns(self, size_bytes: int) -> int:
        """What the profile gives for one tensor."""
        return self._rates.transfer_ns(size_bytes)

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions = DEFAULT_OPTIONS) -> EmulatedModel:
        """Compile a part for the processor, to be run in the time that ``options.work`` is priced at.

        Where the work is not said, that is launch and transfers, and for computing the processor's own time
        times the ratio of their speeds.

        Raises: BackendError with the segment's name; also where the delegate does not cover all of it and
            ``options.exclusive`` asks for that.
        """
        if options.exclusive:
            graph = segment_graph(segment)
            folded = _folded(graph)
            constants = {name for node in folded for name in graph.nodes[node].outputs}
            for node in graph.nodes:
                if node.index in folded:
                    continue
                found = self.profile.coverage.uncovered(graph, node, constants=constants, unknown_types_pass=True)
                if found is not None:
                    cause = ValueError(f"{node.name} ({node.op_type}): {found.detail}")
                    raise compile_error(cause, backend=self._info.name, segment=segment.name) from cause
        # The processor computes an answer once; all its cores may help with what takes none of them afterwards.
        inner = self._processor.compile(segment, width=width or available_cores(), options=options)
        shapes = {} if self.profile.coverage.dynamic_shapes else options.shapes
        return EmulatedModel(
            inner, queue=self._queue, rates=self._rates, work=options.work, backend=self, shapes=shapes
        )


@dataclass(frozen=True, slots=True)
class _Stay:
    """How long a part is on the device, as its profile says, in seconds."""

    launch_s: float
    compute_s: float
    transfer_s: float
    copying_s: float
    """For how much of the transfers a core of the processor copies."""

    def seconds(self, step: ConditionStep) -> float:
        """In a condition."""
        return self.launch_s * step.launch + self.compute_s * step.device + self.transfer_s


@dataclass(frozen=True, slots=True)
class _Seen:
    """What an input held."""

    content: Bytes
    owner: Any
    """Of the memory: a resident answer, which nobody writes to; None for a copy."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Memory:
    """One input that was seen, and what was answered."""

    feeds: Mapping[str, _Seen]
    answers: Mapping[str, Any]
    size_bytes: int
    cpu_ns: int
    """The time it took the processor."""


class _Residents:
    """Answers that parts of a device remember. One that is fed to another part is known by where it lies."""

    def __init__(self) -> None:
        self._memory_at: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()

    def add(self, memory: _Memory) -> None:
        """They are residents as long as ``memory`` lives."""
        for answer in memory.answers.values():
            self._memory_at[answer.data_ptr()] = memory

    def has(self, value: Any) -> bool:
        """Whether a tensor of plain bytes is one."""
        memory = self._memory_at.get(value.data_ptr())
        size = value.tensor_size_in_bytes()
        return memory is not None and any(
            answer.data_ptr() == value.data_ptr() and answer.tensor_size_in_bytes() == size
            for answer in memory.answers.values()
        )


class EmulatedModel:
    """A part on an emulated device. ``computed`` and ``replayed`` count its runs."""

    def __init__(
        self,
        inner: CompiledModel,
        *,
        queue: DeviceQueue,
        rates: DeviceRates,
        work: Work | None,
        backend: EmulatedBackend,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._inner = inner
        self._outputs = inner.interface.output_names
        self._shapes = shapes
        self._queue = queue
        self._rates = rates
        self._stay = None
        if work is not None:
            price = backend.price(work)
            copying_ns = sum(map(rates.copying_ns, work.moved_bytes))
            self._stay = _Stay(price.launch_ns / 1e9, price.compute_ns / 1e9, price.transfer_ns / 1e9, copying_ns / 1e9)
        self._backend = backend
        self._lock = threading.Lock()
        self._memories: OrderedDict[tuple[object, ...], _Memory] = OrderedDict()
        self._remembered_bytes = 0
        self.computed = 0
        self.replayed = 0

    @property
    def interface(self) -> Interface:
        """What the part is fed and returns."""
        return self._inner.interface

    @property
    def memory(self) -> MemoryDomain:
        """The emulated device's, which anybody can read."""
        return self._backend.info.memory

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`. The answers are the processor's, and come after the time the device would take."""
        answers, end, copying_s = self._answer(feeds, run_options)
        self._check_outputs(outputs)
        copies = [_copy(answers[name]) for name in outputs]
        self._queue.wait(end, copying_s, run_options)
        return copies

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        """See `CompiledModel`."""
        answers, end, copying_s = self._answer(feeds, run_options)
        self._check_outputs(targets)
        filled = {}
        for name, target in targets.items():
            if target is None:
                filled[name] = answers[name]  # left on the device: a later part may read it, and nobody write to it
            elif target is Place.HOST:
                filled[name] = _copy(answers[name])
            else:
                self._fill(name, answers[name], target)
                filled[name] = target
        self._queue.wait(end, copying_s, run_options)
        return filled

    def _answer(self, feeds: Mapping[str, Any], run_options: Any) -> tuple[Mapping[str, Any], float, float]:
        """All outputs for these feeds, the moment at which the device would have them, and seconds of copying."""
        for name, shape in self._shapes.items():
            fed = feeds.get(name)
            if fed is not None and tuple(fed.shape()) != shape:
                raise UnfitFeedsError(
                    f"{name!r} has shape {list(fed.shape())}, where the device was given {list(shape)} to compile for",
                    where=f"backend {self._backend.info.name}",
                    fix="run this part on the CPU",
                )
        begin = self._queue.clock.now()
        key = _key(feeds)
        memory = None if key is None else self._recall(key, feeds)
        if memory is not None and not is_cancelled(run_options):
            self.replayed += 1
            stay = self._stay_of(memory.cpu_ns, feeds, memory.answers)
            return memory.answers, self._reserve(stay, begin), stay.copying_s
        # Raises what is wrong with the feeds, too.
        values = self._inner.run_with_ort_values(feeds, self._outputs, run_options)
        cpu_ns = round((self._queue.clock.now() - begin) * 1e9)
        self.computed += 1
        answers = dict(zip(self._outputs, values, strict=True))
        if key is not None and all(_is_plain(value) for value in values):
            self._remember(key, feeds, answers, cpu_ns)
        stay = self._stay_of(cpu_ns, feeds, answers)
        return answers, self._reserve(stay, begin), stay.copying_s

    def _reserve(self, stay: _Stay, begin: float) -> float:
        """Take the device's time for it, by the condition in which it begins. Returns the moment when it is over."""
        return self._queue.reserve(stay.seconds(self._backend.condition_at(begin)), begin)

    def _stay_of(self, cpu_ns: int, feeds: Mapping[str, Any], answers: Mapping[str, Any]) -> _Stay:
        if self._stay is not None:
            return self._stay
        rates, profile = self._rates, self._backend.profile
        moved = [value.tensor_size_in_bytes() for value in (*feeds.values(), *answers.values()) if _is_plain(value)]
        ratio = profile.cpu_gemm_flops * self._backend.speed / rates.flops_per_s["float32"]
        return _Stay(
            rates.launch_ns / 1e9,
            cpu_ns * ratio / 1e9,
            sum(map(rates.transfer_ns, moved)) / 1e9,
            sum(map(rates.copying_ns, moved)) / 1e9,
        )

    def _recall(self, key: tuple[object, ...], feeds: Mapping[str, Any]) -> _Memory | None:
        with self._lock:
            memory = self._memories.get(key)
            if memory is None:
                return None
            self._memories.move_to_end(key)
        # The key holds a few elements only: all of them must be equal.
        for name, seen in memory.feeds.items():
            if not _is_equal(seen.content, host_bytes(feeds[name])):
                return None
        return memory

    def _remember(
        self, key: tuple[object, ...], feeds: Mapping[str, Any], answers: Mapping[str, Any], cpu_ns: int
    ) -> None:
        # Callers may write to what they feed, and to what they are given, unless it was left on the device.
        residents = self._backend.residents
        kept = {
            name: _Seen(host_bytes(value), value) if residents.has(value) else _Seen(host_bytes(value).copy(), None)
            for name, value in feeds.items()
        }
        size = sum(seen.content.nbytes for seen in kept.values())
        size += sum(value.tensor_size_in_bytes() for value in answers.values())
        if size > MEMORY_LIMIT_BYTES:
            return
        memory = _Memory(kept, answers, size, cpu_ns)
        residents.add(memory)
        with self._lock:
            before = self._memories.pop(key, None)
            self._memories[key] = memory
            self._remembered_bytes += size - (0 if before is None else before.size_bytes)
            while self._remembered_bytes > MEMORY_LIMIT_BYTES:
                _, forgotten = self._memories.popitem(last=False)
                self._remembered_bytes -= forgotten.size_bytes

    def _check_outputs(self, names: Sequence[str] | Mapping[str, Any]) -> None:
        unknown = [name for name in names if name not in self._outputs]
        if unknown:
            raise InputError(
                f"there is no output {unknown[0]!r}",
                where=f"backend {self._backend.info.name}",
                fix=f"ask for some of {list(self._outputs)}",
            )

    def _fill(self, name: str, answer: Any, target: Any) -> None:
        fits = _is_plain(answer) and _is_plain(target) and is_on_host(target)
        if fits:
            fits = list(answer.shape()) == list(target.shape()) and answer.element_type() == target.element_type()
        if not fits:
            raise InputError(
                f"the target of {name!r} does not have its type and shape",
                where=f"backend {self._backend.info.name}",
                fix="give a tensor in the processor's memory, of exactly the output's type and shape, or None",
            )
        host_bytes(target)[:] = host_bytes(answer)


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor of plain bytes that the processor can read."""
    return bool(value.is_tensor()) and value.element_type() != STRING_TYPE and is_on_host(value)


def _copy(value: Any) -> Any:
    """A tensor of one's own; what is no plain tensor is handed on, being computed for each run."""
    if not _is_plain(value):
        return value
    copy = empty_host_value(value.shape(), value.element_type())
    host_bytes(copy)[:] = host_bytes(value)
    return copy


def _key(feeds: Mapping[str, Any]) -> tuple[object, ...] | None:
    """Names, types, shapes and a few bytes of the feeds; None for feeds that are no plain tensors."""
    parts: list[object] = []
    for name in sorted(feeds):
        value = feeds[name]
        if not _is_plain(value):
            return None
        content = host_bytes(value)
        some = content[:: max(1, content.size // 64)].tobytes() + content[-8:].tobytes()
        parts += [name, int(value.element_type()), tuple(value.shape()), some]
    return tuple(parts)


def _is_equal(one: Bytes, other: Bytes) -> bool:
    """Whether two stretches of memory hold the same, looked at eight bytes at a time."""
    if one.size != other.size:
        return False
    if one.ctypes.data == other.ctypes.data:
        return True
    words = one.size // 8 * 8
    return np.array_equal(one[:words].view(np.int64), other[:words].view(np.int64)) and np.array_equal(
        one[words:], other[words:]
    )


_FOLDABLE_DOMAINS: Final = frozenset({"", "ai.onnx"})
_RANDOM: Final = ("Random", "Bernoulli", "Multinomial", "Dropout")


def _folded(graph: OpGraph) -> frozenset[int]:
    """Nodes that read constants only: the runtime computes them when it loads the model."""
    overridable = {info.name for info in graph.overridable}
    fixed = {"", *(name for name in graph.initializers if name not in overridable)}
    found = set()
    for node in graph.nodes:
        if node.domain not in _FOLDABLE_DOMAINS or node.bodies or node.captures or node.op_type.startswith(_RANDOM):
            continue
        if all(name in fixed for name in node.inputs):
            found.add(node.index)
            fixed.update(node.outputs)
    return frozenset(found)


def open_emulated(device: str, options: Mapping[str, Any]) -> EmulatedBackend:
    """The backend ``emulated:device``: a profile's name, or the path of one.

    Options: ``speed``, a factor on the device's own speed, or "host" (the default, see `EmulatedBackend`);
    ``host_flops``, FLOP/s of this machine's processor, which is measured by default; ``condition``, a file that says
    how it becomes slower and quicker (see `load_condition`). The latter may also stand in the name:
    ``emulated:NAME?condition=FILE.json``.

    Raises: ConfigError for an unknown device or option, or a profile or condition that cannot be read.
    """
    device, _, query = device.partition("?")
    if query:
        key, _, value = query.partition("=")
        if key != "condition" or not value or "condition" in options:
            raise ConfigError(
                f"{query!r} after the name of an emulated device", fix="write emulated:NAME?condition=FILE.json, once"
            )
        options = {**options, key: value}
    unknown = sorted(set(options) - {"speed", "host_flops", "condition"})
    if unknown:
        raise ConfigError(
            f"emulated devices have no option {unknown[0]!r}",
            fix="there are speed, a factor or 'host', host_flops, and condition, a file",
        )
    if not device:
        raise ConfigError(
            "which device is to be emulated?",
            fix=f"write emulated:NAME with one of {', '.join(profile_names())}, or emulated:FILE.json",
        )
    given = options.get("speed", "host")
    speed = None if given == "host" else _number("speed", given, fix="give a factor, or 'host'")
    flops = options.get("host_flops")
    host_flops = None if flops is None else _number("host_flops", flops, fix="give FLOP/s, such as 50e9")
    condition = options.get("condition")
    profile = load_profile(device)
    return EmulatedBackend(
        profile,
        speed=speed,
        host_flops=host_flops,
        condition=STEADY if condition is None else load_condition(condition),
        since=None if condition is None else since_first_opened(profile.name, condition),
    )


def _number(option: str, given: Any, *, fix: str) -> float:
    try:
        return float(given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{option}={given!r}", fix=fix) from error
