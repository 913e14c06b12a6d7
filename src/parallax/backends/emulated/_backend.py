"""An accelerator that is not there: its operators and its speed from a profile, its answers from the processor.

For comparing placements without the device, not for speed. A part computes on ONNX Runtime's own provider the first
time it sees an input; the next time it answers from memory and takes exactly the time the profile gives it, while the
calling thread sleeps. The device runs one part at a time, like a queue. Whatever it takes part in is marked: its name
begins with "emulated:".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnxruntime

from parallax.backends._protocol import (
    DEFAULT_OPTIONS,
    Backend,
    BackendInfo,
    CompileOptions,
    DeviceKind,
    DeviceSpeed,
    MemoryDomain,
)
from parallax.backends.emulated._compiled import EmulatedDevice, EmulatedModel, Residents
from parallax.backends.emulated._condition import STEADY, Condition, ConditionStep
from parallax.backends.emulated._host_speed import host_gemm_flops
from parallax.backends.emulated._profiles import DeviceProfile, DeviceRates
from parallax.backends.emulated._queue import Clock, DeviceQueue, Since, queue_of
from parallax.backends.ort import CPU_PROVIDER, OnnxRuntimeBackend, compile_error
from parallax.errors import ConfigError
from parallax.graph import Capability, OperatorWork, OpGraph, Price, RefusedNode, Work
from parallax.machine import available_cores

if TYPE_CHECKING:
    from parallax.model import Model, SegmentModel

PREFIX: Final = "emulated"


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
        float16: whether it computes in half precision what a model has in float32, at the profile's rate for it and
            with half the bytes of its memory. Tensors cross to it and back in float32, and the answers stay those of
            the processor in float32: half precision shows in its time alone.

    Raises: ConfigError for ``float16`` where the profile has no rate for it.
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
        float16: bool = False,
    ) -> None:
        if float16 and profile.float16_gain is None:
            raise ConfigError(
                f"the profile {profile.name!r} has no rate for float16: nothing is known to be gained by it",
                fix="leave float16 out, or give peak_flops.float16 in a profile of your own",
            )
        self.profile = profile
        self.computes_in_float16 = float16
        self._host_flops = host_flops
        self.speed = self.host_flops / profile.cpu_gemm_flops if speed is None else speed
        self._rates = profile.rates(speed=self.speed)
        self._processor = OnnxRuntimeBackend(CPU_PROVIDER) if processor is None else processor
        self._queue = queue_of(profile.name) if clock is None else DeviceQueue(clock)
        self.since = Since(self._queue.clock.now()) if since is None else since
        name = f"{PREFIX}:{profile.name}"
        precision = ", in half precision" if float16 else ""
        self._info = BackendInfo(
            name=name,
            kind=DeviceKind.GPU,
            device=f"{profile.accelerator} of {profile.title}, emulated at {self.speed:.3g} times its speed{precision}",
            version=f"onnxruntime {onnxruntime.__version__}",
            # Its tensors are the processor's in truth, so that anybody can read them; moving them is priced.
            memory=MemoryDomain(name=name, is_host=True),
            is_emulated=True,
            opening_options=(("speed", repr(self.speed)),),
        )
        flops_per_s = self._rates.flops_per_s["float16" if float16 else "float32"]
        self._device = EmulatedDevice(
            name=name,
            memory=self._info.memory,
            queue=self._queue,
            rates=self._rates,
            condition=condition,
            since=self.since,
            times_of_processor=profile.cpu_gemm_flops * self.speed / flops_per_s,
            residents=Residents(),
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
        return self._device.condition_at(moment)

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
            compute_ns=sum(map(self._operator_ns, work.operators)),
            transfer_ns=sum(map(rates.transfer_ns, work.moved_bytes)),
        )

    def _operator_ns(self, operator: OperatorWork) -> int:
        if self.computes_in_float16 and operator.element_type == "float32":
            return self._rates.operator_ns(operator.flops, operator.touched_bytes // 2, "float16")
        return self._rates.operator_ns(operator.flops, operator.touched_bytes, operator.element_type)

    def transfer_ns(self, size_bytes: int) -> int:
        """What the profile gives for one tensor."""
        return self._rates.transfer_ns(size_bytes)

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions = DEFAULT_OPTIONS) -> EmulatedModel:
        """Compile a part for the processor, to be run in the time that ``options.work`` is priced at.

        Where the work is not said, that is launch and transfers, and for computing the processor's own time
        times the ratio of their speeds. What ``options.answers`` computes already is not compiled once more.

        Raises: BackendError with the segment's name; also where the delegate does not cover all of it and
            ``options.exclusive`` asks for that.
        """
        if options.exclusive:
            from parallax.model import segment_graph  # to ask costs loading `onnx`

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
        inner = options.answers
        if inner is None:
            # The processor computes an answer once; all its cores may help with what takes none of them afterwards.
            inner = self._processor.compile(segment, width=width or available_cores(), options=options)
        shapes = {} if self.profile.coverage.dynamic_shapes else options.shapes
        work = options.work
        return EmulatedModel(
            inner,
            device=self._device,
            price=None if work is None else self.price(work),
            moved_bytes=() if work is None else work.moved_bytes,
            shapes=shapes,
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
