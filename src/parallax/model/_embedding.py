"""A model as it came, with its external data inside it: the form that needs no file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ModelError, UnsupportedModelError
from parallax.model._files import HeldFiles
from parallax.model._nested import restore, tensors_inside
from parallax.model._source import Source
from parallax.model._weights import ExternalFiles


def embed(source: Source, files: HeldFiles) -> bytes:
    """The serialised model, in which every tensor holds the bytes that ``files`` have for it.

    Raises: UnsupportedModelError if that is over 2 GiB, which has no serialised form.
    """
    model = onnx.ModelProto()
    model.ParseFromString(source.content())
    external = ExternalFiles(source.folders, files.external)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            # What nothing reads may have no data, and the runtime does not look for any.
            with contextlib.suppress(ModelError):
                restore(tensor, external.weight(tensor))
    try:
        return bytes(model.SerializeToString())
    except EncodeError as exc:
        raise UnsupportedModelError(
            "the model's files are no longer where it was opened, and with weights it is over 2 GiB, which has no "
            "serialised form",
            where=source.where,
            fix="leave a model's files in place while it is used",
        ) from exc


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from tensors_inside([*model.graph.node, *(node for made in model.functions for node in made.node)])
