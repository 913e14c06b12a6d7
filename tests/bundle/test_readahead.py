"""Reading ahead of a run and dropping behind it, on files that are really mapped."""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from parallax.bundle import _paging, _readahead
from parallax.bundle._paging import OwnMappings, PageRange, can_page, drop, fill, mapped_share, prefer_large, request
from parallax.bundle._readahead import SMALL_BYTES, ReadAhead, weight_budget
from parallax.machine import free_memory_bytes
from tests._threads import needs_stack_limits, no_new_threads

pytestmark = pytest.mark.skipif(not can_page(), reason="this system cannot be told what to keep in memory")

PAGE = _paging.PAGE_BYTES
SEGMENT_BYTES = 64 * PAGE


def content(index: int, size: int = SEGMENT_BYTES) -> bytes:
    return bytes([index + 1]) * size


def mapped(path: Path) -> mmap.mmap:
    """The whole file, mapped as ONNX Runtime maps weights: privately, and writable."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def write(path: Path, data: bytes) -> Path:
    # On the disk, because pages that were not written yet cannot be dropped.
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def file_of(folder: Path, index: int = 0, size: int = SEGMENT_BYTES) -> Path:
    return write(folder / f"weights {index}.data", content(index, size))


def own(path: Path) -> tuple[mmap.mmap, PageRange]:
    with OwnMappings([path]) as mappings:
        memory = mapped(path)
    found = mappings.page_ranges()
    assert found is not None
    (page_range,) = found
    return memory, page_range


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within seconds: threads take their time."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.005)
    return False


def skip_in_memory(folder: Path) -> None:
    """For tests that ask what is read from the disk: what lies in a file system without one is never dropped."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    kind = max((len(place), kind) for place, kind in mounts if folder.is_relative_to(place))[1]
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"{folder} is a {kind}, which keeps its files in memory")


# -- mappings and pages ---------------------------------------------------------------------------------------


def test_a_mapping_is_found_with_its_place_in_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    memory, page_range = own(path)
    assert (page_range.path, page_range.offset, page_range.length) == (str(path), 0, SEGMENT_BYTES)
    memory.close()


def test_what_was_mapped_before_is_not_ones_own(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with contextlib.closing(mapped(path)):
        with OwnMappings([path]) as nothing:
            pass
        assert nothing.page_ranges() == ()
        memory, page_range = own(path)
        assert page_range.length == SEGMENT_BYTES
        memory.close()


def test_what_is_mapped_twice_is_in_doubt(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with OwnMappings([path]) as mappings:
        one, other = mapped(path), mapped(path)
    assert mappings.page_ranges() is None
    one.close()
    other.close()


def test_what_was_written_to_is_never_touched(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with OwnMappings([path]) as mappings:
        memory = mapped(path)
        memory[PAGE] = 77
    assert mappings.page_ranges() is None
    memory.close()


def test_names_of_files_may_hold_any_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a\\ b\nö.data", content(0))
    memory, page_range = own(path)
    assert page_range.path == str(path)
    memory.close()


def test_pages_are_mapped_when_filled_and_gone_when_dropped_and_their_content_stays(tmp_path: Path) -> None:
    memory, page_range = own(file_of(tmp_path))
    assert mapped_share(page_range) == 0
    request(page_range)
    fill(page_range)
    assert mapped_share(page_range) == 1
    drop([page_range])
    assert mapped_share(page_range) == 0
    assert memory[:] == content(0)
    memory.close()


def test_what_is_dropped_leaves_the_cache_of_files_and_has_to_be_read_again(tmp_path: Path) -> None:
    skip_in_memory(tmp_path)
    memory, page_range = own(file_of(tmp_path))
    fill(page_range)
    drop([page_range])
    before = faults_of_disk()
    assert memory[10 * PAGE] == 1
    assert faults_of_disk() == before + 1
    memory.close()


def test_what_another_maps_stays_in_the_cache_of_files(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with contextlib.closing(mapped(path)) as other:
        assert other[:] == content(0)
        memory, page_range = own(path)
        fill(page_range)
        drop([page_range])
        before = faults_of_disk()
        assert memory[10 * PAGE] == 1
        assert faults_of_disk() == before
        memory.close()


def test_neighbours_that_are_dropped_together_leave_nothing_of_a_large_piece_behind(tmp_path: Path) -> None:
    skip_in_memory(tmp_path)
    memory, whole = own(file_of(tmp_path, size=4 * SMALL_BYTES))
    cut = SMALL_BYTES + 3 * PAGE
    first = replace(whole, length=cut)
    rest = replace(whole, address=whole.address + cut, offset=cut, length=whole.length - cut)
    drop([whole])
    prefer_large(whole)
    fill(first)
    fill(rest)
    assert mapped_share(first) == mapped_share(rest) == 1
    drop([rest, first])
    before = faults_of_disk()
    assert memory[cut - PAGE] == 1
    assert faults_of_disk() == before + 1
    memory.close()


def faults_of_disk() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def test_a_file_that_was_replaced_or_removed_is_no_obstacle(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    memory, page_range = own(path)
    path.unlink()
    fill(page_range)
    drop([page_range])
    assert memory[:] == content(0)
    memory.close()


# -- runs -----------------------------------------------------------------------------------------------------


class Chain:
    """Segments with a file of weights each, which a run reads whole or in part."""

    def __init__(self, folder: Path, count: int, *, size: int = SEGMENT_BYTES) -> None:
        self.size = size
        self.paths = [file_of(folder, index, size) for index in range(count)]
        with OwnMappings(self.paths) as mappings:
            self.memory = [mapped(path) for path in self.paths]
        found = mappings.page_ranges()
        assert found is not None
        by_path = {page_range.path: page_range for page_range in found}
        self.page_ranges = [(by_path[str(path)],) for path in self.paths]

    def prefetcher(self, budget_bytes: int) -> ReadAhead:
        return ReadAhead(self.page_ranges, budget=lambda held: budget_bytes, owners=self.memory)

    def run(self, prefetcher: ReadAhead, *, part: int = 1) -> None:
        for index, memory in enumerate(self.memory):
            prefetcher.will_start(index)
            assert memory[: self.size // part] == content(index, self.size // part)
            prefetcher.has_ended(index)

    def close(self) -> None:
        for memory in self.memory:
            memory.close()

    def present(self) -> int:
        return sum(mapped_share(page_range) > 0 for (page_range,) in self.page_ranges)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path, 8)
    yield made
    made.close()


def test_runs_read_the_right_weights_and_hold_no_more_than_there_is_room_for(chain: Chain) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    for _ in range(5):
        chain.run(prefetcher)
        assert chain.present() <= 4 + 1, "one may just be on its way out"
    prefetcher.close()


def test_without_room_every_segment_is_still_read_before_it_runs(chain: Chain) -> None:
    prefetcher = chain.prefetcher(0)
    for _ in range(3):
        chain.run(prefetcher)
    prefetcher.close()


def test_the_next_weights_come_while_a_segment_runs(chain: Chain) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    chain.run(prefetcher)
    prefetcher.will_start(0)
    assert soon(lambda: mapped_share(chain.page_ranges[1][0]) == 1)
    prefetcher.has_ended(0)
    prefetcher.close()


def test_a_kernel_without_large_pages_reads_ahead_as_well(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readahead, "prefer_large", lambda page_range: False)
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    for _ in range(3):
        chain.run(prefetcher)
    prefetcher.will_start(0)
    assert soon(lambda: mapped_share(chain.page_ranges[1][0]) == 1)
    prefetcher.has_ended(0)
    prefetcher.close()


def test_runs_from_many_threads_all_read_the_right_weights(chain: Chain) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                chain.run(prefetcher)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures
    prefetcher.close()


def test_what_the_first_run_does_not_touch_is_not_read_ahead(tmp_path: Path) -> None:
    chain = Chain(tmp_path, 3, size=4 * SMALL_BYTES)
    prefetcher = chain.prefetcher(2 * chain.size)
    for _ in range(2):
        chain.run(prefetcher, part=16)
    assert soon(lambda: not any(prefetcher._reader._page_ranges))
    chain.run(prefetcher, part=16)
    # Page by page: nothing around what is touched is read along.
    for (page_range,) in chain.page_ranges:
        assert 0 < mapped_share(page_range) <= 1 / 8
    prefetcher.close()
    chain.close()


def test_a_budget_that_shrinks_is_kept_from_the_next_run_on(chain: Chain) -> None:
    budget = 8 * SEGMENT_BYTES
    prefetcher = ReadAhead(chain.page_ranges, budget=lambda held: budget, owners=chain.memory)
    for _ in range(2):
        chain.run(prefetcher)
    assert soon(lambda: chain.present() == 8)
    budget = 4 * SEGMENT_BYTES
    chain.run(prefetcher)
    assert soon(lambda: chain.present() <= 4)
    prefetcher.close()


def test_the_thread_ends_with_the_advisor_and_only_then_are_the_mappings_let_go(chain: Chain) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    chain.run(prefetcher)
    thread = prefetcher._reader._thread
    reader = weakref.ref(prefetcher._reader)
    assert thread is not None
    assert thread.is_alive()
    del prefetcher
    gc.collect()
    assert not thread.is_alive()
    del thread
    gc.collect()
    assert reader() is None


def test_a_reader_that_fails_leaves_the_runs_alone(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    broken = [(replace(page_range, address=PAGE),) for (page_range,) in chain.page_ranges]  # where nothing is mapped
    prefetcher = ReadAhead(broken, budget=lambda held: 4 * SEGMENT_BYTES, owners=chain.memory)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            chain.run(prefetcher)
    assert "not read ahead any more" in caplog.text
    prefetcher.close()


@needs_stack_limits
def test_where_no_thread_can_be_started_runs_wait_for_none(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    prefetcher = chain.prefetcher(2 * SEGMENT_BYTES)
    with no_new_threads():
        chain.run(prefetcher)
        chain.run(prefetcher)
    assert "not read ahead" in caplog.text
    prefetcher.close()


def test_after_closing_nothing_waits(chain: Chain) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    chain.run(prefetcher)
    prefetcher.close()
    chain.run(prefetcher)


def test_a_forked_child_waits_for_no_thread_of_its_parent(chain: Chain) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    chain.run(prefetcher)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
        child = os.fork()
    if not child:
        try:
            chain.run(prefetcher)
            prefetcher.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert soon(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    chain.run(prefetcher)
    prefetcher.close()


def test_who_stops_waiting_for_weights_does_not_keep_them(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    prefetcher = chain.prefetcher(4 * SEGMENT_BYTES)
    chain.run(prefetcher)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prefetcher._reader._window, "is_present", lambda segment: interrupt())
        with pytest.raises(KeyboardInterrupt):
            prefetcher.will_start(3)
    for _ in range(3):
        chain.run(prefetcher)
    assert not any(prefetcher._reader._window._users)
    prefetcher.close()


def test_the_budget_is_less_than_the_memory_for_something_has_to_run(chain: Chain) -> None:
    for memory in chain.memory:
        assert memory[0]
    free = free_memory_bytes()
    assert 0 < weight_budget(0) < free
    assert weight_budget(1 << 62) <= free
