"""What a session takes of this package, loaded while the system loads ONNX Runtime's library.

`_session` imports this module before anything else. The order matters, and a test keeps it: the system loads one
library at a time, so what else has one comes first; and what is loaded meanwhile must not import ``onnxruntime``, which
waits for its library.
"""

from __future__ import annotations

from parallax.backends.ort import load_library_ahead


def _load() -> None:
    import ctypes  # noqa: F401
    import json  # noqa: F401
    import mmap  # noqa: F401

    import numpy  # noqa: F401

    from parallax.machine import available_cores  # noqa: F401  # looks up a symbol

    load_library_ahead()

    from parallax.bundle import describe_mismatch, use_bundle  # noqa: F401
    from parallax.engine import EventStream  # noqa: F401
    from parallax.model import hold_files  # noqa: F401
    from parallax.session import _bundles, _durations, _fork, _opening  # noqa: F401


_load()
