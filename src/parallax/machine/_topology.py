"""How many cores the processors of this machine have, whatever a process may use of them."""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.lru_cache(maxsize=8)
def physical_cores(*, root: Path = Path("/")) -> int:
    """Cores of this machine, hardware threads of one core counted once; at least 1.

    So many threads ONNX Runtime's default pool has, the caller's own among them: it heeds neither affinity nor quota.

    Args:
        root: where ``sys`` is mounted.
    """
    processors = root / "sys/devices/system/cpu"
    groups = set()
    for entry in processors.glob("cpu[0-9]*"):
        try:
            groups.add((entry / "topology/thread_siblings_list").read_text().strip())
        except OSError:
            continue  # it is offline, or this system does not tell
    if groups:
        return len(groups)
    import psutil  # elsewhere than on Linux

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
