"""The seam between plans and what computes them: questions first, then prices, then a compiled part.

A `Backend` answers which nodes it takes and what a part would cost before anything is compiled, and leaves nothing
behind by answering. What it compiles is called like ONNX Runtime's own sessions, so that the engine has one way to run
a segment, wherever it runs. Tensors travel as the C extension's ``OrtValue``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final, Protocol

from parallax._record import dataclass
from parallax.errors import BackendError

if TYPE_CHECKING:
    from parallax.graph import Capability, Price, Work
    from parallax.model import Model, SegmentModel


class DeviceKind(enum.Enum):
    """What a backend computes on."""

    CPU = "cpu"
    GPU = "gpu"
    NPU = "npu"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDomain:
    """Where a backend's tensors live. Two backends of the same domain hand tensors over without a copy."""

    name: str
    """Unique in the process: "cpu", or for example "WebGPU_Buf:0"."""
    is_host: bool
    """Whether the processor reads and writes it directly: its own memory, or memory both sides share."""


HOST_MEMORY: Final = MemoryDomain(name="cpu", is_host=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What a backend is, for plans, caches and readers."""

    name: str
    """As `open_backend` and ``providers=`` take it."""
    kind: DeviceKind
    device: str
    """What it runs on, as its runtime calls it; "" where unknown."""
    version: str
    """Of the library that computes: figures measured with another one are void."""
    memory: MemoryDomain
    is_emulated: bool = False
    """Whether a model of a device takes its place: the processor computes the answers, a profile says the time."""
    leaves_rest_to_cpu: bool = False
    """Whether a part of which it takes only some nodes may be compiled, and the processor computes the others."""
    opening_options: tuple[tuple[str, str], ...] = ()
    """Options that open it again as it is without measuring, beside those that it was opened with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpeed:
    """A device in four numbers, after Parallax (arXiv 2512.11532), appendix on delegate regions: ``L + F/R + B/W``.

    The paper has no term for memory-bound operators; ours compute at the slower of arithmetic and memory (roofline).
    """

    launch_ns: int
    """From a call until the device works, and back."""
    flops_per_s: float
    memory_bytes_per_s: float
    """Between the device and its own memory; infinite leaves the term out."""
    link_bytes_per_s: float
    """Between the processor's memory and the device's; infinite where they share it."""
    link_latency_ns: int = 0
    """Per transfer."""

    def price(self, work: Work) -> Price:
        """What ``work`` should cost."""
        from parallax.graph import Price  # whoever asks for prices has a planner loaded, and the graph with it

        seconds = sum(
            max(operator.flops / self.flops_per_s, operator.touched_bytes / self.memory_bytes_per_s)
            for operator in work.operators
        )
        transfers = sum(map(self.transfer_ns, work.moved_bytes))
        return Price(launch_ns=self.launch_ns, compute_ns=round(seconds * 1e9), transfer_ns=transfers)

    def transfer_ns(self, size_bytes: int) -> int:
        """What moving ``size_bytes`` over the link should cost."""
        return self.link_latency_ns + round(size_bytes / self.link_bytes_per_s * 1e9)


class SessionSettings(Protocol):
    """What the caller wants of each session that ONNX Runtime makes for a part."""

    @property
    def config(self) -> Sequence[tuple[str, str]]:
        """The session config entries among it, by key."""
        ...

    def to_session_options(self) -> Any:
        """A fresh ``onnxruntime.SessionOptions`` that holds all of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """How a part is to be compiled."""

    session_options: SessionSettings | None = None
    """What ONNX Runtime's providers start from; other backends have no use for it."""
    exclusive: bool = False
    """Fail to compile rather than leave some nodes to the processor."""
    work: Work | None = None
    """What running it once amounts to, where that is known. Emulated devices take as long as they price it."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs that ``work`` is for, where the part itself leaves them open. Devices that need shapes when the
    part is loaded are asked to run it in these only; others may prepare for these, and take all."""
    answers: CompiledModel | None = None
    """What computes the answers of an emulated device, where that is open already. Others have no use for it."""


DEFAULT_OPTIONS: Final = CompileOptions()


class Place(enum.Enum):
    """Where an output is to go, if not into a tensor that is given."""

    HOST = "host"
    """Into fresh memory of the processor."""


class UnfitFeedsError(BackendError):
    """A backend is well, but not made for these feeds, which others can compute with."""


class TensorArgument(Protocol):
    """An input or output as ONNX Runtime states it: its ``NodeArg``, or what looks the same."""

    @property
    def name(self) -> str:
        """Name of the tensor."""
        ...

    @property
    def type(self) -> str:
        """Such as "tensor(float)"."""
        ...

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Sizes, names of sizes, and None; empty for a scalar, and where even the rank is unknown."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What a compiled part is fed and returns."""

    inputs: tuple[TensorArgument, ...]
    """What must be fed."""
    overridable: tuple[TensorArgument, ...] = ()
    """What may be fed."""
    outputs: tuple[TensorArgument, ...]
    """What it returns."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What can be asked for."""
        return tuple(argument.name for argument in self.outputs)


class CompiledModel(Protocol):
    """A compiled part, in the place of ONNX Runtime's C session. Any number of threads may run it at once."""

    @property
    def interface(self) -> Interface:
        """What it is fed and returns."""
        ...

    @property
    def memory(self) -> MemoryDomain:
        """Where it makes its outputs if nobody says where they should go."""
        ...

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """Run once, as ONNX Runtime's C session does.

        Args:
            feeds: input name -> C OrtValue, of any memory domain the backend reads.
            outputs: names, in the order of the answer; no repetitions.
            run_options: ``onnxruntime.RunOptions``; at least ``terminate`` is heeded.

        Returns: C OrtValues in the processor's memory, the caller's own: no later run writes to them.

        Raises:
            InputError: a feed is missing, unknown, or of the wrong type or shape.
            RunCancelled: ``run_options.terminate`` was set.
            UnfitFeedsError: these feeds can be computed with elsewhere only.
            BackendError: the backend failed; the part can be run elsewhere.
        """
        ...

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        """Run once, with a say in where outputs go.

        Args:
            feeds: as in `run_with_ort_values`.
            targets: output name -> a C OrtValue to write to, which has exactly the output's type and shape;
                `Place.HOST`; or None to leave the output in ``memory``, where a later part of the same domain may
                read it.
            run_options: as in `run_with_ort_values`.

        Returns: a C OrtValue for each target.

        Raises: as `run_with_ort_values`; also where a target does not fit.
        """
        ...


class Backend(Protocol):
    """Something that compiles parts of models. Thread-safe, and the same answers each time it is asked."""

    @property
    def info(self) -> BackendInfo:
        """What it is."""
        ...

    @property
    def host_flops(self) -> float | None:
        """FLOP/s of this machine's processor that its prices are to be compared with; None where they do not depend on
        it. To ask may take 0.7 seconds, once per process."""
        ...

    def with_speed(self, speed: DeviceSpeed) -> Backend:
        """The same backend, which prices by ``speed``. One that has prices of its own keeps them."""
        ...

    def capability(self, model: Model) -> Capability:
        """Which nodes of a model it would take. May take as long as compiling; leaves nothing behind.

        Raises: BackendError if it cannot tell.
        """
        ...

    def price(self, work: Work) -> Price | None:
        """What running ``work`` should cost, or None where nothing is known. Pure and quick."""
        ...

    def transfer_ns(self, size_bytes: int) -> int | None:
        """What moving so many bytes between the processor's memory and its own should cost; 0 where they are one."""
        ...

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions = DEFAULT_OPTIONS) -> CompiledModel:
        """Compile a part, to run with at most ``width`` threads of the processor.

        The weights are read where they are, if the backend can: ``segment.weights`` lives as long as the result.

        Raises: BackendError with the segment's name, if the backend refuses it.
        """
        ...
