"""A loaded model: its graph, its weights in place, and sub-models cut out of it."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import onnx

from parallax.errors import InternalError, ModelError, ModelFileError, UnsupportedModelError
from parallax.graph import OpGraph, TensorInfo
from parallax.model._attributes import repeated_value, tensor_value
from parallax.model._bodies import Body, BodyParts, Extracted, make_bodies, why_no_bodies
from parallax.model._build import Built, build_bodies, build_graph
from parallax.model._digests import skeleton_digest, structure_digest
from parallax.model._embedding import embed
from parallax.model._extract import Extractor
from parallax.model._files import HeldFiles
from parallax.model._handover import proto_with_weights
from parallax.model._inference import InferredTypes, TypesOnDemand
from parallax.model._lazy import LazyMapping
from parallax.model._nested import restore, restore_nested
from parallax.model._read import Parts, read_parts
from parallax.model._segment_model import SegmentModel
from parallax.model._shapes import Shapes, apply_shapes, open_leading_axes
from parallax.model._source import ModelSource, open_source
from parallax.model._survey import Survey, survey_graph
from parallax.model._types import text, type_info
from parallax.model._versions import opsets
from parallax.model._weights import View, Weight

if TYPE_CHECKING:
    from parallax.graph.slimming import Slimming


class Model:
    """A model that was loaded and checked. Immutable; safe to use from several threads.

    It holds the mapped file (or the given bytes) and a parsed skeleton without the large weights;
    weights are views made when asked for. Made by ``load_model``.
    """

    def __init__(self, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._build_lock = threading.Lock()
        self._graph_parts: Built | ModelError | None = None  # an error where the graph makes no sense
        self._inferred: OpGraph | None = None
        self._bodies: dict[int, tuple[Body[Model], ...]] = {}
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(dict(shapes))
        """Input shapes fixed by the caller."""
        self.path: Path | None = None if parts.source is None else parts.source.path
        self.opset_imports: Mapping[str, int] = MappingProxyType(opsets(parts.skeleton))
        self.ir_version: int = parts.skeleton.ir_version
        self.metadata: Mapping[str, str] = MappingProxyType(
            {text(entry.key): text(entry.value) for entry in parts.skeleton.metadata_props}
        )
        self.weight_bytes: int = parts.weight_bytes
        """Bytes of all initializers of the main graph, and of large tensors inside nodes."""
        self.files: HeldFiles = parts.files
        """The files that it was read from, as they were then."""

    def __repr__(self) -> str:
        origin = str(self.path) if self.path is not None else "bytes"
        return f"<Model {origin}: {len(self._parts.skeleton.graph.node)} nodes, {self.weight_bytes} weight bytes>"

    @property
    def graph(self) -> OpGraph:
        """The graph with the types that the file declares; ``inferred`` knows more, at a cost.

        Built when first asked for, which `load_model` does and `read_model` leaves to the caller.

        Raises: ModelError if the graph makes no sense (cycles, undefined tensors, names that are not text).
        """
        return self._built.graph

    @property
    def fault(self) -> ModelError | None:
        """What `graph` raises, or None. It builds the graph."""
        try:
            self._built  # noqa: B018  (asked for its errors)
        except ModelError as error:
            return error
        return None

    @functools.cached_property
    def survey(self) -> Survey:
        """What one look at each node tells, without the graph; microseconds per node.

        Raises: ModelFileError if names are not text.
        """
        return survey_graph(self._parts.skeleton.graph)

    @property
    def _built(self) -> Built:
        made = self._graph_parts
        if made is None:
            with self._build_lock:
                made = self._graph_parts
                if made is None:
                    try:
                        made = _build(self._parts.skeleton)
                    except ModelError as error:
                        made = error
                    self._graph_parts = made
        if isinstance(made, ModelError):
            raise made
        return made

    @functools.cached_property
    def _types(self) -> TypesOnDemand:
        self._built  # noqa: B018  (inference reads the nodes in the order and under the names of the graph)
        return TypesOnDemand(self._parts.skeleton)

    @property
    def why_whole(self) -> str | None:
        """Why no part of the model may be taken out of it, or None.

        The file says something that only the runtime decides on (which of two definitions counts, say), so the only
        faithful form of the model is `whole`. `graph` is good enough to look at.
        """
        return self._parts.why_whole or self._built.ambiguous

    @property
    def is_inlined(self) -> bool:
        """Whether ``whole`` has functions, which are inlined in all that is taken out of the model."""
        return self._parts.is_inlined

    @property
    def doubly_defined(self) -> str | None:
        """What is defined more than once, where it could not be told which definition the runtime takes; or None."""
        return self._built.ambiguous

    @property
    def slimming(self) -> Slimming | None:
        """What `slim_model` found; None where it was not asked."""
        return self._parts.slimming

    @property
    def as_given(self) -> Model:
        """The model that was read, where this one is what `slim_model` left of it; else this one."""
        given = self._parts.given
        return self if given is None else Model(given, self.shapes)

    def as_defined(self) -> SegmentModel:
        """Return all of a model of which no part may be taken out, with its functions; for `save_segment`."""
        parts = self._parts
        proto = onnx.ModelProto()
        proto.CopyFrom(parts.skeleton)
        for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
            restore_nested(nodes, parts.nested)
        sources = {name: weight for name, weight in parts.weights.items() if weight.nbytes}
        for tensor in proto.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in sources:
                restore(tensor, parts.weights[tensor.name])
        return SegmentModel(name="whole", proto=proto.SerializeToString(), weights={}, weight_types={}, sources=sources)

    @functools.cached_property
    def structure_digest(self) -> str:
        """Hex digest of structure, shapes and small constants; large weights' values do not count."""
        return structure_digest(self._parts.digest, self.shapes)

    def whole(self) -> str | bytes:
        """What a session of ONNX Runtime's on the whole model opens: the path, or the bytes where there is none.

        As given, or as slimmed, so ``shapes`` are not written into it; extract all nodes for a model that has them.
        Where the path leads to other files than those that this model was read from, bytes of what was read.

        Raises:
            UnsupportedModelError: over 2 GiB there are no bytes; extract all nodes instead.
            ModelFileError: one of its files was written to since.
        """
        source, files = self._parts.source, self.files
        files.check_intact()
        if source is None or self._parts.given is not None or not files.are_at_path():
            return self.embedded()
        return source.content() if source.path is None else str(source.path)

    def embedded(self) -> bytes:
        """`whole` as bytes that need no file: external data are in them. Raises: as `whole`."""
        source = self._parts.source
        self.files.check_intact()
        if source is None or self._parts.given is not None:
            return proto_with_weights(self.extract_whole(), as_inputs=())
        return embed(source, self.files) if self.files.external else source.content()

    def in_memory(self) -> Model:
        """The same model, whose weights no write into its files can change: they are copied, once for all that share
        these files."""
        parts, files = self._parts, self.files.in_memory
        buffers = {id(old.buffer): new.buffer for old, new in zip(self.files.all, files.all, strict=True)}

        def moved(weight: Weight) -> Weight:
            return replace(weight, buffer=buffers.get(id(weight.buffer), weight.buffer))

        source = parts.source
        if source is not None and files.model is not None:
            source = replace(source, data=files.model.buffer, file=files.model)
        made = Model(
            replace(
                parts,
                source=source,
                weights={name: moved(weight) for name, weight in parts.weights.items()},
                nested={key: moved(weight) for key, weight in parts.nested.items()},
                files=files,
            ),
            self.shapes,
        )
        made._graph_parts, made._types, made._inferred = self._built, self._types, self._inferred
        return made

    def with_shapes(self, shapes: Shapes) -> Model:
        """The same model with these input shapes fixed as well; weights are shared.

        Raises:
            ConfigError: as ``load_model``.
        """
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(self._parts.skeleton)
        checked = apply_shapes(skeleton, shapes)
        return _assemble(replace(self._parts, skeleton=skeleton), {**self.shapes, **checked})

    def inferred(self) -> OpGraph:
        """The graph with every type that ONNX shape inference finds, bodies included.

        Computed once (milliseconds per hundred nodes), then kept. Never fails: what inference
        cannot tell keeps its declared type, or none.
        """
        if self._inferred is None:
            types = self._types.get()
            with self._lock:
                if self._inferred is None:
                    self._inferred = self._with_types(types)
        return self._inferred

    def filled_values(self) -> dict[int, np.generic]:
        """What each ConstantOfShape of ``graph`` repeats, by the index of its node, where that can be decoded."""
        found = {
            node.index: repeated_value(self.protos[node.index])
            for node in self.graph.nodes
            if node.op_type == "ConstantOfShape"
        }
        return {index: value for index, value in found.items() if value is not None}

    def can_split_at(self, tensor_name: str) -> bool:
        """Whether this tensor may cross a segment: a dense tensor of known, fixed-size element type."""
        return self._extractor.can_split_at(tensor_name)

    def weight(self, name: str) -> View | None:
        """The values of a large initializer, mapped and read-only; None for any other, see `constant_value`."""
        weight = self._parts.weights.get(name)
        return None if weight is None else weight.view()

    def initializer(self, name: str) -> View | None:
        """The values of an initializer of any size, read-only: mapped, or decoded anew by each call where the file's
        message holds them (those of bodies below 1 MiB, small ones). None for strings, and where there is none."""
        weight = self.weight(name)
        if weight is not None:
            return weight
        held = next((tensor for tensor in self._parts.skeleton.graph.initializer if tensor.name == name), None)
        return None if held is None else tensor_value(held, most_bytes=sys.maxsize)

    def extract(
        self, nodes: Sequence[int], inputs: Sequence[str], outputs: Sequence[str], *, name: str
    ) -> SegmentModel:
        """Cut out a model of its own that computes ``outputs`` from ``inputs`` by these nodes.

        Initializers that the nodes read come along: large ones as zero-copy views, to be handed to
        ``SessionOptions.add_external_initializers``, small ones inside the proto. Those that the
        model lets callers override stay overridable. Nodes carry the unique names of ``graph``.
        A node may be in several extracts. Cost: linear in the nodes and their edges.

        Args:
            nodes: indices into ``graph.nodes``.
            inputs: tensors fed, in this order: model inputs (used or not) or outputs of other nodes.
            outputs: tensors returned, in this order; model inputs and initializers are allowed.
            name: the segment's name.

        Raises:
            InternalError: a tensor is missing from ``inputs``, cannot be produced, or cannot be cut at.
            UnsupportedModelError: `why_whole` has a reason.
        """
        if self.why_whole is not None:
            raise UnsupportedModelError(
                f"the model can only be run as it is: {self.why_whole}",
                where=None if self.path is None else str(self.path),
                fix="fix what is said there, or leave the model whole",
            )
        return self._extractor.extract(nodes, inputs, outputs, name=name)

    def extract_whole(self) -> SegmentModel:
        """Return all of the model, as `extract` gives it: nodes under their unique names, large weights beside it."""
        graph = self.graph
        return self.extract(
            range(len(graph.nodes)),
            [info.name for info in (*graph.inputs, *graph.overridable)],
            [info.name for info in graph.outputs],
            name="whole",
        )

    def interface(self) -> bytes | None:
        """A serialised model of this one's inputs alone, declared as the file declares them, overridable ones too; its
        output is the first of them. None where the model has no inputs."""
        return self._extractor.interface()

    def why_no_bodies(self, node: int) -> str | None:
        """Why the bodies of this node of ``graph`` cannot be models of their own, or None."""
        return why_no_bodies(self._body_parts, self.graph.nodes[node])

    def bodies(self, node: int) -> tuple[Body[Model], ...]:
        """The bodies of a node of ``graph`` as models of their own; weights are shared. Made once, then kept.

        Cost: linear in the bodies' nodes, and some rounds of shape inference over a body that has state.

        Raises:
            InternalError: `why_no_bodies` has a reason.
        """
        made = self._bodies.get(node)
        if made is None:
            obstacle = self.why_no_bodies(node)
            if obstacle is not None:
                raise InternalError(f"no bodies to take out: {obstacle}", where=self.graph.nodes[node].name)
            made = make_bodies(self._body_parts, self.graph.nodes[node], self._assemble_body)
            with self._lock:
                made = self._bodies.setdefault(node, made)
        return made

    def proven_type(self, tensor_name: str) -> onnx.TypeProto | None:
        """The type of a tensor as far as it is sure to hold; for this package alone, since it is a message."""
        return self._extractor.type_of(tensor_name)

    def _assemble_body(self, made: Extracted) -> Model:
        parts = Parts(
            source=None,
            skeleton=made.skeleton,
            digest=made.digest,
            weights=made.weights,
            nested=self._parts.nested,
            weight_bytes=sum(weight.nbytes for weight in made.weights.values()),
            files=self._parts.files,
        )
        return _assemble(parts, {})

    @functools.cached_property
    def _body_parts(self) -> BodyParts:
        parts, extractor = self._parts, self._extractor
        return BodyParts(
            skeleton=parts.skeleton,
            graph=self.graph,
            protos=self._built.protos,
            weights=parts.weights,
            nested=parts.nested,
            can_split_at=extractor.can_split_at,
            declare=extractor.declare,
            shell=extractor.shell,
        )

    @property
    def protos(self) -> tuple[onnx.NodeProto, ...]:
        """The message of each node, in the order of ``graph``; for rewrites in this package, which change none."""
        return self._built.protos

    def rewritten(
        self, nodes: Iterable[onnx.NodeProto], constants: Iterable[onnx.TensorProto], *, batch: str | None = None
    ) -> Model:
        """The same model with other nodes, which compute the same: inputs, outputs and weights stay, and are shared.

        `whole` still gives the model as it was.

        Args:
            nodes: all of the new nodes, with unique names; copied.
            constants: small initializers that they read beside those there are.
            batch: what the leading size of every input is called from now on; shapes that were stated of anything else
                are forgotten. None: inputs and outputs stay as they are.
        """
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(self._parts.skeleton)
        graph = skeleton.graph
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
        produced = {name for node in graph.node for name in node.output}
        stated = [value for value in graph.value_info if value.name in produced and batch is None]
        del graph.value_info[:]
        graph.value_info.extend(stated)
        if batch is not None:
            open_leading_axes(graph, batch)
        digest = skeleton_digest(skeleton.SerializeToString(deterministic=True))
        return _assemble(replace(self._parts, skeleton=skeleton, digest=digest), self.shapes)

    @property
    def parts(self) -> Parts:
        """For rewrites in this package, which change none of them."""
        return self._parts

    def with_parts(self, parts: Parts) -> Model:
        """A model of other parts, in the shapes of this one. Raises: ModelError if its graph makes no sense."""
        return _assemble(parts, self.shapes)

    def noting(self, slimming: Slimming) -> Model:
        """This model, with what was found when it was to be slimmed."""
        made = Model(replace(self._parts, slimming=slimming), self.shapes)
        made._graph_parts, made._types, made._inferred = self._built, self._types, self._inferred
        return made

    @functools.cached_property
    def _extractor(self) -> Extractor:
        parts, built = self._parts, self._built
        return Extractor(parts.skeleton, built, parts.weights, parts.nested, self._types)

    def _with_types(self, types: InferredTypes) -> OpGraph:
        graph = self.graph
        raw: dict[str, object] = {name: kind for name, kind in types.believed.items() if name}
        raw.update((info.name, info) for info in graph.inputs)
        raw.update(graph.initializers)
        nodes = list(graph.nodes)
        annotated = types.annotated.node
        for position, node in enumerate(nodes):
            if node.bodies:
                found = build_bodies(annotated[position], node.name)
                nodes[position] = replace(node, bodies=tuple((name, built.graph) for name, built in found))
        return replace(graph, nodes=tuple(nodes), tensors=LazyMapping(raw, _typed))


def _typed(name: str, raw: object) -> TensorInfo | None:
    if isinstance(raw, TensorInfo):
        return raw
    return type_info(name, raw) if isinstance(raw, onnx.TypeProto) else None


def load_model(source: ModelSource | HeldFiles, *, shapes: Shapes | None = None) -> Model:
    """Load and check a model without reading its weights.

    A file is mapped: its large weights stay on disk until used. Another file may take its place, but nothing may be
    written into it while the model lives. External data is mapped too, and must lie in the model's folder.

    Args:
        source: a path, the bytes of a model, a ModelProto (which is copied), or files that were opened earlier.
        shapes: input name -> concrete shape, fixing what the model leaves dynamic.

    Raises:
        ModelFileError: it cannot be read: missing, truncated, not ONNX.
        ExternalDataError: external data is missing or short.
        UnsafeModelError: external data is outside the model's folder, or functions expand without bound.
        UnsupportedModelError: newer than what is installed.
        ModelError: it can be read but makes no sense (cycles, undefined tensors, wrong sizes).
        ConfigError: ``shapes`` does not fit the model.
    """
    model = read_model(source, shapes=shapes)
    model.graph  # noqa: B018  (asked for its errors)
    return model


def read_model(source: ModelSource | HeldFiles, *, shapes: Shapes | None = None) -> Model:
    """`load_model`, with the graph left to be built, and checked, when it is first asked for.

    Of a model with very many operators that is nearly all there is to loading: some ten microseconds for each.

    Raises: as `load_model`, but for what is wrong with the graph.
    """
    opened = open_source(source)
    try:
        parts = read_parts(opened)
    except ModelFileError as exc:
        if opened.path is None or str(opened.path) in (exc.where or ""):
            raise
        where = str(opened.path) if exc.where is None else f"{opened.path}, {exc.where}"
        raise type(exc)(exc.what, where=where, fix=exc.fix) from exc.__cause__
    checked = apply_shapes(parts.skeleton, shapes) if shapes is not None else {}
    return Model(parts, checked)


def _assemble(parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    model = Model(parts, shapes)
    model.graph  # noqa: B018  (asked for its errors)
    return model


def _build(skeleton: onnx.ModelProto) -> Built:
    """The graph; the skeleton's nodes get the names and the order that the graph gives them."""
    built = build_graph(skeleton.graph, overridable=skeleton.ir_version >= 4)
    for node, proto in zip(built.graph.nodes, built.protos, strict=True):
        if proto.name != node.name:
            proto.name = node.name
    if not built.in_file_order:
        # Shape inference reads nodes in file order. Sorting in place moves no message.
        rank = {node.name: node.index for node in built.graph.nodes}
        skeleton.graph.node.sort(key=lambda proto: rank[proto.name])
    return built
