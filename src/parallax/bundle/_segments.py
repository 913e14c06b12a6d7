"""Open the segments of a compiled, split plan: their graphs as they are, their weights where they are mapped.

What the model takes and gives is what its segments know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from parallax._record import dataclass
from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, make_mapped_session
from parallax.bundle._open import Bundle
from parallax.engine import CompiledSegment, Executor, lane_pool
from parallax.errors import BackendError, BundleError
from parallax.graph import ELEMENT_TYPES, NUMPY_TYPES, TensorInfo
from parallax.machine import trim_heap

if TYPE_CHECKING:
    from parallax.backends import Backend, FaultPolicy
    from parallax.bundle._manifest import RegionRecord
    from parallax.schedule import Segment

    OpenRegion = Callable[[Segment, RegionRecord], tuple[Any, Mapping[str, Any]]]
    """Returns what runs a segment on a device, and the memory that it reads weights from."""

_REFUSALS: Final[tuple[type[Exception], ...]] = (BackendError, *FOREIGN_EXCEPTIONS)


def open_executor(
    bundle: Bundle,
    options: RuntimeOptions,
    *,
    backends: Mapping[str, Backend] | None = None,
    faults: FaultPolicy | None = None,
) -> Executor:
    """Map every segment of a bundle's split plan and return an executor on this process's lanes.

    Weights of a plan that was split for their size are read ahead of the runs, if they do not fit into memory.

    Args:
        backends: the devices of its manifest, opened, by the names that they are given there.
        faults: what is done about those that fail; None: the default.

    Raises: BundleError if the runtime refuses a graph, or a graph is not what the plan says.
    """
    interface = bundle.manifest.interface
    segments: Sequence[CompiledSegment]
    prefetcher = None
    if bundle.plan.is_streamed:
        from pathlib import Path

        from parallax.bundle._readahead import open_streamed

        paths = [Path(bundle.data_path(segment.index)) for segment in bundle.plan.segments]
        segments, prefetcher = open_streamed(paths, lambda: _open_segments(bundle, options, lean=True))
    else:
        open_region = None
        if bundle.manifest.devices:
            from parallax.bundle._regions import RegionOpener  # few bundles have any

            open_region = RegionOpener(bundle, options, backends or {}, faults)
        segments = _open_segments(bundle, options, open_region=open_region)
    return Executor(
        bundle.plan,
        segments,
        inputs=(*interface.inputs, *interface.overridable),
        outputs=interface.outputs,
        pool=lane_pool(),
        prefetcher=prefetcher,
    )


def _open_segments(
    bundle: Bundle,
    options: RuntimeOptions,
    *,
    lean: bool = False,
    open_region: OpenRegion | None = None,
) -> list[CompiledSegment]:
    """The segments of a split plan.

    Args:
        lean: at no time with more memory than the largest segment needs to open, and so that all mappings are the
            runtime's, one for each weight.
        open_region: opens a segment that runs on a device.
    """
    segments = []
    for segment, record in zip(bundle.plan.segments, bundle.manifest.segments, strict=True):
        path = bundle.graph_path(segment.index)
        held: Mapping[str, Any] = {}
        try:
            if record.region is not None and open_region is not None:
                session, held = open_region(segment, record.region)
            else:
                # Held by the session, by the runtime or for it.
                weights = None if lean else bundle.map_weights(segment.index)
                session = make_mapped_session(path, width=segment.width, options=options, weights=weights)
        except _REFUSALS as error:
            raise BundleError(
                f"the runtime refuses a graph of the bundle: {error}", where=path, fix="compile the model again"
            ) from error
        segments.append(
            CompiledSegment(
                name=segment.name,
                node_names=record.nodes,
                width=segment.width,
                session=session,
                inputs=segment.inputs,
                outputs=segment.outputs,
                weights=held,
            )
        )
        if lean:
            trim_heap()
    return segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A model's inputs and outputs, as far as feeding it goes."""

    inputs: tuple[TensorInfo, ...]
    overridable: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_interface(bundle: Bundle, executor: Executor) -> Interface:
    """The interface of a cut bundle, from what its segments say of it.

    Raises: BundleError if no segment knows a name that the manifest lists.
    """
    known: dict[str, Any] = {}
    for segment in executor.segments:
        session = segment.session
        for argument in (*session.inputs_meta, *session.overridable_initializers, *session.outputs_meta):
            known.setdefault(argument.name, argument)
    names = bundle.manifest.interface
    try:
        return Interface(
            inputs=tuple(_tensor(known[name]) for name in names.inputs),
            overridable=tuple(_tensor(known[name]) for name in names.overridable if name in known),
            outputs=tuple(_tensor(known[name]) for name in names.outputs),
        )
    except KeyError as error:
        raise BundleError(f"no graph of the bundle knows {error}", where=str(bundle.path)) from error


_TYPE_CODES = {ELEMENT_TYPES[code].runtime_type: code for code in NUMPY_TYPES}


def _tensor(argument: Any) -> TensorInfo:
    return TensorInfo(name=argument.name, dtype=_TYPE_CODES[argument.type], shape=tuple(argument.shape))
