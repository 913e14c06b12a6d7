"""How many cores may be used: affinity and every kind of cgroup quota."""

from __future__ import annotations

import os

import pytest

from parallax.machine import _cores, available_cores, move_to_first_core


@pytest.fixture
def many_cores(monkeypatch):
    """A machine with 16 cores allowed by affinity, whatever this one has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def lay_out(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_has_at_least_one_core_and_at_most_what_it_has():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_affinity_counts_where_there_is_no_cgroup(tmp_path, many_cores):
    assert available_cores(root=tmp_path) == 16


@pytest.mark.parametrize(
    ("text", "cores"),
    [("400000 100000\n", 4), ("150000 100000\n", 1), ("5000 100000\n", 1), ("max 100000\n", 16), ("rubbish", 16)],
)
def test_the_quota_of_cgroup_2_binds_rounded_down_to_at_least_one(tmp_path, many_cores, text, cores):
    root = lay_out(tmp_path, {"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": text})
    assert available_cores(root=root) == cores


def test_a_parents_quota_binds_its_children(tmp_path, many_cores):
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/app\n",
            "sys/fs/cgroup/slice/cpu.max": "200000 100000",
            "sys/fs/cgroup/slice/app/cpu.max": "800000 100000",
        },
    )
    assert available_cores(root=root) == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_the_quota_of_cgroup_1_binds(tmp_path, many_cores, mount):
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/app\n0::/\n",
            f"sys/fs/cgroup/{mount}/app/cpu.cfs_quota_us": "300000",
            f"sys/fs/cgroup/{mount}/app/cpu.cfs_period_us": "100000",
        },
    )
    assert available_cores(root=root) == 3


def test_no_quota_of_cgroup_1_is_minus_one(tmp_path, many_cores):
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert available_cores(root=root) == 16


def test_in_a_container_the_groups_own_root_is_read(tmp_path, many_cores):
    root = lay_out(
        tmp_path,
        {"proc/self/cgroup": "0::/../../host/path\n", "sys/fs/cgroup/cpu.max": "200000 100000"},
    )
    assert available_cores(root=root) == 2


def test_a_quota_above_the_affinity_changes_nothing(tmp_path, many_cores):
    root = lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000"})
    assert available_cores(root=root) == 16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_a_narrower_affinity_is_seen():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity to set")
def test_a_thread_that_moves_to_the_first_core_may_go_where_it_could_before():
    allowed = os.sched_getaffinity(0)
    assert move_to_first_core() is (0 in allowed and len(allowed) > 1)
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("allowed", [{0}, {2, 3}])
def test_a_thread_stays_where_it_has_no_choice_or_not_that_one(monkeypatch, allowed):
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: asked.append(arguments), raising=False)
    assert not move_to_first_core()
    assert asked == []


def test_a_sandbox_that_forbids_it_is_no_failure(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    monkeypatch.setattr(_cores, "current_core", lambda: 1)
    assert not move_to_first_core()


def test_a_thread_that_is_on_the_first_core_asks_the_system_for_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: asked.append(arguments), raising=False)
    for core, calls in ((0, 0), (1, 2)):
        monkeypatch.setattr(_cores, "current_core", lambda core=core: core)
        assert move_to_first_core()
        assert len(asked) == calls
