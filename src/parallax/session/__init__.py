"""The front door: ``InferenceSession``, a drop-in for ONNX Runtime's, and ``compile``."""

from parallax.session._budgeting import whole_need
from parallax.session._bundles import cache_folder, prune_cache
from parallax.session._candidates import PlanningContext, host_machine
from parallax.session._compile import compile
from parallax.session._estimate import RunNeed
from parallax.session._lifting import LIFT_NS
from parallax.session._memory import Budget
from parallax.session._options import Progress
from parallax.session._planning import DEFAULT_MIN_GAIN
from parallax.session._providers import make_device
from parallax.session._session import InferenceSession
from parallax.session._usage import MemoryUsage

__all__ = [
    "DEFAULT_MIN_GAIN",
    "LIFT_NS",
    "Budget",
    "InferenceSession",
    "MemoryUsage",
    "PlanningContext",
    "Progress",
    "RunNeed",
    "cache_folder",
    "compile",
    "host_machine",
    "make_device",
    "prune_cache",
    "whole_need",
]
