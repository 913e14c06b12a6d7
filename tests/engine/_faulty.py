"""A backend that fails on purpose, registered as other distributions register theirs."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from parallax.backends import (
    BackendInfo,
    CompiledModel,
    CompileOptions,
    DeviceKind,
    DeviceSpeed,
    Interface,
    MemoryDomain,
    open_backend,
)
from parallax.backends._registry import forget_backends
from parallax.errors import BackendError
from parallax.graph import Capability, Price, RefusedNode, Verdict, Work
from parallax.model import Model, SegmentModel

RELEASED = threading.Event()
"""What a call that hangs waits for."""

calls: dict[str, int] = {}
"""Calls per device since `installed` began."""

_lock = threading.Lock()
_chance = random.Random(0)


def _fails(_: int) -> str:
    return "raise"


def _fails_at_random(_: int) -> str:
    return _chance.choice(("raise", "raise oddly", "well", "well"))


def _hangs(call: int) -> str:
    return "hang" if call % 7 == 3 else "well"


def _makes_nans(call: int) -> str:
    return "nan" if call % 3 else "well"


SCRIPTS: Mapping[str, Callable[[int], str]] = {
    "fails": _fails,
    "random": _fails_at_random,
    "hangs": _hangs,
    "nans": _makes_nans,
    "refuses": lambda _: "well",
}


class FaultyBackend:
    """Computes with ONNX Runtime's CPU provider where its script lets it."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._inner = open_backend("cpu")
        self._speed = DeviceSpeed(
            launch_ns=0, flops_per_s=1e15, memory_bytes_per_s=1e15, link_bytes_per_s=1e15, link_latency_ns=0
        )

    @property
    def info(self) -> BackendInfo:
        memory = MemoryDomain(name="faulty", is_host=True)
        return BackendInfo(
            name=f"faulty:{self._device}", kind=DeviceKind.GPU, device="faulty", version="1", memory=memory
        )

    @property
    def host_flops(self) -> None:
        return None

    def with_speed(self, speed: DeviceSpeed) -> FaultyBackend:
        return self

    def capability(self, model: Model) -> Capability:
        """Everything but sigmoids, so that the processor has a part between its regions."""
        nodes = model.graph.nodes
        taken = tuple(node.index for node in nodes if node.op_type != "Sigmoid")
        refused = tuple(
            RefusedNode(node=node.index, reason=Verdict.UNSUPPORTED_OPERATOR, detail="it has no Sigmoid")
            for node in nodes
            if node.op_type == "Sigmoid"
        )
        return Capability(backend=self.info.name, taken=taken, refused=refused)

    def price(self, work: Work) -> Price:
        return self._speed.price(work)

    def transfer_ns(self, size_bytes: int) -> int:
        return self._speed.transfer_ns(size_bytes)

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions) -> FaultyModel:
        if self._device == "refuses":
            raise BackendError("it refuses everything", where=f"segment {segment.name!r}")
        return FaultyModel(self._inner.compile(segment, width=max(1, width), options=options), self._device)


class FaultyModel:
    """A part on it."""

    def __init__(self, inner: CompiledModel, device: str) -> None:
        self._inner = inner
        self._device = device

    @property
    def interface(self) -> Interface:
        return self._inner.interface

    @property
    def memory(self) -> MemoryDomain:
        return self._inner.memory

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        made = self.run_bound(feeds, dict.fromkeys(outputs), run_options)
        return [made[name] for name in outputs]

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        with _lock:
            calls[self._device] = call = calls.get(self._device, 0) + 1
            act = SCRIPTS[self._device](call)
        if act == "raise":
            raise BackendError("the driver is gone")
        if act == "raise oddly":
            raise RuntimeError("a bug of the driver's")
        if act == "hang":
            RELEASED.wait()
        made = self._inner.run_bound(feeds, targets, run_options)
        if act == "nan":
            for value in made.values():
                np.asarray(value.numpy())  # it must be readable, whoever made it
                _fill_with_nan(value)
        return made


def _fill_with_nan(value: Any) -> None:
    import ctypes

    content = np.full(value.tensor_size_in_bytes() // 4, np.nan, np.float32)
    ctypes.memmove(value.data_ptr(), content.ctypes.data, content.nbytes)


def open_faulty(device: str, options: Mapping[str, Any]) -> FaultyBackend:
    """The factory that the entry point names."""
    return FaultyBackend(device)


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """A distribution with the family ``faulty`` is installed while the block runs; calls that hang end with it."""
    distribution = folder / "faulty_backends-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-backends\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(f"[parallax.backends]\nfaulty = {__name__}:open_faulty\n")
    sys.path.insert(0, str(folder))
    forget_backends()
    calls.clear()
    RELEASED.clear()
    _chance.seed(0)
    try:
        yield
    finally:
        RELEASED.set()
        sys.path.remove(str(folder))
        forget_backends()
