"""Makes the table of operators in processes of its own, since some models of one operator end the process that runs
them: in ONNX Runtime the trial is none then, in the other library it has failed."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import queue
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime

from parallax.backends import Backend, open_backend
from parallax.backends.openvino import OpenVinoBackend
from parallax.backends.openvino._table import FORMAT_VERSION
from tests.conformance._operator_seeds import all_seeds
from tests.conformance._operator_table import Expected, Judged, choose_trials, fit_rows, judge_trials, trial_key
from tests.conformance._operator_trials import HISTORIES, Trial, versions

Key = tuple[str, str]
_PATIENCE_S: Final = 20.0
"""A process that says nothing for so long, and a second more for each trial that it is at, hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """One operator: its rows, and what its failed trials differed in."""

    rows: list[dict[str, Any]]
    trials: int
    equal: int
    failures: Mapping[str, Mapping[str, str]]


def sweep(
    backend_name: str,
    keys: Sequence[Key] = (),
    *,
    workers: int = 1,
    tell: Callable[[str], None] = print,
    progress: Path | None = None,
) -> dict[Key, Swept]:
    """Run every trial of these operators (all, if none is named) on a backend. Minutes on two cores.

    Args:
        backend_name: as `open_backend` takes it.
        keys: operators, by domain and name.
        workers: processes at a time.
        tell: told about each operator when it is done.
        progress: a file that results are appended to; operators that it holds are not run again.
    """
    seeds = all_seeds()
    waiting: queue.SimpleQueue[Key] = queue.SimpleQueue()
    chosen = [key for key in sorted(seeds) if not keys or key in keys]
    found = {} if progress is None else {key: swept for key, swept in _read(progress) if key in chosen}
    for key in chosen:
        if key not in found:
            waiting.put(key)
    writing = threading.Lock()

    def work() -> None:
        # One process for each library: memory that one of them spoils is not the other's.
        with _Worker(None) as runtime, _Worker(backend_name) as other:
            while True:
                try:
                    key = waiting.get_nowait()
                except queue.Empty:
                    return
                swept = found[key] = _sweep_one(runtime, other, key, seeds[key])
                if progress is not None:
                    with writing, progress.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([key, dataclasses.asdict(swept)]) + "\n")
                tell(
                    f"{len(found)}/{len(chosen)} {':'.join(key)}: {swept.equal} of {swept.trials} trials equal, "
                    f"{len(swept.rows)} rows"
                )

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {key: found[key] for key in chosen}


def _read(progress: Path) -> Iterator[tuple[Key, Swept]]:
    lines = progress.read_text("utf-8").splitlines() if progress.exists() else []
    for line in lines:
        (domain, op_type), entry = json.loads(line)
        yield (domain, op_type), Swept(**entry)


class _EndedError(Exception):
    """A process has ended; ``tried`` are the keys of the trials that it was at."""

    def __init__(self, tried: Sequence[str]) -> None:
        super().__init__("; ".join(tried))
        self.tried = tuple(tried)


def _sweep_one(runtime: _Worker, other: _Worker, key: Key, seeds: Sequence[Trial]) -> Swept:
    fatal: set[str] = set()
    while True:
        try:
            trials: list[Expected] = runtime.ask((key, seeds, fatal))
            break
        except _EndedError as ended:
            fatal.update(ended.tried)
    failed: dict[str, Mapping[str, str]] = {}
    apart: list[str] = []
    while len(failed) < len(trials):
        left = [item for item in trials if trial_key(item.trial) not in failed]
        try:
            other.ask((left, apart), note=failed.update)
        except _EndedError as ended:
            # What the process ended at may suffer from one before. So it is blamed only if it was the first.
            if list(ended.tried) == apart[:1]:
                failed[apart.pop(0)] = {"plain": "the process ends"}
            apart = [*ended.tried, *(name for name in apart if name not in ended.tried)]
            apart = [name for name in apart if name not in failed]
    return _summary([Judged(expected=item, failed=failed[trial_key(item.trial)]) for item in trials])


class _Worker:
    """A process that runs trials; another takes its place when it ends.

    Args:
        backend_name: whose answers it judges; None for the one that asks ONNX Runtime for its own.
    """

    def __init__(self, backend_name: str | None) -> None:
        self._backend_name = backend_name
        # A server that has imported everything, but started nothing, forks them: many end early.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["openvino", __name__])
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, request: object, *, note: Callable[[dict[str, Mapping[str, str]]], None] = lambda _: None) -> Any:
        """The answer of the process. Raises: _EndedError."""
        tried: list[str] = []
        if self._process is None:
            self._start()
        try:
            self._pipe.send(request)
            while self._pipe.poll(_PATIENCE_S + len(tried)):
                kind, content = self._pipe.recv()
                if kind == "done":
                    return content
                if kind == "error":
                    raise RuntimeError(content)
                if kind == "noted":
                    note(content)
                else:
                    tried = content.split("\n")
        except (EOFError, OSError):
            if not tried:
                raise
        self._stop()
        raise _EndedError(tried)

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._backend_name), daemon=True)
        self._process.start()
        theirs.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def open_unchecked(name: str) -> Backend:
    """A backend that runs on what it would refuse to be fed."""
    return OpenVinoBackend(checks_feeds=False) if name == "openvino" else open_backend(name)


def _serve(pipe: Connection, backend_name: str | None) -> None:
    logging.getLogger("parallax").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # edge values overflow, on purpose
    onnxruntime.set_default_logger_severity(4)
    backend = None if backend_name is None else open_unchecked(backend_name)

    def say(text: str) -> None:
        pipe.send(("trying", text))

    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            if backend is None:
                (domain, op_type), seeds, skip = request
                pipe.send(("done", choose_trials(op_type, domain, seeds, skip=skip, say=say)))
                continue
            trials, apart = request
            for batch in judge_trials(backend, trials, alone=apart, say=say):
                pipe.send(("noted", {trial_key(item.expected.trial): item.failed for item in batch}))
            pipe.send(("done", None))
        except Exception:  # a mistake of ours: to be told apart from a process that has ended
            pipe.send(("error", traceback.format_exc()))


def _summary(judged: Sequence[Judged]) -> Swept:
    return Swept(
        rows=fit_rows(judged),
        trials=len(judged),
        equal=sum(item.is_equal for item in judged),
        failures={trial_key(item.expected.trial): item.failed for item in judged if item.failed},
    )


def render(swept: Mapping[Key, Swept], backend_version: str, *, known: str = "") -> str:
    """The table as the text of its file: one line per row, sorted, so that a change shows as a small difference.

    Args:
        known: the text of the table so far, made of the same release, perhaps on another processor. What a row loses
            depends on the processor's instructions, so that what was found on one holds for all.
    """
    found = json.loads(known)["operators"] if known else {}
    newest: dict[str, int] = {}
    for (domain, _), history in HISTORIES.items():
        newest[domain] = max(newest.get(domain, 1), *history)
    operators = {}
    for key in sorted(swept):
        if swept[key].rows:
            rows = [
                {**row, "takes": {name: " ".join(values) for name, values in row["takes"].items()}}
                for row in swept[key].rows
            ]
            for row in rows:
                before = found.get(":".join(key), {"rows": ()})["rows"]
                alike = [other for other in before if other["takes"] == row["takes"]]
                lost = set().union(*(entry.get("loses", ()) for entry in (row, *alike)))
                if lost:
                    row["loses"] = sorted(lost)
            operators[":".join(key)] = (list(versions(*key)), rows)
    newest = {domain: version for domain, version in sorted(newest.items()) if any(key[0] == domain for key in swept)}
    lines = [
        "{",
        f'"format": {FORMAT_VERSION},',
        f'"openvino": {json.dumps(backend_version)},',
        f'"onnxruntime": {json.dumps(onnxruntime.__version__)},',
        f'"onnx": {json.dumps(onnx.__version__)},',
        f'"opsets": {json.dumps({**newest, **{domain: 1 for domain, _ in swept if domain not in newest}})},',
        '"operators": {',
    ]
    for number, (name, (history, rows)) in enumerate(operators.items()):
        lines.append(f'"{name}": {{"versions": {history}, "rows": [')
        lines += [json.dumps(row) + ("," if at < len(rows) - 1 else "") for at, row in enumerate(rows)]
        lines.append("]}" + ("," if number < len(operators) - 1 else ""))
    return "\n".join([*lines, "}}", ""])
