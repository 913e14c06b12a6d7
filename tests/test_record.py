"""Records are what `dataclasses` would have made of them."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import pickle
import pkgutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import parallax
from parallax._record import dataclass

HAS_TORCH = importlib.util.find_spec("torch") is not None
"""Whether modules that train networks can be imported; their records are plain `dataclasses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """With every kind of field."""

    plain: int
    text: str = "default"
    made: list[int] = dataclasses.field(default_factory=list)
    hidden: int = dataclasses.field(default=3, repr=False)
    apart: int = dataclasses.field(default=4, compare=False)


@dataclass(slots=True)
class Open:
    """By position."""

    left: int
    right: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Frozen):
    """With a field more, and a check."""

    more: int = 5

    def __post_init__(self) -> None:
        if self.more < 0:
            raise ValueError(self.more)


@dataclass(frozen=True)
class Unslotted:
    """With a dictionary, as cached properties need."""

    only: Any


def twin(kind: type, **options: bool) -> Any:
    """What `dataclasses` makes of the same class."""
    names = {
        name: value for name, value in vars(kind).items() if name in ("__annotations__", "__doc__", "__post_init__")
    }
    for entry in dataclasses.fields(kind):
        if entry.name in inspect.get_annotations(kind):
            names[entry.name] = (
                dataclasses.field(
                    default=entry.default, default_factory=entry.default_factory, repr=entry.repr, compare=entry.compare
                )
                if entry.default is dataclasses.MISSING or not entry.repr or not entry.compare
                else entry.default
            )
    bare = type(kind.__name__, kind.__bases__ if kind is not Derived else (twin(Frozen, **options),), names)
    return dataclasses.dataclass(**options)(bare)  # type: ignore[call-overload]


FORMS: list[tuple[type, dict[str, bool], dict[str, Any]]] = [
    (Frozen, {"frozen": True, "slots": True, "kw_only": True}, {"plain": 1}),
    (Derived, {"frozen": True, "slots": True, "kw_only": True}, {"plain": 1, "more": 2}),
    (Open, {"slots": True}, {"left": 1}),
    (Unslotted, {"frozen": True}, {"only": 1}),
]


@pytest.mark.parametrize(("kind", "options", "values"), FORMS)
def test_a_record_is_what_dataclasses_makes_of_it(kind: Any, options: dict[str, bool], values: dict[str, Any]) -> None:
    other = twin(kind, **options)
    assert [(f.name, f.default, f.repr, f.compare, f.kw_only) for f in dataclasses.fields(kind)] == [
        (f.name, f.default, f.repr, f.compare, f.kw_only) for f in dataclasses.fields(other)
    ]
    assert str(inspect.signature(kind)) == str(inspect.signature(other))
    assert getattr(kind, "__slots__", None) == getattr(other, "__slots__", None)
    assert kind.__match_args__ == other.__match_args__
    assert kind.__init__.__annotations__ == other.__init__.__annotations__
    assert repr(kind.__dataclass_params__) == repr(other.__dataclass_params__)
    ours, theirs = kind(**values), other(**values)
    assert repr(ours) == repr(theirs).replace("twin.<locals>.", "")
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert ours == kind(**values)
    assert ours != theirs
    assert ours != 1
    assert (kind.__hash__ is None) == (other.__hash__ is None)
    for change in ({}, {next(iter(values)): 7}):
        assert dataclasses.asdict(dataclasses.replace(ours, **change)) == dataclasses.asdict(
            dataclasses.replace(theirs, **change)
        )
    for copied in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied == ours
        assert type(copied) is kind
    for wrong in ({}, {**values, "nothing": 1}):
        with pytest.raises(TypeError) as here:
            kind(**wrong)
        with pytest.raises(TypeError) as there:
            other(**wrong)
        assert str(here.value).partition(".__init__")[2] == str(there.value).partition("__init__")[2]


def test_frozen_records_refuse_changes_and_open_ones_take_them() -> None:
    frozen, opened = Frozen(plain=1), Open(1)
    for name in ("plain", "unknown"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(frozen, name, 2)
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot delete field '{name}'"):
            delattr(frozen, name)
    opened.left = 3
    assert opened == Open(3)
    with pytest.raises(AttributeError):
        opened.unknown = 1  # type: ignore[attr-defined]


def test_a_caller_s_own_record_may_derive_from_a_frozen_one() -> None:
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Own(Frozen):
        own: str = "mine"

    record = Own(plain=1)
    assert dataclasses.asdict(record)["own"] == "mine"
    assert dataclasses.replace(record, own="yours").own == "yours"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.plain = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass from a frozen one"):
        dataclasses.dataclass(type("Thawed", (Frozen,), {}))


def test_what_is_not_compared_does_not_count() -> None:
    assert Frozen(plain=1, apart=1) == Frozen(plain=1, apart=2)
    assert Frozen(plain=1) != Frozen(plain=2)
    assert hash(Unslotted((1, 2))) == hash(Unslotted((1, 2)))
    assert "hidden" not in repr(Frozen(plain=1))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Open(1))
    nan = float("nan")
    assert Unslotted(nan) == Unslotted(nan), "as tuples are compared"


def test_a_record_that_holds_itself_can_be_shown() -> None:
    held: list[Any] = []
    record = Unslotted(held)
    held.append(record)
    assert repr(record) == "Unslotted(only=[...])"


def test_every_record_of_the_package_has_the_signature_of_its_fields() -> None:
    count = 0
    for info in pkgutil.walk_packages(parallax.__path__, "parallax."):
        if info.name == "parallax.__main__" or (info.name.startswith("parallax.training._") and not HAS_TORCH):
            continue
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__ == info.name:
                count += 1
                given = [entry for entry in dataclasses.fields(value) if entry.init]
                assert list(inspect.signature(value).parameters) == [
                    *(entry.name for entry in given if not entry.kw_only),
                    *(entry.name for entry in given if entry.kw_only),
                ]
    assert count > 100


def test_the_initialiser_is_written_when_it_is_first_asked_for() -> None:
    @dataclass(frozen=True, slots=True)
    class Late:
        """Without a text, a class gets its signature for one, and that needs the initialiser."""

        left: int
        right: int = 2

    @dataclass(frozen=True, slots=True)
    class Below(Late):
        """With a field more."""

        more: int = 3

    assert not inspect.isfunction(vars(Late)["__init__"])
    assert [Below(1), Below(1, 4, more=5)] == [Below(1, 2, 3), Below(1, 4, 5)]
    assert not inspect.isfunction(vars(Late)["__init__"])
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(Late, range(64)))
    assert [(record.left, record.right) for record in made] == [(number, 2) for number in range(64)]
    assert inspect.isfunction(vars(Late)["__init__"])
