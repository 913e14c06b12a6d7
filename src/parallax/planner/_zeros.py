"""How many zeros weights hold, found when it is asked for: reading all weights of a model takes a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from parallax.graph import constant_value
from parallax.model import Model
from parallax.sparsity import zero_share


class WeightZeros(Mapping[str, float]):
    """Share of exact zeros per initializer of a model, by name; those whose values are not numbers are left out."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[str, float] = {}

    def __getitem__(self, name: str) -> float:
        """The share, 0 to 1. Reads the weight the first time. Raises: KeyError where there is none."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._share(name)
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.graph.initializers)

    def __len__(self) -> int:
        return len(self._model.graph.initializers)

    def _share(self, name: str) -> float:
        values = constant_value(self._model.graph, name)
        share = zero_share(self._model.weight(name) if values is None else values)
        if share is None:
            raise KeyError(name)
        return share
