"""Many requests of one caller, answered in their order."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

Feeds = Mapping[str, Any]
Answer = list[Any]

PATIENCE_S: Final = 1.0
"""Requests are run one by one for so long. What takes longer is worth the time that a batcher needs to be made."""

AHEAD: Final = 128
"""Requests that are read before they are answered."""

_END: Final = object()


class Submitter(Protocol):
    """The part of a batcher that is used here."""

    def submit(self, feeds: Feeds) -> Future[Answer]:
        """See ``Batcher.submit``."""
        ...


def run_in_order(
    feeds: Iterable[Feeds],
    *,
    run: Callable[[Feeds], Answer],
    open_batcher: Callable[[], AbstractContextManager[Submitter]],
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[Answer]:
    """Answer all requests: one by one while that is quickly done, else through a batcher.

    Args:
        feeds: is read as far as requests can be run, with `AHEAD` of them on their way at most.
        run: runs one request.
        open_batcher: makes a batcher, which takes time.

    Raises: what the first request that fails raises; those after it are not run, or dropped.
    """
    source = iter(feeds)
    answers: list[Answer] = []
    begin = clock()
    for fed in source:
        answers.append(run(fed))
        spent = clock() - begin
        if spent > patience_s and not _is_nearly_done(feeds, len(answers), spent, patience_s):
            break
    first = next(source, _END)
    if first is _END:
        return answers
    rest: Iterator[Any] = itertools.chain((first,), source)
    with open_batcher() as batcher:
        waiting: deque[Future[Answer]] = deque()
        try:
            for fed in rest:
                if len(waiting) >= AHEAD:
                    answers.append(waiting.popleft().result())
                waiting.append(batcher.submit(fed))
            while waiting:
                answers.append(waiting.popleft().result())
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return answers


def _is_nearly_done(feeds: Iterable[Feeds], done: int, spent: float, patience_s: float) -> bool:
    """Whether what is left takes less than the patience, where it can be told how much that is."""
    return isinstance(feeds, Sized) and (len(feeds) - done) * spent / done < patience_s
