from __future__ import annotations

import subprocess
import sys
import time

import psutil

from parallax.device import LoadMeter

_BURN = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"


def test_what_another_process_uses_is_seen() -> None:
    meter = LoadMeter()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert meter.others_cores() > 0.05


def test_what_this_process_uses_is_not_taken_for_others() -> None:
    # Others may be busy too, so what is compared is the sum: cores in use cannot exceed those there are.
    meter = LoadMeter()
    begin, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < 0.3:
        pass
    wall = time.perf_counter() - begin
    assert 0 <= meter.others_cores() <= psutil.cpu_count() - 0.3 / wall + 0.25
