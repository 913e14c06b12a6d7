"""Whether the files of a bundle are those of one model: its plan, its graphs, their data, and what the manifest says.

Each may have been changed by somebody who computed the digests anew. What would end in memory that is not the
model's, or in an answer to another question, is found before anything is mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from parallax.bundle._checks import declaration_path, says_of_devices
from parallax.bundle._folder import data_path
from parallax.bundle._manifest import Manifest
from parallax.errors import BundleError, ModelFileError, PlanError
from parallax.model import read_stored_graph
from parallax.schedule import CPU_BACKEND, Plan

if TYPE_CHECKING:
    from parallax.graph import TensorInfo
    from parallax.model import StoredGraph

_COMPILE_AGAIN = "compile the model again"


def read_content(folder: str, manifest: Manifest) -> Plan:
    """Read plan and graphs, and compare everything with everything. Returns the plan.

    Raises: BundleError saying what does not fit.
    """
    plan = _read_plan(folder, manifest)
    graphs = []
    for record in manifest.segments:
        graph = _read_graph(folder, manifest, record.graph)
        if graph.weights != record.weights:
            raise BundleError(
                "the manifest says otherwise of weights than their graph does",
                where=os.path.join(folder, record.graph),
                fix=_COMPILE_AGAIN,
            )
        graphs.append(graph)
    complaints = _whole_complaints(manifest, graphs) if plan.is_whole else _split_complaints(manifest, plan, graphs)
    for complaint in (*complaints, *_declaration_complaints(folder, manifest, graphs)):
        raise BundleError(complaint, where=folder, fix=_COMPILE_AGAIN)
    return plan


def _read_graph(folder: str, manifest: Manifest, name: str) -> StoredGraph:
    data = data_path(name)
    sizes = {record.path: record.size for record in manifest.files}
    path = os.path.join(folder, name)
    try:
        return read_stored_graph(_read(path), data_name=data.rpartition("/")[2], data_bytes=sizes.get(data))
    except ModelFileError as error:
        raise BundleError(
            f"a graph of the bundle cannot be used: {error.what}", where=path, fix=_COMPILE_AGAIN
        ) from error


def read_declaration(path: str) -> bytes:
    """What the runtime said of the model's outputs. Raises: BundleError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BundleError(
            f"cannot read what the bundle says of its outputs: {error.strerror or error}",
            where=path,
            fix=_COMPILE_AGAIN,
        ) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BundleError(f"cannot read the file: {error.strerror or error}", where=path) from error


def _read_plan(folder: str, manifest: Manifest) -> Plan:
    path = os.path.join(folder, manifest.plan)
    try:
        plan = Plan.from_json(_read(path))
    except PlanError as error:
        raise BundleError(
            f"the plan cannot be used: {error.what}", where=f"{path}, {error.where}", fix=_COMPILE_AGAIN
        ) from error
    if (plan.structure_digest, plan.cores) != (manifest.structure_digest, manifest.cores) or len(
        manifest.segments
    ) != len(plan.segments):
        raise BundleError("plan and manifest are not of the same bundle", where=path, fix=_COMPILE_AGAIN)
    for complaint in _device_complaints(manifest, plan):
        raise BundleError(complaint, where=path, fix=_COMPILE_AGAIN)
    return plan


def _device_complaints(manifest: Manifest, plan: Plan) -> Iterator[str]:
    if says_of_devices(manifest):
        from parallax.bundle._device_checks import plan_complaints  # few bundles have any

        yield from plan_complaints(manifest, plan)
    elif plan.own_shapes or (plan.is_rewritten and not plan.is_sliced):
        yield "the plan is of a model that was rewritten as no bundle's is"
    elif any(segment.backend != CPU_BACKEND or segment.width < 1 for segment in plan.segments):
        yield "the plan is for devices, and the bundle is not"


def _whole_complaints(manifest: Manifest, graphs: Iterable[StoredGraph]) -> Iterator[str]:
    interface = manifest.interface
    for graph in graphs:
        if _names(graph.inputs) != interface.inputs or _names(graph.outputs) != interface.outputs:
            yield "the graph has other inputs or outputs than the manifest says"
        # The runtime's optimiser may have done away with one that nothing needs.
        if not set(_names(graph.overridable)) <= set(interface.overridable):
            yield "the graph has other overridable initializers than the manifest says"


def _split_complaints(manifest: Manifest, plan: Plan, graphs: Iterable[StoredGraph]) -> Iterator[str]:
    interface = manifest.interface
    fed = {*interface.inputs, *interface.overridable}
    types: dict[str, tuple[str, int]] = {}
    made: set[str] = set()
    for segment, graph in zip(plan.segments, graphs, strict=True):
        read = (*graph.inputs, *graph.overridable)
        if not set(_names(read)) <= set(segment.inputs) or not set(segment.outputs) <= set(_names(graph.outputs)):
            yield f"the graph is not that of segment {segment.name!r} of the plan"
        optional = set(_names(graph.overridable))
        if not optional <= set(interface.overridable) or not set(_names(graph.inputs)).isdisjoint(
            interface.overridable
        ):
            yield f"the graph of segment {segment.name!r} and the manifest do not agree on what may be left out"
        if not fed | made >= set(segment.inputs):
            yield f"segment {segment.name!r} of the plan reads what nothing before it makes"
        if not fed.isdisjoint(segment.outputs):
            yield f"segment {segment.name!r} of the plan makes an input of the model"
        made.update(segment.outputs)
        for info in (*read, *graph.outputs):
            if types.setdefault(info.name, (info.kind, info.dtype)) != (info.kind, info.dtype):
                yield f"the graphs do not agree on the type of {info.name!r}"
    if not fed | made >= set(interface.outputs):
        yield "the plan does not make all outputs of the manifest"


def _declaration_complaints(folder: str, manifest: Manifest, graphs: Iterable[StoredGraph]) -> Iterator[str]:
    """What the runtime said of outputs that are tensors is kept as the inputs of a graph that does nothing."""
    path = declaration_path(manifest.generation)
    if all(record.path != path for record in manifest.files):
        return
    told = _read_graph(folder, manifest, path).inputs
    made = {info.name: (info.kind, info.dtype) for graph in graphs for info in (*graph.inputs, *graph.outputs)}
    known = set(_names(told))
    if _names(told) != tuple(name for name in manifest.interface.outputs if name in known):
        yield "what is kept of the outputs is not of those of the manifest"
    if any(made.get(info.name, (info.kind, info.dtype)) != (info.kind, info.dtype) for info in told):
        yield "what is kept of the outputs has other types than they have"


def _names(infos: Iterable[TensorInfo]) -> tuple[str, ...]:
    return tuple(info.name for info in infos)
