"""Keywords that nobody reads are refused: an option that is misspelt would be off without a word."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

from parallax.backends.ort import StockSession, both
from parallax.errors import ConfigError, ParallaxError

T = TypeVar("T", bound=type)

_CLOSE_ENOUGH: Final = 0.6
"""Names that are less alike than this are not suggested; `difflib` counts the letters that two names share."""

_READ_BY_NAME: Final = re.compile(r"""kwargs(?:\.get\(|\.pop\(|\[)\s*["'](\w+)["']""")
"""How the constructor of ONNX Runtime's class reads a keyword that its signature does not name."""


def unknown_keyword(function: str, name: str, known: Iterable[str], *, otherwise: str) -> ParallaxError:
    """The error for a keyword that ``function`` does not have; it is a TypeError too, as Python's own is.

    Args:
        known: the names that it has.
        otherwise: what to do where no name is close to this one.
    """
    import difflib  # for those who err

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=_CLOSE_ENOUGH)
    return both(ConfigError, TypeError)(
        f"{function}() got an unexpected keyword argument {name!r:.80}",
        fix=f"did you mean {close[0]}=?" if close else otherwise,
    )


def check_session_keywords(given: Mapping[str, Any], known: Collection[str], own: Iterable[str]) -> None:
    """Judge keywords of ``InferenceSession`` that are no options of ours.

    What ONNX Runtime's own class reads is accepted, also where a newer version reads more than we know of.

    Args:
        given: by name.
        known: those of ONNX Runtime's that we know of.
        own: the names of our options.

    Raises: ConfigError for a name that nobody reads, and for a value of a type that ONNX Runtime makes nothing of.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        accepted = {*known, *_read_by_onnx_runtime()}
        for name in unknown:
            if name not in accepted:
                raise unknown_keyword(
                    "InferenceSession",
                    name,
                    [*own, "options", *_stock_parameters(), *accepted],
                    otherwise="help(parallax.InferenceSession) lists the options",
                )
    _check_values(given)


def _check_values(given: Mapping[str, Any]) -> None:
    for name in ("enable_fallback", "read_config_from_model"):
        if name not in given:
            continue
        try:
            int(given[name])
        except (TypeError, ValueError):
            raise both(ConfigError, ValueError)(
                f"{name}={given[name]!r:.80} is neither 0 nor 1", fix=f"write {name}=1, or leave it out"
            ) from None
    disabled = given.get("disabled_optimizers")
    if disabled is not None and (isinstance(disabled, str) or not isinstance(disabled, Iterable)):
        raise both(ConfigError, TypeError)(
            f"disabled_optimizers={disabled!r:.80} is no list of names",
            fix='write disabled_optimizers=["ConstantFolding"]',
        )


def _stock_parameters() -> list[str]:
    parameters = inspect.signature(StockSession.__init__).parameters.values()
    return [entry.name for entry in parameters if entry.name != "self" and entry.kind is entry.POSITIONAL_OR_KEYWORD]


@functools.cache
def _read_by_onnx_runtime() -> frozenset[str]:
    """The keywords that the installed ONNX Runtime reads without naming them; none where its source is not there."""
    try:
        return frozenset(_READ_BY_NAME.findall(inspect.getsource(StockSession.__init__)))
    except (OSError, TypeError):
        return frozenset()


def refuses_unknown(cls: T) -> T:
    """A decorator for a record: a keyword that is no field is a ConfigError with the nearest name."""
    made: Callable[..., None] = cls.__init__  # type: ignore[misc]  # its own, which takes the fields
    fields = [name for name in inspect.signature(made).parameters if name != "self"]

    @functools.wraps(made)
    def checked(self: Any, *positional: Any, **keywords: Any) -> None:
        for name in keywords:
            if name not in fields:
                raise unknown_keyword(cls.__name__, name, fields, otherwise=f"help(parallax.{cls.__name__}) lists them")
        made(self, *positional, **keywords)

    cls.__init__ = checked  # type: ignore[misc]  # the class is given as one that has it
    return cls
