"""A part of a model on an emulated device: computed by the processor once, and answered from memory from then on.

The answers are the processor's. They come after the time that the device would take, which the calling thread sleeps
through, but for the copies between host and device that keep a core busy.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from parallax.backends._protocol import CompiledModel, Interface, MemoryDomain, Place, UnfitFeedsError
from parallax.backends.emulated._condition import Condition, ConditionStep
from parallax.backends.emulated._profiles import DeviceRates
from parallax.backends.emulated._queue import DeviceQueue, Since, is_cancelled
from parallax.backends.ort import Bytes, empty_host_value, host_bytes, is_on_host
from parallax.errors import InputError
from parallax.graph import STRING_TYPE, Price

MEMORY_LIMIT_BYTES: Final = 256 << 20
"""Of inputs and answers that one compiled part remembers; the least recently used are forgotten."""


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


class Residents:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedDevice:
    """What all parts that were compiled for a device share."""

    name: str
    """Of its backend, for messages."""
    memory: MemoryDomain
    queue: DeviceQueue
    rates: DeviceRates
    condition: Condition
    since: Since
    """The moment on the queue's clock that the condition counts from."""
    times_of_processor: float
    """For computing it takes so many times as long as the processor, where nobody said what work a part is."""
    residents: Residents

    def condition_at(self, moment: float) -> ConditionStep:
        """How it is at a moment on the queue's clock."""
        return self.condition.at(moment - self.since.moment)


class EmulatedModel:
    """A part on an emulated device. ``computed`` and ``replayed`` count its runs.

    Args:
        inner: the part, compiled for the processor.
        device: what it runs on.
        price: of a run; None where nobody said what work the part is.
        moved_bytes: of each tensor that ``price`` has as moved.
        shapes: of inputs that the device was given to compile for; it takes no others.
    """

    def __init__(
        self,
        inner: CompiledModel,
        *,
        device: EmulatedDevice,
        price: Price | None,
        moved_bytes: Sequence[int],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._inner = inner
        self._outputs = inner.interface.output_names
        self._shapes = shapes
        self._device = device
        self._stay = None
        if price is not None:
            copying_ns = sum(map(device.rates.copying_ns, moved_bytes))
            self._stay = _Stay(price.launch_ns / 1e9, price.compute_ns / 1e9, price.transfer_ns / 1e9, copying_ns / 1e9)
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
        return self._device.memory

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`. The answers are the processor's, and come after the time the device would take."""
        begin = self._device.queue.clock.now()
        answers, end, copying_s = self._answer(feeds, run_options, begin)
        self._check_outputs(outputs)
        copies = [_copy(answers[name]) for name in outputs]
        self._wait(begin, end, copying_s, run_options)
        return copies

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        """See `CompiledModel`."""
        begin = self._device.queue.clock.now()
        answers, end, copying_s = self._answer(feeds, run_options, begin)
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
        self._wait(begin, end, copying_s, run_options)
        return filled

    def _wait(self, begin: float, end: float, copying_s: float, run_options: Any) -> None:
        """Wait until then. Recalling and handing out answers kept a core busy since ``begin``, as copies would have:
        only what is left of them is copied."""
        queue = self._device.queue
        queue.wait(end, max(0.0, copying_s - (queue.clock.now() - begin)), run_options)

    def _answer(
        self, feeds: Mapping[str, Any], run_options: Any, begin: float
    ) -> tuple[Mapping[str, Any], float, float]:
        """All outputs for these feeds, the moment at which the device would have them, and seconds of copying.

        ``begin``: when the run began.
        """
        for name, shape in self._shapes.items():
            fed = feeds.get(name)
            if fed is not None and tuple(fed.shape()) != shape:
                raise UnfitFeedsError(
                    f"{name!r} has shape {list(fed.shape())}, where the device was given {list(shape)} to compile for",
                    where=f"backend {self._device.name}",
                    fix="run this part on the CPU",
                )
        key = _key(feeds)
        memory = None if key is None else self._recall(key, feeds)
        if memory is not None and not is_cancelled(run_options):
            self.replayed += 1
            stay = self._stay_of(memory.cpu_ns, feeds, memory.answers)
            return memory.answers, self._reserve(stay, begin), stay.copying_s
        # Raises what is wrong with the feeds, too.
        values = self._inner.run_with_ort_values(feeds, self._outputs, run_options)
        cpu_ns = round((self._device.queue.clock.now() - begin) * 1e9)
        self.computed += 1
        answers = dict(zip(self._outputs, values, strict=True))
        if key is not None and all(_is_plain(value) for value in values):
            self._remember(key, feeds, answers, cpu_ns)
        stay = self._stay_of(cpu_ns, feeds, answers)
        return answers, self._reserve(stay, begin), stay.copying_s

    def _reserve(self, stay: _Stay, begin: float) -> float:
        """Take the device's time for it, by the condition in which it begins. Returns the moment when it is over."""
        return self._device.queue.reserve(stay.seconds(self._device.condition_at(begin)), begin)

    def _stay_of(self, cpu_ns: int, feeds: Mapping[str, Any], answers: Mapping[str, Any]) -> _Stay:
        if self._stay is not None:
            return self._stay
        rates = self._device.rates
        moved = [value.tensor_size_in_bytes() for value in (*feeds.values(), *answers.values()) if _is_plain(value)]
        return _Stay(
            rates.launch_ns / 1e9,
            cpu_ns * self._device.times_of_processor / 1e9,
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
        residents = self._device.residents
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
                where=f"backend {self._device.name}",
                fix=f"ask for some of {list(self._outputs)}",
            )

    def _fill(self, name: str, answer: Any, target: Any) -> None:
        fits = _is_plain(answer) and _is_plain(target) and is_on_host(target)
        if fits:
            fits = list(answer.shape()) == list(target.shape()) and answer.element_type() == target.element_type()
        if not fits:
            raise InputError(
                f"the target of {name!r} does not have its type and shape",
                where=f"backend {self._device.name}",
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
