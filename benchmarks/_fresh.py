"""One session in a process of its own: what is asked of it, and the process itself.

Every variant imports the same libraries, so that what they take is the same in all. The process says "ready" when
it has, and begins when it is told to; then it opens, runs once, runs on, and says what it saw. Where memory is asked
for, the parent reads the child's figures from /proc meanwhile, since the runtime holds Python's lock while it opens.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import onnxruntime
from _environment import as_installed

import parallax

CPU = ["CPUExecutionProvider"]

DEFAULT = "ONNX Runtime"
LEAN = "ONNX Runtime, lean"
ORT_FORMAT = "ONNX Runtime, ORT format mapped"
MAPPED = "ONNX Runtime, packed weights mapped"
OURS = "Parallax"
VARIANTS = (DEFAULT, LEAN, ORT_FORMAT, MAPPED, OURS)

SETTINGS = {
    DEFAULT: "no options",
    LEAN: (
        "no arena, no memory pattern, session.use_device_allocator_for_initializers, session.disable_prepacking "
        "(other kernels, so other last digits and slower runs)"
    ),
    ORT_FORMAT: (
        "the lean options on the optimised model in ORT format, with session.use_memory_mapped_ort_model and "
        "session.use_ort_model_bytes_for_initializers"
    ),
    MAPPED: (
        "the optimised model saved with session.save_external_prepacked_constant_initializers, opened with "
        "optimisation, arena and memory pattern off: what a bundle builds upon"
    ),
    OURS: 'parallax.InferenceSession("model.plx")',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a fresh process is to do."""

    variant: str
    path: str
    """Of the variant's own file or folder, see `prepare`."""
    feeds: str
    """An .npz with the inputs."""
    least_runs: int = 5
    least_seconds: float = 0.15
    """Steady runs: at least so many, and at least for so long."""
    outputs: str | None = None
    """Where to write the outputs, as .npz."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of ours."""
    callers: int = 1
    """Threads that run at the same time; then a steady run's time is the whole time divided by all runs."""
    pause: bool = False
    """Say "opened", and run only when told to."""
    hold: bool = False
    """Stay, idle, until told to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a fresh process saw. Times in ns, memory in bytes above what the process held before it opened."""

    load_ns: int
    first_ns: int
    steady_ns: int
    digest: str
    """Of the outputs' bytes."""
    opened_bytes: int = 0
    """Private memory after opening."""
    peak_bytes: int = 0
    """The most seen from the first moment to the last run."""
    after_bytes: int = 0
    """After the last run."""
    steady_samples_ns: Sequence[int] = ()
    """Single runs, of which ``steady_ns`` is the median; none where several callers ran at the same time."""
    usage: Mapping[str, int | None] = field(default_factory=dict)
    """What ours says of its memory, see `parallax.session.MemoryUsage`."""

    @property
    def overhead_ns(self) -> int:
        """What starting costs beyond one inference."""
        return self.load_ns + self.first_ns - self.steady_ns


class ChildError(RuntimeError):
    """A fresh process that did not end well; its message says how."""


# -- the parent's side ------------------------------------------------------------------------------------------


def prepare(model: Path, folder: Path, **compile_options: Any) -> dict[str, str]:
    """Make what each variant opens, from the model: path by variant. Reads all of it once: the page cache is warm."""
    paths = {DEFAULT: str(model), LEAN: str(model)}
    ort, mapped = folder / "model.ort", folder / "mapped.onnx"
    options = _quiet()
    options.optimized_model_filepath = str(ort)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(model), options, providers=CPU)
    paths[ORT_FORMAT] = str(ort)
    options = _quiet()
    options.optimized_model_filepath = str(mapped)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "mapped.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    onnxruntime.InferenceSession(str(model), options, providers=CPU)
    paths[MAPPED] = str(mapped)
    paths[OURS] = str(parallax.compile(model, folder / "model.plx", **compile_options))
    for file in (model, *folder.rglob("*")):
        if file.is_file():
            with open(file, "rb") as opened:
                while opened.read(8 << 20):
                    pass
    return paths


def save_feeds(feeds: Mapping[str, Any], folder: Path) -> str:
    path = folder / "feeds.npz"
    np.savez(path, **feeds)
    return str(path)


class Child:
    """A fresh process that has imported its libraries and waits."""

    def __init__(self, order: Order, *, prefix: Sequence[str] = ()) -> None:
        """``prefix``: a command that runs the rest of its arguments, for limits."""
        command = [*prefix, sys.executable, __file__, json.dumps(asdict(order))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=as_installed(),
        )
        self._expect("ready")

    def start(self) -> None:
        """Let it open, and run unless it pauses."""
        self._tell("go")

    def await_opened(self) -> None:
        """Wait until one that pauses has opened. Raises: ChildError."""
        self._expect("opened")

    def outcome(self) -> Outcome:
        """Wait for what it saw, and for its end, unless it holds. Raises: ChildError."""
        return Outcome(**json.loads(self._line()))

    def end(self) -> None:
        """Let one that holds end; wait for it."""
        with suppress(OSError):
            self._tell("end")
        self.process.communicate()

    def private_bytes(self) -> int:
        """Anonymous resident memory now; 0 once it has ended."""
        return _anonymous_bytes(self.process.pid)

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _expect(self, word: str) -> None:
        line = self._line()
        if line != word:
            raise ChildError(f"said {line[:100]!r} instead of {word!r}")

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            _, errors = self.process.communicate()
            code = self.process.returncode
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            last = errors.strip().splitlines()[-1:] or [""]
            raise ChildError(f"{how}{': ' + last[0][:200] if code > 0 else ''}")
        return line


def run_fresh(order: Order) -> Outcome:
    """Times of one fresh process. Raises: ChildError if it fails or crashes."""
    child = Child(order)
    child.start()
    outcome = child.outcome()
    child.end()
    return outcome


def run_watched(order: Order, *, interval_s: float = 0.001) -> Outcome:
    """Likewise, with its private memory, looked at every millisecond or so: a spike in between is missed.

    Of one that pauses, the peak is that of its runs, above what it held once it had opened.
    """
    child = Child(order)
    if order.pause:
        child.start()
        child.await_opened()
    before = child.private_bytes()
    seen = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(child.private_bytes())
            time.sleep(interval_s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        child.start()
        outcome = child.outcome()
    finally:
        done.set()
        watcher.join()
    child.end()
    return replace(outcome, peak_bytes=max(max(seen) - before, 0 if order.pause else outcome.after_bytes))


def proportional_bytes(pid: int, suffix: str = "") -> tuple[int, int]:
    """(resident, proportional) bytes of a process: of the mappings of files with that suffix, or of all."""
    resident = proportional = 0
    wanted = not suffix
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            wanted = not suffix or line.endswith(suffix)
        elif wanted and words[0] == "Rss:":
            resident += int(words[1]) * 1024
        elif wanted and words[0] == "Pss:":
            proportional += int(words[1]) * 1024
    return resident, proportional


def _anonymous_bytes(pid: int | str) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0  # ended, or no /proc: memory.py needs Linux and says so
    return 0


# -- the child's side -------------------------------------------------------------------------------------------


def open_variant(variant: str, path: str, keywords: Mapping[str, Any]) -> Any:
    """A session on ``path``, as a user of that variant opens it."""
    if variant == OURS:
        return parallax.InferenceSession(path, **keywords)
    options = onnxruntime.SessionOptions()
    if variant != DEFAULT:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    if variant in (LEAN, ORT_FORMAT):
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        options.add_session_config_entry("session.disable_prepacking", "1")
    if variant in (ORT_FORMAT, MAPPED):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if variant == ORT_FORMAT:
        options.add_session_config_entry("session.load_model_format", "ORT")
        options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
        options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
    return onnxruntime.InferenceSession(path, options, providers=CPU)


def run_steadily(session: Any, feeds: Mapping[str, Any], order: Order) -> tuple[Any, int, list[int]]:
    """The last outputs, the time of a run in ns, and that of each run.

    Outputs are dropped before the next run: they are the caller's.
    """
    if order.callers > 1:
        return *run_together(session, feeds, order), []
    steady: list[int] = []
    outputs: Any = None
    while len(steady) < order.least_runs or sum(steady) < order.least_seconds * 1e9:
        outputs = None
        begin = time.perf_counter_ns()
        outputs = session.run(None, feeds)
        steady.append(time.perf_counter_ns() - begin)
    # The first of them still finds the caches as the start left them.
    return outputs, round(statistics.median(steady[1:])), steady[1:]


def run_together(session: Any, feeds: Mapping[str, Any], order: Order) -> tuple[Any, int]:
    """Likewise by several threads; the outputs of all must be the same."""

    def call(_: int) -> set[int]:
        return {checksum(session.run(None, feeds)) for _ in range(order.least_runs)}

    begin = time.perf_counter_ns()
    with ThreadPoolExecutor(order.callers) as pool:
        seen = set().union(*pool.map(call, range(order.callers)))
    elapsed = time.perf_counter_ns() - begin
    outputs = session.run(None, feeds)
    if seen != {checksum(outputs)}:
        raise ValueError("the same run gave other outputs")
    return outputs, elapsed // (order.callers * order.least_runs)


def checksum(outputs: Sequence[Any]) -> int:
    """Quick, and copies nothing."""
    found = 0
    for output in outputs:
        found = zlib.crc32(_bytes_of(output), found)
    return found


def digest_of(outputs: Sequence[Any]) -> str:
    """Of the outputs' bytes, hex; copies nothing either."""
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(_bytes_of(output))
    return digest.hexdigest()


def _bytes_of(output: Any) -> Any:
    return np.ascontiguousarray(output).reshape(-1).view(np.uint8)


OPENED_BY = (
    *("admission", "backends", "backends.ort", "bundle", "engine", "events", "graph", "machine", "memory"),
    *("opening", "options", "schedule", "session"),
)
"""Packages of Parallax's that sessions on bundles use."""


def load_what_is_lazy() -> None:
    """Load what Parallax loads when sessions are opened: imports are in no variant's clock.

    From the start of a process to its answer, with them, is measured beside this: see ``_processes.py``.
    """
    for package in OPENED_BY:
        found = import_module(f"parallax.{package}")
        for module in iter_modules(found.__path__, f"{found.__name__}."):
            if not module.ispkg:
                import_module(module.name)


def main(order: Order) -> None:
    load_what_is_lazy()
    with np.load(order.feeds) as stored:
        feeds = {name: stored[name] for name in stored.files}
    print("ready", flush=True)
    sys.stdin.readline()
    before = _anonymous_bytes("self")
    begin = time.perf_counter_ns()
    session = open_variant(order.variant, order.path, order.options)
    opened = time.perf_counter_ns()
    opened_bytes = _anonymous_bytes("self")
    if order.pause:
        print("opened", flush=True)
        sys.stdin.readline()
    first_begin = time.perf_counter_ns()
    session.run(None, feeds)
    first = time.perf_counter_ns()
    outputs, steady_ns, samples = run_steadily(session, feeds, order)
    after_bytes = _anonymous_bytes("self")
    digest = digest_of(outputs)
    if order.outputs is not None:
        np.savez(order.outputs, **{str(number): output for number, output in enumerate(outputs)})
    outcome = Outcome(
        load_ns=opened - begin,
        first_ns=first - first_begin,
        steady_ns=steady_ns,
        digest=digest,
        opened_bytes=opened_bytes - before,
        after_bytes=after_bytes - before,
        steady_samples_ns=samples,
        usage=session.memory().to_json() if order.variant == OURS and order.pause else {},
    )
    print(json.dumps(asdict(outcome)), flush=True)
    if order.hold:
        sys.stdin.readline()
    # Tearing down is not measured, and takes seconds for some.
    sys.stdout.flush()
    os._exit(0)


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the result suits this machine only
    return options


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
