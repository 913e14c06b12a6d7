"""Types of what sessions are given and return, for annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Feeds = Mapping[str, Any]
"""Input name -> numpy array, nested list, or ``OrtValue``."""

OutputNames = Sequence[str] | None
"""Which outputs, in which order; None or none at all means all."""

Provider = str | Sequence[Any]
"""An entry of ``providers=``: a name, or a tuple of a name and its options. A list of both is inferred by type checkers
to hold sequences, which this must take."""

Shapes = Mapping[str, Sequence[int]]
"""Input name -> concrete sizes."""

MemorySize = int | str | float
"""Bytes, a size ("256MiB"), or a share of what is free (0.5, "50%")."""

RunCallback = Callable[[Any, Any, str], object]
"""Of ``run_async``: called with (results, user data, error text)."""


class ModelDescription(Protocol):
    """What ``get_modelmeta`` tells; ONNX Runtime calls its class ``ModelMetadata``."""

    @property
    def producer_name(self) -> str:
        """What wrote the model."""
        ...

    @property
    def graph_name(self) -> str:
        """Of the model's graph."""
        ...

    @property
    def graph_description(self) -> str:
        """Of the model's graph."""
        ...

    @property
    def domain(self) -> str:
        """The model's name space."""
        ...

    @property
    def description(self) -> str:
        """Of the model."""
        ...

    @property
    def version(self) -> int:
        """Of the model."""
        ...

    @property
    def custom_metadata_map(self) -> dict[str, str]:
        """What its author added."""
        ...
