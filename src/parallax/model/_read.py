"""From an opened source to the parts of a model: its skeleton, checked, and its weights where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ModelError, ModelFileError
from parallax.model._digests import skeleton_digest
from parallax.model._doubled import settle_definitions
from parallax.model._files import HeldFiles
from parallax.model._functions import inline_functions
from parallax.model._nested import collect_nested, graphs_inside, restore, walk_nodes
from parallax.model._source import Source
from parallax.model._sparse import make_dense
from parallax.model._types import text
from parallax.model._versions import check_versions
from parallax.model._weights import ExternalFiles, Weight, check_inline, lifted_weight
from parallax.model._wire import Stripped

if TYPE_CHECKING:
    from parallax.graph.slimming import Slimming


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every view of one loaded model shares.

    ``skeleton`` is the model without its large weights, functions inlined; nobody changes it once
    the graph is built.
    """

    source: Source | None
    """None for a body, which no file holds by itself."""
    skeleton: onnx.ModelProto
    digest: bytes
    weights: Mapping[str, Weight]
    """Lifted and external initializers of the main graph."""
    nested: Mapping[int, Weight]
    weight_bytes: int
    files: HeldFiles
    why_whole: str | None = None
    """Why ``skeleton`` may not compute what the file says, if that is so."""
    is_inlined: bool = False
    """Whether the file has functions, which ``skeleton`` does not."""
    slimming: Slimming | None = None
    """What was found when the model was to be slimmed; None where nobody asked."""
    given: Parts | None = None
    """What was read, where ``skeleton`` is what is left of it."""


_MODEL_TEXTS = ("producer_name", "producer_version", "domain", "doc_string")
"""Free text, which need not be UTF-8 for the model to run; names must be."""


def read_parts(source: Source) -> Parts:
    """Parse a model without reading its weights, and check what does not take its graph. Raises: as `read_model`."""
    stripped = source.split()
    skeleton = onnx.ModelProto()
    try:
        skeleton.ParseFromString(stripped.skeleton)
    except DecodeError as exc:
        raise ModelFileError(
            f"the bytes are not an ONNX model: {exc}", fix="check the file and fetch or export it again"
        ) from exc
    if not skeleton.HasField("graph"):
        raise ModelFileError("there is no graph in it", fix="this is not an ONNX model: fetch or export it again")
    for message, names in ((skeleton, _MODEL_TEXTS), (skeleton.graph, ("doc_string",))):
        for name in names:
            if not isinstance(value := getattr(message, name), str):
                setattr(message, name, text(value))
    check_versions(skeleton)
    files = ExternalFiles(source.folders, None if source.held is None else source.held.external)
    weights, total, elsewhere = _take_weights(skeleton, stripped, files)
    dense = make_dense(skeleton, files, constants=b"sparse_value" in stripped.skeleton)
    weights.update((weight.name, weight) for weight in dense.weights)
    total += sum(weight.nbytes for weight in dense.weights)
    settle_definitions(skeleton.graph, {*elsewhere, *weights})
    has_functions = bool(skeleton.functions)
    skeleton, why_functions = inline_functions(skeleton)
    nested: dict[int, Weight] = {}
    # Looking into every node costs; the word occurs once per lifted tensor if none else is external.
    if stripped.skeleton.count(b"location") > len(stripped.initializers):
        functions = [node for function in skeleton.functions for node in function.node]
        nested = collect_nested([*skeleton.graph.node, *functions], stripped.nested, files)
    return Parts(
        source=source,
        skeleton=skeleton,
        digest=skeleton_digest(stripped.skeleton),
        weights=weights,
        nested=nested,
        weight_bytes=total + sum(weight.nbytes for weight in nested.values()),
        files=HeldFiles(source.file, MappingProxyType(dict(files.opened))),
        why_whole=why_functions or dense.why_whole,
        is_inlined=has_functions and why_functions is None,
    )


def _take_weights(
    skeleton: onnx.ModelProto, stripped: Stripped, files: ExternalFiles
) -> tuple[dict[str, Weight], int, set[str]]:
    """Lifted and external initializers, the bytes of all, and those that are defined twice and external.

    Those that nothing reads are dropped if they are broken.

    The runtime never looks at what nothing reads.
    """
    weights: dict[str, Weight] = {}
    broken: list[int] = []
    defined = Counter(tensor.name for tensor in skeleton.graph.initializer)
    defined.update(name for node in skeleton.graph.node if node.op_type == "Constant" for name in node.output)
    elsewhere: set[str] = set()
    total = 0
    read: set[str] | None = None
    for ordinal, tensor in enumerate(skeleton.graph.initializer):
        payload = stripped.initializers.get(ordinal)
        try:
            if payload is not None:
                weight = lifted_weight(tensor, payload)
            elif tensor.data_location == onnx.TensorProto.EXTERNAL:
                weight = files.weight(tensor)
            else:
                total += check_inline(tensor)
                continue
        except ModelError:
            read = _names_read(skeleton.graph) if read is None else read
            if tensor.name in read:
                raise
            broken.append(ordinal)
            continue
        total += weight.nbytes
        if defined[tensor.name] > 1:
            restore(tensor, weight)  # a name stands for one weight
            if payload is None:
                elsewhere.add(tensor.name)
        else:
            weights[tensor.name] = weight
    for ordinal in reversed(broken):
        del skeleton.graph.initializer[ordinal]
    return weights, total, elsewhere


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """What nodes and bodies read, and what the graph takes or returns."""
    names = {value.name for value in (*graph.input, *graph.output)}
    for node in walk_nodes(graph.node):
        names.update(node.input)
        names.update(value.name for body in graphs_inside(node) for value in body.output)
    return names
