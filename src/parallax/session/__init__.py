"""The front door: ``InferenceSession``, a drop-in for ONNX Runtime's."""

from parallax.session._candidates import PlanningContext
from parallax.session._options import Progress
from parallax.session._session import InferenceSession

__all__ = ["InferenceSession", "PlanningContext", "Progress"]
