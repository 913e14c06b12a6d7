"""``python -m parallax SCRIPT.py``: a program written for ONNX Runtime, run with our session class in its place."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final

from parallax.errors import ConfigError

_SUFFIXES: Final = (".py", ".pyw")

_NO_PROGRAM_EXIT: Final = 2
"""As the commands' own for bad input, whose module takes long to load; and as that of ``python`` itself."""

USAGE: Final = "python -m parallax SCRIPT.py [ARGUMENT...], or python -m parallax -m MODULE [ARGUMENT...]"


def is_program(words: Sequence[str]) -> bool:
    """Whether these words of a command line name a program, not a command of ours.

    A command's name wins over a file of that name: write ``./inspect`` for the file.
    """
    if not words:
        return False
    first = words[0]
    if first == "-m" or first.endswith(_SUFFIXES):
        return True
    return not first.startswith("-") and _may_be_source(first) and first not in _command_names()


def run_program(words: Sequence[str]) -> None:
    """Run a script or a module as ``python`` would, after `parallax.patch`.

    It finds its own ``sys.argv``, ``sys.path[0]`` and ``__main__``, and tracebacks begin with its own lines. What it
    raises goes through.

    Args:
        words: a path and its arguments, or "-m", a module and its arguments.

    Raises: SystemExit with code 2 where there is no such program.
    """
    from parallax.patching import patch

    patch()  # first: to find a module is to import its package
    hook = sys.excepthook

    def shorten(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        part = own_part(trace)
        hook(kind, error.with_traceback(part), part)

    sys.excepthook = shorten
    is_module = words[0] == "-m"
    try:
        program = _find_module(words[1:]) if is_module else _find_script(words[0])
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_NO_PROGRAM_EXIT)
    sys.argv[:] = [program.argument, *words[2 if is_module else 1 :]]
    if not sys.flags.safe_path and program.folder is not None:
        sys.path[0] = program.folder
    program.run()


def own_part(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first line of the program on, without what led there; all of it where that is all."""
    part = trace
    while part is not None and part.tb_frame.f_code.co_filename in _LEADING:
        part = part.tb_next
    return part


_LEADING: Final = frozenset(
    {__file__, "<frozen runpy>", os.path.join(os.path.dirname(os.path.dirname(__file__)), "__main__.py")}
)
"""The files of the frames that every program here begins with."""


class _Program:
    """Something to run as ``__main__``.

    Args:
        argument: what ``sys.argv[0]`` is to be.
        folder: what ``sys.path[0]`` is to be; None: as it is.
        spec: of a module; None for a script.
    """

    def __init__(
        self, code: CodeType, *, path: str, argument: str, folder: str | None, spec: ModuleSpec | None, loader: Any
    ) -> None:
        self._code = code
        self._path = path
        self.argument = argument
        self.folder = folder
        self._spec = spec
        self._loader = loader

    def run(self) -> None:
        main = ModuleType("__main__")
        vars(main).update(
            __file__=self._path,
            __loader__=self._loader,
            # Without one, processes that are spawned import a script by its path, as those of `python SCRIPT.py` do.
            __spec__=self._spec,
            __package__=None if self._spec is None else self._spec.parent,
            __cached__=None if self._spec is None else self._spec.cached,
        )
        sys.modules["__main__"] = main
        exec(self._code, vars(main))


def _find_script(path: str) -> _Program:
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        raise ConfigError(
            f"no program can be read there: {error.strerror or error}", where=path, fix=f"write {USAGE}"
        ) from error
    whole = os.path.abspath(path)
    return _Program(
        compile(source, whole, "exec", dont_inherit=True),
        path=whole,
        argument=path,
        folder=os.path.dirname(os.path.realpath(path)),
        spec=None,
        loader=SourceFileLoader("__main__", whole),
    )


def _find_module(words: Sequence[str]) -> _Program:
    if not words:
        raise ConfigError("-m is followed by no module", fix=f"write {USAGE}")
    name = words[0]
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"the module {name} cannot be found: {error}", fix=f"write {USAGE}") from error
    code = None if spec is None else getattr(spec.loader, "get_code", lambda _: None)(name)
    if spec is None or code is None:
        raise ConfigError(f"there is no module {name} that can be run", fix=f"write {USAGE}")
    path = str(spec.origin)
    return _Program(code, path=path, argument=path, folder=None, spec=spec, loader=spec.loader)


def _may_be_source(path: str) -> bool:
    """Whether there is a file of text, as scripts without a suffix are, and models are not."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"\0" not in file.read(1 << 12)


def _command_names() -> frozenset[str]:
    import typer

    from parallax.cli._app import app

    group: Any = typer.main.get_command(app)
    return frozenset(group.commands)
