"""How many cores a machine has: hardware threads of one core counted once."""

from __future__ import annotations

from pathlib import Path

import psutil

from parallax.machine import physical_cores


def machine(root: Path, siblings: list[str | None]) -> Path:
    """A tree of ``/sys`` of processors with these siblings; None: it is offline."""
    for number, text in enumerate(siblings):
        folder = root / f"sys/devices/system/cpu/cpu{number}"
        folder.mkdir(parents=True)
        if text is not None:
            (folder / "topology").mkdir()
            (folder / "topology/thread_siblings_list").write_text(f"{text}\n")
    (root / "sys/devices/system/cpu/cpufreq").mkdir(exist_ok=True, parents=True)
    return root


def test_threads_of_one_core_are_one(tmp_path: Path) -> None:
    assert physical_cores(root=machine(tmp_path / "wide", ["0-1", "0-1", "2-3", "2-3"])) == 2
    assert physical_cores(root=machine(tmp_path / "flat", ["0", "1", "2"])) == 3
    assert physical_cores(root=machine(tmp_path / "offline", ["0,2", None, "0,2", "3"])) == 2


def test_where_the_system_does_not_tell_it_is_asked_otherwise(tmp_path: Path) -> None:
    assert physical_cores(root=tmp_path) == (psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)


def test_this_machine_has_some() -> None:
    assert 1 <= physical_cores() <= (psutil.cpu_count() or 1)
