"""Scripts in processes of their own that answer orders: a line of JSON each on standard input, and one in return."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _environment import as_installed


class OrderedProcess:
    """A script of this folder, seen from outside.

    Args:
        name: of the process, for errors.
        script: its file.
    """

    def __init__(self, name: str, script: str, *arguments: str) -> None:
        self._name = name
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=as_installed()
        )

    def read(self) -> Any:
        """What it answers next. Raises: RuntimeError if it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: ended with {self._process.wait()}")
        return json.loads(line)

    def ask(self, order: Any) -> Any:
        """Give an order; returns the answer. Raises: RuntimeError if it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """Have it end: nothing is ordered any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()


def open_answers() -> Callable[[Any], None]:
    """In the script: what writes an answer. Whatever else prints to standard output goes to standard error from now on,
    so that what a runtime prints does not stand between answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")

    return answer
