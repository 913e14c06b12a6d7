"""What a backend compiled, in the place of a session of the runtime's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends import HOST_MEMORY, CompiledModel, Place
from parallax.engine._observers import EventStream
from parallax.schedule import CPU_BACKEND

if TYPE_CHECKING:
    from parallax.engine._run_events import Scope, Transfer, Values
    from parallax.engine._transfers import Transfers

_CPU_PROVIDER: Final = "CPUExecutionProvider"


class SegmentSession(ABC):
    """What runs a segment where no session of ONNX Runtime's does; it is called like its C session.

    Args:
        described: a C session that has loaded the same segment, and need not be initialised: it tells of inputs and
            outputs.
    """

    def __init__(self, described: Any) -> None:
        # What the runtime's sessions say of themselves, for those who read it there.
        self.inputs_meta = list(described.inputs_meta)
        self.outputs_meta = list(described.outputs_meta)
        self.overridable_initializers = list(described.overridable_initializers)
        self.model_meta = described.model_meta
        host = C.OrtMemoryInfo("Cpu", C.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, 0, C.OrtMemType.DEFAULT)
        self.input_meminfos = [host] * len(self.inputs_meta)
        self.output_meminfos = [host] * len(self.outputs_meta)
        self.input_epdevices = [device for device in C.get_ep_devices() if device.ep_name == _CPU_PROVIDER][:1]
        self.get_profiling_start_time_ns = 0

    @abstractmethod
    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """Run once, as ONNX Runtime's C session does."""

    def run_within(
        self, scope: Scope, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """`run_with_ort_values` in an observed run. ``scope``: what runs inside belongs there."""
        return self.run_with_ort_values(feeds, outputs, run_options)

    def report_to(self, stream: EventStream, segment: str, transfers: Transfers) -> None:  # noqa: B027
        """From now on, tell this stream what happens beside runs; by default, that is nothing.

        Args:
            segment: name of what this session runs.
            transfers: which of its tensors go to another memory and back.
        """

    @property
    def has_fallen_back(self) -> bool:
        """Whether the processor computed what this thread ran last, in the place of the backend that was planned."""
        return False

    def transfers(self, read: Values, made: Values) -> Sequence[Transfer]:
        """What went to another memory and back in what this thread ran last.

        Args:
            read: what it was given.
            made: its outputs.
        """
        return ()

    def get_providers(self) -> list[str]:
        """Where its values live: with the runtime's CPU provider."""
        return [_CPU_PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """None were set."""
        return {_CPU_PROVIDER: {}}


@runtime_checkable
class _Guarded(Protocol):
    """A compiled part that falls back to the processor where the backend fails."""

    backend: str
    on_set_aside: Callable[[str, float | None], object] | None

    @property
    def has_fallen_back(self) -> bool:
        """Whether the processor computed what this thread ran last."""
        ...


class DelegatedSession(SegmentSession):
    """Called and asked like ONNX Runtime's C session. Thread-safe.

    Args:
        model: runs it.
        described: see `SegmentSession`.
        kept: outputs that stay where the model makes them: whoever reads them can do so there, and nobody writes.
    """

    def __init__(self, model: CompiledModel, *, described: Any, kept: Collection[str] = ()) -> None:
        super().__init__(described)
        self.model = model
        self._kept = frozenset(kept)
        self._guard = model if isinstance(model, _Guarded) else None
        self._planned: Transfers | None = None

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`; outputs that are kept come where the model makes them."""
        if not self._kept:
            return self.model.run_with_ort_values(feeds, outputs, run_options)
        targets = {name: None if name in self._kept else Place.HOST for name in outputs}
        made = self.model.run_bound(feeds, targets, run_options)
        return [made[name] for name in outputs]

    def report_to(self, stream: EventStream, segment: str, transfers: Transfers) -> None:
        """See `SegmentSession`: where the backend is disabled, the stream is told."""
        self._planned = transfers
        guard = self._guard
        if guard is not None:
            backend = guard.backend

            def tell(reason: str, retry_s: float | None) -> None:
                if stream.attached:
                    from parallax.engine._run_events import tell_set_aside

                    tell_set_aside(stream, backend, segment, reason, retry_s)

            guard.on_set_aside = tell

    @property
    def is_refused(self) -> bool:
        """Whether the backend does not compile this part, so that the processor always computes it."""
        return self._guard is None

    @property
    def has_fallen_back(self) -> bool:
        """See `SegmentSession`."""
        return self._guard is None or self._guard.has_fallen_back

    def transfers(self, read: Values, made: Values) -> Sequence[Transfer]:
        """See `SegmentSession`. A memory that the processor reads is one in name, where moves are those that were
        planned."""
        from parallax.backends.ort import is_on_host
        from parallax.engine._run_events import Transfer

        memory = self.model.memory
        if self._planned is None or self.has_fallen_back or memory == HOST_MEMORY:
            return ()
        here, there, planned = HOST_MEMORY.name, memory.name, self._planned

        def moves(name: str, value: Any, names: Collection[str]) -> bool:
            return value is not None and (name in names if memory.is_host else is_on_host(value))

        to_it = [Transfer(name, value, here, there) for name, value in read if moves(name, value, planned.inputs)]
        back = [Transfer(name, value, there, here) for name, value in made if moves(name, value, planned.outputs)]
        return (*to_it, *back)


def transfers_of(session: Any, read: Values, made: Values, *, has_failed: bool = False) -> Sequence[Transfer]:
    """What went to another memory and back in what this thread ran last with a session of whatever kind."""
    return session.transfers(read, made) if isinstance(session, SegmentSession) and not has_failed else ()


def refused_segments(sessions: Sequence[Any]) -> frozenset[int]:
    """Positions of those whose backend does not compile its part, so that the processor computes it."""
    return frozenset(
        position
        for position, session in enumerate(sessions)
        if isinstance(session, DelegatedSession) and session.is_refused
    )


def backend_of(session: Any) -> str | None:
    """What computed that, where it is not what was planned; else None."""
    return CPU_BACKEND if isinstance(session, SegmentSession) and session.has_fallen_back else None
