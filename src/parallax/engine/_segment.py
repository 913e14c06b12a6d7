"""A segment of a plan, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


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
