"""A segment of a plan, compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parallax._record import dataclass
from parallax.engine._failures import segment_failure


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledSegment:
    """A segment ready to run: the wrapped runtime's session and the names it is called with."""

    name: str
    node_names: tuple[str, ...]
    width: int
    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, np.ndarray[Any, Any]]
    """Memory the session reads its weights from; held here because the session does not."""

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None) -> Sequence[Any]:
        """Run it alone.

        Raises: SegmentError (or RunCancelled) that names it and its nodes.
        """
        try:
            made: Sequence[Any] = self.session.run_with_ort_values(feeds, outputs, run_options)
        except Exception as error:
            raise segment_failure(error, segment=self.name, nodes=self.node_names) from error
        return made
