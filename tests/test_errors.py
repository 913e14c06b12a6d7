"""Errors carry what happened, where and how to mend it, and keep that across processes."""

from __future__ import annotations

import pickle

import pytest

from parallax import errors
from parallax.errors import ParallaxError, SegmentError

ALL = [getattr(errors, name) for name in errors.__all__]


def test_a_message_says_what_where_and_how_to_mend_it() -> None:
    error = ParallaxError("no kernel for Foo", where="node 'foo_1'", fix="register one")
    assert str(error) == "no kernel for Foo (at node 'foo_1'); register one"
    assert (error.what, error.where, error.fix) == ("no kernel for Foo", "node 'foo_1'", "register one")


def test_where_and_fix_may_be_unknown() -> None:
    assert str(ParallaxError("it broke")) == "it broke"
    assert str(ParallaxError("it broke", fix="mend it")) == "it broke; mend it"


@pytest.mark.parametrize("family", ALL, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling_with_its_fields(family: type[ParallaxError]) -> None:
    # A worker process reports failures by pickling them.
    copy = pickle.loads(pickle.dumps(family("what", where="here", fix="so")))
    assert type(copy) is family
    assert (copy.what, copy.where, copy.fix, str(copy)) == ("what", "here", "so", "what (at here); so")


def test_a_segment_error_names_its_nodes_also_after_pickling() -> None:
    error = SegmentError("it failed", segment="s3", nodes=("conv_1", "relu_1"))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.segment, copy.nodes) == ("s3", ("conv_1", "relu_1"))
    assert isinstance(copy, errors.BackendError)


def test_every_error_says_whose_move_it_is() -> None:
    for family in ALL:
        assert family.__doc__, family
        assert issubclass(family, ParallaxError)
