"""Freed memory is handed back where the C library can be asked to."""

from __future__ import annotations

import platform
import sys

from parallax.machine import trim_heap


def test_the_heap_is_trimmed_on_glibc_and_left_alone_elsewhere() -> None:
    assert trim_heap() is (sys.platform == "linux" and platform.libc_ver()[0] == "glibc")
