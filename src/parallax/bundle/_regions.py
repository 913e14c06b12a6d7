"""Open what of a compiled plan runs on devices: compiled by them, or as the processor computes an emulated one's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from parallax.backends import DEFAULT_POLICY, Backend, CompileOptions, Complaints, FaultPolicy, compile_guarded
from parallax.backends.ort import (
    OnnxRuntimeModel,
    RuntimeOptions,
    cpu_backend,
    load_session,
    make_mapped_session,
)
from parallax.bundle._manifest import RegionRecord
from parallax.bundle._open import Bundle
from parallax.engine import DelegatedSession, kept_outputs
from parallax.errors import BackendError
from parallax.graph import OperatorWork, Work
from parallax.machine import available_cores
from parallax.model import SegmentModel
from parallax.schedule import Segment

_SPINNING: Final = "session.intra_op.allow_spinning"


def _without_spinning(options: RuntimeOptions) -> RuntimeOptions:
    """Those of sessions whose pools wait asleep.

    A pool that was just made spins for a while, and takes the cores from what is opened next. What computes an answer
    once can do without.
    """
    if any(key == _SPINNING for key, _ in options.config):
        return options
    return replace(options, config=(*options.config, (_SPINNING, "0")))


class RegionOpener:
    """Opens segments of a bundle that run on devices. What a device fails at, now or in a run, the processor does.

    Args:
        bundle: was checked, with a plan that has such segments.
        options: of the runtime's sessions.
        backends: the devices of its manifest, by the names that they are given there.
        faults: what is done about those that fail; None: the default.
    """

    def __init__(
        self, bundle: Bundle, options: RuntimeOptions, backends: Mapping[str, Backend], faults: FaultPolicy | None
    ) -> None:
        self._bundle = bundle
        self._options = options
        self._backends = [backends[device.name] for device in bundle.manifest.devices]
        self._faults = DEFAULT_POLICY if faults is None else faults
        self._complaints = Complaints()
        plan = bundle.plan
        hosts = [backend.info.memory.is_host for backend in self._backends]
        regions = {
            segment.backend: record.region.device
            for segment, record in zip(plan.segments, bundle.manifest.segments, strict=True)
            if record.region is not None
        }
        on_host = {name for name, device in regions.items() if hosts[device]}
        self._kept = kept_outputs(plan, bundle.manifest.interface.outputs, on_host)

    def __call__(self, segment: Segment, region: RegionRecord) -> tuple[DelegatedSession, Mapping[str, Any]]:
        """What runs a segment, and the memory that it reads weights from.

        Raises: BackendError if its graph is not for such a device; whatever the runtime raises for one that it refuses.
        """
        bundle, backend = self._bundle, self._backends[region.device]
        path = bundle.graph_path(segment.index)
        weights = bundle.map_weights(segment.index)
        answers: OnnxRuntimeModel | None = None
        if region.is_emulated:
            if not backend.info.is_emulated:
                raise BackendError(f"{backend.info.name} is no emulated device, and the graph is for one")
            width = segment.width or available_cores()
            described = make_mapped_session(
                path, width=width, options=_without_spinning(self._options), weights=weights
            )
            answers = OnnxRuntimeModel(described, backend=cpu_backend().info)
            part = SegmentModel(name=segment.name, proto=b"", weights={}, weight_types={})
        else:
            from parallax.model import read_part  # loads `onnx`, as those do who compile such parts

            with open(path, "rb") as file:
                part = read_part(segment.name, file.read(), weights.arrays)
            described = load_session(part.proto)
        operators = [
            OperatorWork(op_type=name, flops=flops, touched_bytes=size, element_type=element)
            for name, flops, size, element in zip(
                region.operators, region.flops, region.touched_bytes, region.element_types, strict=True
            )
        ]
        compiled = compile_guarded(
            backend,
            part,
            fallback=cpu_backend(),
            width=segment.width,
            options=CompileOptions(
                session_options=self._options,
                work=Work(operators=tuple(operators), moved_bytes=region.moved_bytes),
                shapes=dict(region.shapes),
                answers=answers,
            ),
            policy=self._faults,
            complaints=self._complaints,
        )
        return DelegatedSession(compiled, described=described, kept=self._kept[segment.index]), part.weights
