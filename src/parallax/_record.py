"""`dataclasses.dataclass`, for classes that are made in half the time.

Python's own writes the methods of each class as text and compiles them, six for a frozen record: on the way to a
bundle's first answer that takes more than all else that importing this package takes. Here ``__init__`` alone is
compiled, when it is first asked for, since most processes make records of few classes; what else a record has needs
but the names of its fields. Fields, slots and what `dataclasses` offers for records (``fields``, ``replace``,
``asdict``, ``is_dataclass``) are its own, and type checkers see nothing else. A test compares records with what
`dataclasses` makes of the same classes.

Why not a library: ``attrs`` writes and compiles as well; ``msgspec.Struct`` is made quickly, but `dataclasses` takes
none for a record, and users call ``dataclasses.replace`` and ``asdict`` on options and plans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type | None = None, /, **options: bool) -> Any:
        """As `dataclasses.dataclass`, of whose options there are frozen, eq, slots, weakref_slot and kw_only."""
        return (lambda made: _make(made, **options)) if cls is None else _make(cls, **options)


def _make(cls: type, *, frozen: bool = False, eq: bool = True, **options: bool) -> Any:
    # Whether a record may derive from another is decided there, which needs the guards of frozen records compiled.
    is_derived = any(map(dataclasses.is_dataclass, cls.__bases__))
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, frozen=frozen and is_derived, **options)(cls)
    own = dict(vars(cls))  # what the class itself defines goes before what is made here
    fields = dataclasses.fields(made)
    if "__init__" not in own:
        made.__init__ = _LateInitialiser(made, fields, frozen=frozen)
    if "__repr__" not in own:
        made.__repr__ = _representation([field.name for field in fields if field.repr])
    compared = [field.name for field in fields if field.compare]
    hashed = [field.name for field in fields if (field.compare if field.hash is None else field.hash)]
    if eq and "__eq__" not in own:
        made.__eq__ = _equality(_reader(compared))
    if eq and ("__hash__" not in own or (own["__hash__"] is None and "__eq__" in own)):
        made.__hash__ = _hash(_reader(hashed)) if frozen else None
    if frozen and not is_derived:
        made.__setattr__, made.__delattr__ = _guards(made, frozenset(field.name for field in fields))
        if options.get("slots"):
            made.__getstate__, made.__setstate__ = _state(tuple(field.name for field in fields))
    # So that a class which derives from this one is judged as it would be.
    parameters = made.__dataclass_params__
    parameters.init = parameters.repr = True
    parameters.eq, parameters.frozen = eq, frozen
    return made


class _LateInitialiser:
    """``__init__`` of a class until it is first asked for, for a record or for its signature: then it takes the place
    of this. Threads that ask at the same time may each make one; they are alike."""

    def __init__(self, cls: Any, fields: Sequence[dataclasses.Field[Any]], *, frozen: bool) -> None:
        self._cls, self._fields, self._frozen = cls, fields, frozen

    def __get__(self, record: Any, owner: type | None = None) -> Any:
        made: Any = _initialiser(self._cls, self._fields, frozen=self._frozen)
        self._cls.__init__ = made
        return made.__get__(record, owner)


def _initialiser(cls: Any, fields: Sequence[dataclasses.Field[Any]], *, frozen: bool) -> Callable[..., None]:
    """``__init__``, written out: it is called most, and its signature shows the fields. Defaults are added to the
    function, so that what is compiled is short."""
    names: dict[str, Any] = {"_set": object.__setattr__, "_factory": _FACTORY}
    parameters: list[str] = []
    keywords: list[str] = []
    defaults: list[Any] = []
    keyword_defaults: dict[str, Any] = {}
    lines = []
    for field in fields:
        name, value = field.name, field.name
        default, factory = field.default, field.default_factory
        has_default, has_factory = default is not dataclasses.MISSING, factory is not dataclasses.MISSING
        if has_factory:
            names[f"_make_{name}"] = factory
            value = f"_make_{name}() if {name} is _factory else {name}" if field.init else f"_make_{name}()"
        elif not field.init:
            if not has_default:
                continue
            names[f"_default_{name}"], value = default, f"_default_{name}"
        if field.init:
            (keywords if field.kw_only else parameters).append(name)
            if has_default or has_factory:
                stated = default if has_default else _FACTORY
                if field.kw_only:
                    keyword_defaults[name] = stated
                else:
                    defaults.append(stated)
            elif defaults and not field.kw_only:
                raise TypeError(f"non-default argument {name!r} follows default argument")
        lines.append(f" _set(self,{name!r},{value})" if frozen else f" self.{name}={value}")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    shown = ",".join(["self", *parameters, *(["*", *keywords] if keywords else [])])
    exec(f"def __init__({shown}):\n" + "\n".join(lines or [" pass"]), names)
    function = names["__init__"]
    function.__defaults__, function.__kwdefaults__ = tuple(defaults) or None, keyword_defaults or None
    function.__qualname__ = f"{cls.__qualname__}.__init__"
    function.__module__ = cls.__module__
    given = sorted((field for field in fields if field.init), key=lambda field: bool(field.kw_only))
    function.__annotations__ = {**{field.name: field.type for field in given}, "return": None}
    return function  # type: ignore[no-any-return]


class _Factory:
    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()
"""Stands for a value that is made anew for each record."""


def _reader(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple([getattr(record, name) for name in names])


def _representation(names: Sequence[str]) -> Callable[[Any], str]:
    @recursive_repr()
    def __repr__(self: Any) -> str:
        shown = ", ".join([f"{name}={getattr(self, name)!r}" for name in names])
        return f"{type(self).__qualname__}({shown})"

    return __repr__


def _equality(read: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, object], Any]:
    def __eq__(self: Any, other: object) -> Any:
        return read(self) == read(other) if type(other) is type(self) else NotImplemented

    return __eq__


def _hash(read: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], int]:
    def __hash__(self: Any) -> int:
        return hash(read(self))

    return __hash__


def _guards(cls: Any, names: frozenset[str]) -> tuple[Callable[[Any, str, Any], None], Callable[[Any, str], None]]:
    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return __setattr__, __delattr__


def _state(names: tuple[str, ...]) -> tuple[Callable[[Any], list[Any]], Callable[[Any, Sequence[Any]], None]]:
    """For copies and pickles of frozen records with slots."""

    def __getstate__(self: Any) -> list[Any]:
        return [getattr(self, name) for name in names]

    def __setstate__(self: Any, state: Sequence[Any]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    return __getstate__, __setstate__
