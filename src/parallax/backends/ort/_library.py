"""ONNX Runtime's library, loaded by the system while Python imports other things.

To load it, the system maps some thirty megabytes and relocates them, for which Python keeps its lock: nothing else
happens meanwhile. Another thread can ask the system for the library first and let go of the lock; ``import
onnxruntime`` then finds it there, and all that was imported meanwhile was free.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder

_EXTENSION = "onnxruntime_pybind11_state"


def load_library_ahead() -> bool:
    """Begin to load the library in another thread, if it is not loaded and a core is left for that.

    ``import onnxruntime`` waits for the end of it, and says what is wrong where it failed. The system loads one library
    at a time, so the import of any extension module and the lookup of a symbol wait as well. Linux only.

    Returns: whether it was begun.
    """
    if sys.platform != "linux" or "onnxruntime" in sys.modules or len(os.sched_getaffinity(0)) < 2:
        return False
    path = _library_path()
    if path is None:
        return False
    load = ctypes.CDLL(None).dlopen  # called without the lock, as all of ctypes' functions are
    load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    thread = threading.Thread(target=load, args=(os.fsencode(path), sys.getdlopenflags()), name="parallax-library")
    try:
        thread.start()
    except RuntimeError:  # no more threads may be started: the import does it alone
        return False
    return True


def _library_path() -> str | None:
    """Where Python will find it; None where that is not in a plain folder."""
    spec = PathFinder.find_spec("onnxruntime")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for suffix in EXTENSION_SUFFIXES:
            path = os.path.join(folder, "capi", _EXTENSION + suffix)
            if os.path.isfile(path):
                return path
    return None
