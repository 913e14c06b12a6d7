"""How much memory may be taken: the machine's, and every kind of control group's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from parallax.machine import free_memory_bytes, memory_limit_bytes
from parallax.machine._memory import _meminfo

MIB = 1 << 20
V1 = "sys/fs/cgroup/memory"


@pytest.fixture
def big_machine(monkeypatch):
    """A machine with 64 GiB, 32 of them available, whatever this one has."""
    figures = SimpleNamespace(total=64 << 30, available=32 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: figures)


def lay_out(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


def test_this_machine_has_memory_and_no_more_is_free_than_there_is():
    assert 0 < free_memory_bytes() <= memory_limit_bytes() <= psutil.virtual_memory().total


def test_without_control_groups_the_machines_figures_count(tmp_path, big_machine):
    assert free_memory_bytes(root=tmp_path) == 32 << 30
    assert memory_limit_bytes(root=tmp_path) == 64 << 30


def test_on_linux_the_machines_figures_are_read_as_psutil_reads_them(tmp_path, monkeypatch):
    lay_out(
        tmp_path,
        {"proc/meminfo": "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\nHugePages_Total: 0\n"},
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: pytest.fail("asked"))
    assert (free_memory_bytes(root=tmp_path), memory_limit_bytes(root=tmp_path)) == (1 << 20, 2 << 20)


@pytest.mark.parametrize(
    "text",
    [
        *("", "rubbish", "MemTotal: many kB\nMemAvailable: 1 kB\n", "MemTotal:\nMemAvailable:\n", "MemTotal: 1 kB\n"),
        *("MemTotal: 9 kB\nMemAvailable: 0 kB\n", "MemTotal: 9 kB\nMemAvailable: 10 kB\n"),
    ],
)
def test_a_machine_that_tells_nothing_or_what_cannot_be_is_left_to_psutil(tmp_path, big_machine, text):
    lay_out(tmp_path, {"proc/meminfo": text})
    assert (free_memory_bytes(root=tmp_path), memory_limit_bytes(root=tmp_path)) == (32 << 30, 64 << 30)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/meminfo")
def test_what_linux_tells_is_what_psutil_says():
    told = _meminfo(Path("/"))
    assert told is not None
    assert told["total"] == psutil.virtual_memory().total
    assert abs(told["available"] - psutil.virtual_memory().available) < 256 * MIB


def test_cgroup_2_leaves_its_limit_less_its_usage_without_file_pages(tmp_path, big_machine):
    group = "sys/fs/cgroup/app"
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/app\n",
            f"{group}/memory.max": 300 * MIB,
            f"{group}/memory.high": "max\n",
            f"{group}/memory.current": 200 * MIB,
            f"{group}/memory.stat": f"anon 1\ninactive_file {30 * MIB}\nactive_file {20 * MIB}\n",
        },
    )
    assert memory_limit_bytes(root=root) == 300 * MIB
    assert free_memory_bytes(root=root) == 150 * MIB


def test_cgroup_2_throttles_above_high_so_it_binds(tmp_path, big_machine):
    group = "sys/fs/cgroup"
    files = {f"{group}/memory.max": 300 * MIB, f"{group}/memory.high": 100 * MIB, f"{group}/memory.current": 60 * MIB}
    root = lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", **files})
    assert (memory_limit_bytes(root=root), free_memory_bytes(root=root)) == (100 * MIB, 40 * MIB)


@pytest.mark.parametrize("text", ["max\n", "", "rubbish"])
def test_no_limit_of_cgroup_2_is_no_limit(tmp_path, big_machine, text):
    root = lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": text})
    assert free_memory_bytes(root=root) == 32 << 30


def test_a_parents_limit_binds_and_siblings_use_it_up(tmp_path, big_machine):
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/app\n",
            "sys/fs/cgroup/slice/memory.max": 500 * MIB,
            "sys/fs/cgroup/slice/memory.current": 450 * MIB,
            "sys/fs/cgroup/slice/app/memory.max": 400 * MIB,
            "sys/fs/cgroup/slice/app/memory.current": 10 * MIB,
        },
    )
    assert memory_limit_bytes(root=root) == 400 * MIB
    assert free_memory_bytes(root=root) == 50 * MIB


def test_cgroup_1_counts_its_hierarchy_and_swap(tmp_path, big_machine):
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/app\n1:cpu:/other\n0::/\n",
            f"{V1}/memory.limit_in_bytes": 9223372036854771712,
            f"{V1}/app/memory.limit_in_bytes": 300 * MIB,
            f"{V1}/app/memory.usage_in_bytes": 100 * MIB,
            f"{V1}/app/memory.memsw.limit_in_bytes": 300 * MIB,
            f"{V1}/app/memory.memsw.usage_in_bytes": 180 * MIB,
            f"{V1}/app/memory.stat": f"inactive_file 5\ntotal_inactive_file {8 * MIB}\ntotal_active_file {12 * MIB}\n",
        },
    )
    assert memory_limit_bytes(root=root) == 300 * MIB
    assert free_memory_bytes(root=root) == 140 * MIB


def test_no_limit_of_cgroup_1_is_a_huge_number(tmp_path, big_machine):
    root = lay_out(tmp_path, {"proc/self/cgroup": "4:memory:/\n", f"{V1}/memory.limit_in_bytes": 9223372036854771712})
    assert memory_limit_bytes(root=root) == 64 << 30


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path, big_machine):
    files = {f"{V1}/memory.limit_in_bytes": 100 * MIB, f"{V1}/memory.usage_in_bytes": 120 * MIB}
    root = lay_out(tmp_path, {"proc/self/cgroup": "4:memory:/\n", **files})
    assert free_memory_bytes(root=root) == 0


@pytest.fixture
def real_group():
    """A control group of v1 with a limit of 200 MiB, made below this process's own."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        (own,) = [path for _, controllers, path in (line.split(":", 2) for line in lines) if controllers == "memory"]
        base = Path("/sys/fs/cgroup/memory") / own.strip("/")
        group = (base if base.is_dir() else Path("/sys/fs/cgroup/memory")) / f"parallax-test-{os.getpid()}"
        group.mkdir()
    except (OSError, ValueError):
        pytest.skip("no memory control group (v1) can be made here")
    try:
        (group / "memory.limit_in_bytes").write_text(str(200 * MIB))
        yield group
    finally:
        group.rmdir()


def test_a_real_control_group_is_seen_and_what_is_taken_is_missed(real_group):
    script = (
        "import os, sys, parallax.machine as d\n"
        f"open({str(real_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "before = d.free_memory_bytes()\n"
        f"held = bytearray(b'x') * {64 * MIB}\n"
        "print(d.memory_limit_bytes(), before, d.free_memory_bytes())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    limit, before, after = map(int, result.stdout.split())
    assert limit == 200 * MIB
    assert after < before <= limit
    assert 60 * MIB <= before - after <= 80 * MIB
