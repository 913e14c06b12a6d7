"""Whole processes, in turn: how long each takes from its start to its answer, and how much memory it held.

What a process does is in `_whole.py`, which imports no more than a user's script would.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import _whole
from _common import say
from _environment import as_installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process, seen from outside."""

    elapsed_ns: int
    """From before it was started to its answer."""
    peak_bytes: int
    """The most memory that was resident at once until then, mapped files included; 0 where the system does not tell."""


class ProcessError(RuntimeError):
    """A process that ended without an answer; its message says how."""


def run_process(variant: str, arguments: Sequence[str] = (), *, cache: Path | None = None) -> Process:
    """Start one, and wait for its answer and its end.

    Args:
        cache: folder in which processes keep figures for later ones; None: the user's, where earlier tuning of a model
            may have left a plan.

    Raises: ProcessError.
    """
    command = [sys.executable, str(Path(_whole.__file__)), variant, *arguments]
    environment = as_installed()
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    begin = time.perf_counter_ns()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        answered = any(line == "answered\n" for line in lines)  # the runtime's planner may print, too
        elapsed = time.perf_counter_ns() - begin
        words = next(lines, "").split()
        process.stdout.read()
    if not answered:
        raise ProcessError(f"{variant}: ended with {process.returncode}")
    return Process(elapsed_ns=elapsed, peak_bytes=int(words[1]) if words[:1] == ["peak"] else 0)


def in_turn(
    variants: Mapping[str, Sequence[str]], *, rounds: int, cache: Path | None = None
) -> dict[str, list[Process]]:
    """Processes by variant, in rounds that go through the variants forwards and backwards in turn.

    Args:
        variants: name -> its arguments. One that ends badly is said to, and left out.
        cache: as for `run_process`.
    """
    found: dict[str, list[Process]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in list(variants)[:: 1 if number % 2 == 0 else -1]:
            if variant not in found:
                continue
            try:
                found[variant].append(run_process(variant, variants[variant], cache=cache))
            except ProcessError as error:
                del found[variant]
                say(f"  {error}")
    return found
