"""Open the segments of a compiled, split plan: their graphs as they are, their weights where they are mapped."""

from __future__ import annotations

from collections.abc import Sequence

from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, make_mapped_session
from parallax.bundle._open import Bundle
from parallax.engine import CompiledSegment, Executor, lane_pool
from parallax.errors import BundleError
from parallax.machine import trim_heap


def open_executor(bundle: Bundle, options: RuntimeOptions) -> Executor:
    """Map every segment of a bundle's split plan and return an executor on this process's lanes.

    Weights of a plan that was split for their size are read ahead of the runs, if they do not fit into memory.

    Raises: BundleError if the runtime refuses a graph, or a graph is not what the plan says.
    """
    interface = bundle.manifest.interface
    segments: Sequence[CompiledSegment]
    advisor = None
    if bundle.plan.provenance.source == "memory":
        from pathlib import Path

        from parallax.bundle._readahead import open_streamed

        paths = [Path(bundle.data_path(segment.index)) for segment in bundle.plan.segments]
        segments, advisor = open_streamed(paths, lambda: _open_segments(bundle, options, lean=True))
    else:
        segments = _open_segments(bundle, options)
    return Executor(
        bundle.plan,
        segments,
        inputs=(*interface.inputs, *interface.overridable),
        outputs=interface.outputs,
        pool=lane_pool(),
        advisor=advisor,
    )


def _open_segments(bundle: Bundle, options: RuntimeOptions, *, lean: bool = False) -> list[CompiledSegment]:
    """``lean``: at no time with more memory than the largest segment needs to open, and so that all mappings are
    the runtime's, one for each weight."""
    segments = []
    for segment, record in zip(bundle.plan.segments, bundle.manifest.segments, strict=True):
        path = bundle.graph_path(segment.index)
        try:
            weights = None if lean else bundle.map_weights(segment.index)
            session = make_mapped_session(path, width=segment.width, options=options, weights=weights)
        except FOREIGN_EXCEPTIONS as error:
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
                weights={},  # mapped for the session, by the runtime or for it
            )
        )
        if lean:
            trim_heap()
    return segments
