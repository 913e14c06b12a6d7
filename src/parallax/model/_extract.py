"""Cut sub-models out of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from parallax.errors import InternalError
from parallax.model._build import Built
from parallax.model._inference import TypesOnDemand
from parallax.model._nested import restore, restore_nested
from parallax.model._segment_model import SegmentModel
from parallax.model._weights import HANDED_OVER, Weight, mark_lent


class Extractor:
    """Indexes a model once, so that each extraction costs only its own size."""

    def __init__(
        self,
        skeleton: onnx.ModelProto,
        built: Built,
        weights: Mapping[str, Weight],
        nested: Mapping[int, Weight],
        types: TypesOnDemand,
    ) -> None:
        self._skeleton = skeleton
        self._graph = built.graph
        self._protos = built.protos
        self._weights = weights
        self._nested = nested
        self._types = types
        graph = skeleton.graph
        self._inputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in reversed(graph.input)}
        self._outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in reversed(graph.output)}
        self._stated: dict[str, onnx.ValueInfoProto] = {value.name: value for value in graph.value_info}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._annotations = {note.tensor_name: note for note in graph.quantization_annotation}
        self._overridable = frozenset(info.name for info in built.graph.overridable)

    def can_split_at(self, name: str) -> bool:
        """See ``Model.can_split_at``."""
        if (tensor := self._initializers.get(name)) is not None:
            return bool(tensor.data_type != onnx.TensorProto.STRING)
        kind = self.type_of(name)
        return kind is not None and bool(kind.tensor_type.elem_type != onnx.TensorProto.STRING)

    def extract(
        self, nodes: Sequence[int], inputs: Sequence[str], outputs: Sequence[str], *, name: str
    ) -> SegmentModel:
        """See ``Model.extract``."""
        model = self.shell()
        graph = model.graph
        order = sorted(set(nodes))
        graph.node.extend([self._protos[index] for index in order])
        if self._nested:
            restore_nested(graph.node, self._nested)

        fed = set(inputs)
        produced: set[str] = set()
        reads: dict[str, None] = {}
        for index in order:
            node = self._graph.nodes[index]
            for read in (*node.inputs, *node.captures):
                if read and read not in produced:
                    reads[read] = None
            produced.update(node.outputs)

        wanted = [read for read in reads if read not in fed]
        wanted += [out for out in outputs if out not in produced and out not in fed and out not in reads]
        weights: dict[str, npt.NDArray[np.generic]] = {}
        types: dict[str, int] = {}
        graph.input.extend([self.declare(read) for read in inputs])
        for tensor_name in (*(i for i in inputs if i in self._overridable), *wanted):
            if not self._take_initializer(graph, tensor_name, weights, types):
                raise InternalError(
                    f"segment {name!r} needs tensor {tensor_name!r}, which is neither fed to it nor produced by it"
                )
            if tensor_name in self._overridable and tensor_name not in fed:
                graph.input.append(self._inputs[tensor_name])
        graph.output.extend([self._output(out) for out in outputs])

        declared = fed.union(outputs)
        if self._stated:
            graph.value_info.extend(
                [self._stated[t] for t in sorted(produced) if t in self._stated and t not in declared]
            )
        if self._annotations:
            seen = produced | reads.keys()
            graph.quantization_annotation.extend([self._annotations[t] for t in sorted(seen) if t in self._annotations])
        return SegmentModel(
            name=name,
            proto=model.SerializeToString(),
            weights=weights,
            weight_types=types,
            sources={weight: self._weights[weight] for weight in weights},
        )

    def interface(self) -> bytes | None:
        """See ``Model.interface``."""
        if not self._skeleton.graph.input:
            return None
        model = self.shell()
        model.graph.input.extend(self._skeleton.graph.input)
        model.graph.output.append(self._skeleton.graph.input[0])
        return bytes(model.SerializeToString())

    def shell(self) -> onnx.ModelProto:
        """A model with everything but the graph's content."""
        source = self._skeleton
        model = onnx.ModelProto()
        model.opset_import.extend(source.opset_import)
        model.metadata_props.extend(source.metadata_props)
        for attribute in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if source.HasField(attribute):
                setattr(model, attribute, getattr(source, attribute))
        model.graph.name = source.graph.name
        model.graph.doc_string = source.graph.doc_string
        model.graph.metadata_props.extend(source.graph.metadata_props)
        return model

    def _take_initializer(
        self,
        graph: onnx.GraphProto,
        name: str,
        weights: dict[str, npt.NDArray[np.generic]],
        types: dict[str, int],
    ) -> bool:
        tensor = self._initializers.get(name)
        if tensor is None:
            return False
        weight = self._weights.get(name)
        if weight is None:
            graph.initializer.append(tensor)
            return True
        # Built anew: the original may carry a location, or payload fields that the mark would contradict.
        copy = graph.initializer.add(name=name, data_type=weight.dtype, dims=weight.dims)
        if weight.nbytes and weight.dtype in HANDED_OVER:
            mark_lent(copy)
            weights[name] = weight.view()
            types[name] = weight.dtype
        else:
            restore(copy, weight)
        return True

    def declare(self, name: str) -> onnx.ValueInfoProto:
        """A tensor that may be cut, with its proven type."""
        declared = self._inputs.get(name)
        if declared is not None:
            return declared
        return self._declare(name, shape_of_output=False)

    def _output(self, name: str) -> onnx.ValueInfoProto:
        declared = self._outputs.get(name) or self._inputs.get(name)
        if declared is not None and declared.type.WhichOneof("value") is not None:
            return declared
        return self._declare(name, shape_of_output=True)

    def _declare(self, name: str, *, shape_of_output: bool) -> onnx.ValueInfoProto:
        value = onnx.ValueInfoProto(name=name)
        tensor = self._initializers.get(name)
        if tensor is not None:
            value.type.tensor_type.elem_type = tensor.data_type
            value.type.tensor_type.shape.SetInParent()
            for dim in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=dim)
            return value
        kind = self.type_of(name)
        if kind is None:
            if shape_of_output and name in self._outputs:
                return value  # ONNX Runtime infers the type of an untyped output
            raise InternalError(f"tensor {name!r} has no known element type and cannot cross a segment")
        value.type.CopyFrom(kind)
        return value

    def type_of(self, name: str) -> onnx.TypeProto | None:
        """Type to declare for a tensor: proven sizes only (see ``_inference``), None unless a typed tensor."""
        if (declared := self._inputs.get(name)) is not None:
            return declared.type if _elem_type(declared.type) else None
        if name not in self._graph.producers:
            return None
        types = self._types.get()
        proven = types.proven.get(name)
        if proven is not None and _elem_type(proven):
            return proven
        believed = types.believed.get(name)
        if believed is not None and (elem_type := _elem_type(believed)):
            bare = onnx.TypeProto()
            bare.tensor_type.elem_type = elem_type
            return bare
        return None


def _elem_type(kind: onnx.TypeProto) -> int:
    return int(kind.tensor_type.elem_type) if kind.WhichOneof("value") == "tensor_type" else 0
