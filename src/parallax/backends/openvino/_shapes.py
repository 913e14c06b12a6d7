"""Which shapes a part with open dimensions is compiled for: OpenVINO's kernels for fixed ones take 3 to 5% less time.

Each compilation packs the weights anew, so only few are held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from parallax.errors import BackendError

logger = logging.getLogger(__name__)

Signature = tuple[tuple[int, ...], ...]
"""The shape of each input, in the order of the part's."""

FIXED_KEPT: Final = 2
"""Shapes that a part is compiled for at most, besides the open ones."""

EARNED: Final = 10
"""A signature is compiled for once its runs have taken so many times as long as compiling does. So compiling takes at
most a tenth of the time of the runs, however shapes change."""

_SIGNATURES_COUNTED: Final = 1024

_Program = TypeVar("_Program")


@dataclass(slots=True)
class _Fixed(Generic[_Program]):
    signature: Signature
    program: _Program
    last_used_ns: int


class ShapedPrograms(Generic[_Program]):
    """The programs of one part: one for open shapes, made when it is first needed, and few for fixed ones. Thread-safe.

    Fixed ones are compiled in the background, by one thread that ends with it. No lock is held across a run, and none
    by that thread: what a forked child inherits works, though nothing new is compiled there if the parent was at it.

    Args:
        compile_for: makes a program for a signature, or for any with None; raises BackendError.
        likely: the signature to compile for at once.
        what: the part, for messages.

    Raises: BackendError if the part cannot be compiled.
    """

    def __init__(
        self, compile_for: Callable[[Signature | None], _Program], *, likely: Signature | None, what: str
    ) -> None:
        self._compile_for = compile_for
        self._what = what
        self._fixed: tuple[_Fixed[_Program], ...] = ()  # replaced as a whole, by whoever holds _compiling
        self._open: _Program | None = None
        self._open_lock = threading.Lock()
        self._compiling = threading.Lock()  # only ever tried
        self._compile_ns = 0
        self._spent_ns: dict[Signature, int] = {}
        self._refused: set[Signature] = set()
        if likely is not None:
            self._fix(likely)
        if not self._fixed:
            self._open = self._timed(None)

    @property
    def fixed(self) -> tuple[Signature, ...]:
        """What it is compiled for now, besides the open shapes."""
        return tuple(entry.signature for entry in self._fixed)

    def any(self) -> _Program:
        """Some program, for what does not depend on shapes."""
        return self._fixed[0].program if self._open is None else self._open

    def pick(self, signature: Signature) -> _Program:
        """The program for a run.

        Raises: BackendError if the open one is needed for the first time and cannot be compiled.
        """
        for entry in self._fixed:
            if entry.signature == signature:
                entry.last_used_ns = time.monotonic_ns()
                return entry.program
        if self._open is None:
            with self._open_lock:
                if self._open is None:
                    self._open = self._timed(None)
        return self._open

    def is_open(self, program: _Program) -> bool:
        """Whether a program that `pick` gave is the one for open shapes, whose runs are to be noted."""
        return program is self._open

    def note(self, signature: Signature, took_ns: int) -> None:
        """A run on the program for open shapes has taken so long; that may earn its signature one of its own."""
        if signature in self.fixed or signature in self._refused:
            return
        if len(self._spent_ns) >= _SIGNATURES_COUNTED:
            self._spent_ns.clear()
        spent = self._spent_ns[signature] = self._spent_ns.get(signature, 0) + took_ns
        if spent < EARNED * self._compile_ns or not self._compiling.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._fix_apart, args=(signature,), name="parallax-shapes").start()
        except BaseException as error:
            self._compiling.release()
            if not isinstance(error, RuntimeError):
                raise
            logger.debug("no thread to compile %s in: %s", self._what, error)  # the process ends, or is full of them

    def _fix_apart(self, signature: Signature) -> None:
        try:
            if signature not in self.fixed:
                self._fix(signature)
        finally:
            self._compiling.release()

    def _fix(self, signature: Signature) -> None:
        try:
            program = self._timed(signature)
        except BackendError as error:
            self._refused.add(signature)
            logger.info("%s stays open for the shapes %s: %s", self._what, signature, error.what)
            return
        recent = sorted(self._fixed, key=lambda entry: entry.last_used_ns, reverse=True)[: FIXED_KEPT - 1]
        self._fixed = (*recent, _Fixed(signature, program, time.monotonic_ns()))
        self._spent_ns.pop(signature, None)

    def _timed(self, signature: Signature | None) -> _Program:
        begin = time.perf_counter_ns()
        program = self._compile_for(signature)
        self._compile_ns = time.perf_counter_ns() - begin
        return program
