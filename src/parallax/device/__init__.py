"""Where a model can run: what this machine lets the process use."""

from parallax.device._cores import available_cores

__all__ = ["available_cores"]
