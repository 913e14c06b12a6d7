"""Types for annotations: of what sessions and ``compile`` are given, and of what they return.

::

    def open_model(path: str, budget: parallax.types.MemorySize | None = None) -> parallax.InferenceSession: ...
"""

from __future__ import annotations

from parallax.backends import FaultPolicy, TensorArgument
from parallax.backends.ort._types import (
    Feeds,
    MemorySize,
    ModelDescription,
    OutputNames,
    Provider,
    RunCallback,
    Shapes,
)
from parallax.bundle import Verify
from parallax.engine import Observer, SegmentSpan, TraceSink
from parallax.events import Event
from parallax.model import ModelSource
from parallax.options._keywords import Progress
from parallax.options._options import Objective, Padding, Split
from parallax.schedule import Candidate, Provenance, Segment
from parallax.schedule.placement import Placer

__all__ = [
    "Candidate",
    "Event",
    "FaultPolicy",
    "Feeds",
    "MemorySize",
    "ModelDescription",
    "ModelSource",
    "Objective",
    "Observer",
    "OutputNames",
    "Padding",
    "Placer",
    "Progress",
    "Provenance",
    "Provider",
    "RunCallback",
    "Segment",
    "SegmentSpan",
    "Shapes",
    "Split",
    "TensorArgument",
    "TraceSink",
    "Verify",
]
