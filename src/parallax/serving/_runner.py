"""What a batcher runs requests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from parallax.serving.policy import Setting

Arrays = Mapping[str, NDArray[Any]]
"""What one request feeds, by name of the input."""

Answer = list[Any]
"""What one request is answered: the model's outputs, in their order."""


class BatchRunner(Protocol):
    """Runs requests of one model, alone and together. Called from several threads at once."""

    @property
    def settings(self) -> Sequence[Setting]:
        """The ways in which it can run batches."""
        ...

    @property
    def elements(self) -> int:
        """How many a request fed with which the settings were measured; 0 where they were not."""
        ...

    @property
    def reason(self) -> str:
        """Why requests are run singly; "" where they may be run together."""
        ...

    def run_one(self, setting: int, arrays: Arrays) -> Answer:
        """The answer to one request. Raises: what the model's run raises."""
        ...

    def run_together(self, setting: int, requests: Sequence[Arrays]) -> list[Answer]:
        """The answers to several requests of equal shapes, in their order. Raises: what the model's run raises."""
        ...

    def check_open(self) -> None:
        """Raises: ParallaxError once no request can run any more, since what runs them was closed."""
        ...

    def close(self) -> None:
        """Drop what was opened for it. Called once, when nothing runs any more."""
        ...
