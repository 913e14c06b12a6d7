"""`run` takes the same names and feeds, gives the same answers and refuses the same mistakes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from parallax.errors import InputError
from tests.session._dropin import (
    TWO_OUTPUTS,
    SessionClass,
    assert_cut,
    on_every_session,
    on_parallax_sessions,
    open_session,
    parse,
    ramp,
    two_outputs_answer,
)

X, Y = ramp(2, 4), ramp(2, 4, start=0.3)
LEFT, RIGHT, BOTH = two_outputs_answer(X, Y)
ANSWER = {"left": LEFT, "right": RIGHT, "both": BOTH}


@pytest.fixture
def session(session_class: SessionClass) -> onnxruntime.InferenceSession:
    session = open_session(session_class, TWO_OUTPUTS)
    assert_cut(session)
    return session


def _check(results: Any, names: list[str]) -> None:
    assert type(results) is list
    assert len(results) == len(names)
    for result, name in zip(results, names, strict=True):
        assert type(result) is np.ndarray
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, ANSWER[name], rtol=1e-6, atol=1e-6)


# --- Output names ---------------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("names", [None, [], ()], ids=["None", "list", "tuple"])
def test_no_names_mean_all_outputs_in_model_order(session: onnxruntime.InferenceSession, names: Any) -> None:
    _check(session.run(names, {"x": X, "y": Y}), ["left", "right", "both"])


@on_every_session
@pytest.mark.parametrize(
    "names",
    [
        ["left"],
        ["right"],
        ["both"],
        ["both", "left"],
        ["right", "both", "left"],
        ["left", "left"],
        ["both", "right", "both"],
        ("right", "left"),
    ],
    ids="+".join,
)
def test_names_choose_order_and_repeat_outputs(session: onnxruntime.InferenceSession, names: Any) -> None:
    _check(session.run(names, {"x": X, "y": Y}), list(names))


@on_every_session
def test_an_output_asked_for_twice_is_given_twice_and_alike(session: onnxruntime.InferenceSession) -> None:
    first, second = session.run(["both", "both"], {"x": X, "y": Y})
    np.testing.assert_array_equal(first, second)


@on_every_session
@pytest.mark.parametrize("names", [["nothing"], ["left", "nothing"], [""], ["x"], ["sin_x"]], ids=repr)
def test_names_that_are_no_outputs_are_invalid_arguments(session: onnxruntime.InferenceSession, names: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"(?i)output name.*{names[-1]}"):
        session.run(names, {"x": X, "y": Y})
    _check(session.run(None, {"x": X, "y": Y}), ["left", "right", "both"])


@on_every_session
@pytest.mark.parametrize("names", ["left", [1], 5, [None]], ids=repr)
def test_names_of_the_wrong_type_are_type_errors(session: onnxruntime.InferenceSession, names: Any) -> None:
    with pytest.raises(TypeError):
        session.run(names, {"x": X, "y": Y})


@on_every_session
def test_arguments_may_be_named(session: onnxruntime.InferenceSession) -> None:
    _check(session.run(output_names=["both"], input_feed={"y": Y, "x": X}, run_options=None), ["both"])


# --- Feeds that are taken -------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize(
    "form",
    [
        lambda a: a.tolist(),
        list,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.repeat(a, 3, axis=0)[1::3],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.ascontiguousarray(a.T).T,
        np.matrix,
        np.ma.array,
        lambda a: onnxruntime.OrtValue.ortvalue_from_numpy(a),
    ],
    ids=[
        "nested-lists",
        "list-of-rows",
        "fortran-order",
        "strided-columns",
        "strided-rows",
        "negative-stride",
        "transposed",
        "matrix",
        "masked",
        "OrtValue",
    ],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_feeds_may_come_in_any_layout(session: onnxruntime.InferenceSession, form: Any) -> None:
    _check(session.run(None, {"x": form(X), "y": form(Y)}), ["left", "right", "both"])


@on_every_session
def test_a_read_only_and_a_broadcast_feed_are_taken(session: onnxruntime.InferenceSession) -> None:
    frozen = X.copy()
    frozen.flags.writeable = False
    rows = np.broadcast_to(Y[:1], (2, 4))
    left, right = session.run(["left", "right"], {"x": frozen, "y": rows})
    np.testing.assert_allclose(left, LEFT, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(right, np.repeat(RIGHT[:1], 2, axis=0), rtol=1e-6, atol=1e-6)


@on_every_session
def test_any_mapping_in_any_order_is_a_feed(session: onnxruntime.InferenceSession) -> None:
    _check(session.run(None, MappingProxyType({"y": Y, "x": X})), ["left", "right", "both"])


@on_every_session
def test_feeds_are_not_changed(session: onnxruntime.InferenceSession) -> None:
    x, y = X.copy(), Y.copy()
    feed = {"x": x, "y": y}
    session.run(None, feed)
    assert list(feed) == ["x", "y"]
    assert feed["x"] is x
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@on_every_session
def test_a_python_list_becomes_the_type_the_model_wants(session_class: SessionClass) -> None:
    session = open_session(
        session_class, "g (int64[2] i, double[2] d) => (int64[2] j, double[2] e) { j = Add(i, i) e = Sin(d) }"
    )
    for feed, wanted in (([1, 2], [2, 4]), ([True, False], [2, 0]), ([1.5, 2.5], [2, 4])):
        j, e = session.run(None, {"i": feed, "d": [0.5, 1]})
        assert j.dtype == np.int64
        assert j.tolist() == wanted
        np.testing.assert_allclose(e, np.sin([0.5, 1.0]))


# --- Feeds that are refused -----------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("feed", [{}, {"x": X}, {"z": X}, {"x": X, "Y": Y}], ids=lambda feed: "+".join(feed) or "none")
def test_a_missing_input_is_named(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Required inputs \(\[.*'y'.*\]\) are missing from input feed"):
        session.run(None, feed)


@on_every_session
def test_an_input_is_missing_even_where_the_wanted_output_does_not_need_it(
    session: onnxruntime.InferenceSession,
) -> None:
    with pytest.raises(ValueError, match="'y'"):
        session.run(["left"], {"x": X})


@on_every_session
@pytest.mark.parametrize("extra", ["z", "sin_x", "one", "left", ""])
def test_a_feed_that_is_no_input_is_named(session: onnxruntime.InferenceSession, extra: str) -> None:
    with pytest.raises(InvalidArgument, match=f"(?i)input name.*{extra}"):
        session.run(None, {"x": X, "y": Y, extra: X})


@on_every_session
@pytest.mark.parametrize("dtype", ["f8", "f2", "i4", "i8", "?", "U3"])
def test_a_wrong_type_says_which_is_wanted(session: onnxruntime.InferenceSession, dtype: str) -> None:
    with pytest.raises(InvalidArgument, match=r"tensor\(float\)"):
        session.run(None, {"x": X.astype(dtype), "y": Y})


@on_every_session
@pytest.mark.parametrize("x", [X[0], X[None], np.array(1, np.float32)], ids=["1-d", "3-d", "0-d"])
def test_a_wrong_rank_names_input_and_both_ranks(session: onnxruntime.InferenceSession, x: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"(?i)rank.*x.*{x.ndim}.*2"):
        session.run(None, {"x": x, "y": Y})


@on_every_session
@pytest.mark.parametrize("width", [0, 1, 3, 5])
def test_a_wrong_dimension_names_input_and_both_sizes(session: onnxruntime.InferenceSession, width: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"(?is)dimension.*\by\b.*{width}.*4"):
        session.run(None, {"x": X, "y": ramp(2, width)})


@on_every_session
def test_symbolic_dimensions_that_disagree_fail_where_they_meet(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises(Fail, match=r"(?s)Concat.*(2 and 3|3 and 2)"):
        session.run(None, {"x": X, "y": ramp(3, 4)})
    _check(session.run(None, {"x": X, "y": Y}), ["left", "right", "both"])


@on_every_session
@pytest.mark.parametrize("value", ["text", 1.0, 3, np.float32(1), object()], ids=lambda value: type(value).__name__)
def test_what_is_no_tensor_is_refused(session: onnxruntime.InferenceSession, value: Any) -> None:
    with pytest.raises(RuntimeError):
        session.run(None, {"x": value, "y": Y})


@on_every_session
def test_none_for_an_input_that_is_not_optional_is_refused(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises((Fail, InvalidArgument), match=r"\bx\b"):
        session.run(None, {"x": None, "y": Y})


@on_every_session
@pytest.mark.parametrize("feed", [[X, Y], None, X, "x"], ids=["list", "None", "array", "text"])
def test_a_feed_that_is_no_mapping_is_refused(session: onnxruntime.InferenceSession, feed: Any) -> None:
    with pytest.raises((AttributeError, TypeError)):
        session.run(None, feed)


@on_every_session
def test_names_of_feeds_must_be_text(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises(TypeError):
        session.run(None, {"x": X, "y": Y, 1: X})


@on_every_session
def test_options_of_a_run_must_be_run_options(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises(TypeError):
        session.run(None, {"x": X, "y": Y}, "options")


MISTAKES: dict[str, dict[str, Any]] = {
    "type": {"x": X.astype(np.float64), "y": Y},
    "rank": {"x": X[0], "y": Y},
    "dimension": {"x": X[:, :3], "y": Y},
    "missing": {"x": X},
    "unknown": {"x": X, "y": Y, "z": X},
}


@on_every_session
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_refused_feed_leaves_the_session_usable(session: onnxruntime.InferenceSession, mistake: str) -> None:
    for _ in range(3):
        with pytest.raises((ValueError, InvalidArgument)):
            session.run(None, MISTAKES[mistake])
        _check(session.run(None, {"x": X, "y": Y}), ["left", "right", "both"])


@on_parallax_sessions
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_refused_feed_is_one_of_our_input_errors(session: onnxruntime.InferenceSession, mistake: str) -> None:
    with pytest.raises(InputError):
        session.run(None, MISTAKES[mistake])


# --- Results --------------------------------------------------------------------------------------


@on_every_session
def test_results_belong_to_the_caller(session: onnxruntime.InferenceSession) -> None:
    first = session.run(None, {"x": X, "y": Y})
    kept = [result.copy() for result in first]
    for start in (2.0, 5.0, -7.0):
        session.run(None, {"x": ramp(2, 4, start=start), "y": ramp(2, 4, start=start)})
    for result, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(result, copy, err_msg="a later run wrote into an earlier result")


@on_every_session
def test_writing_into_results_does_not_reach_later_runs(session: onnxruntime.InferenceSession) -> None:
    for _ in range(3):
        results = session.run(None, {"x": X, "y": Y})
        _check(results, ["left", "right", "both"])
        for result in results:
            assert result.flags.writeable
            result[...] = np.nan


@on_every_session
def test_results_share_no_memory_with_each_other_or_the_feeds(session: onnxruntime.InferenceSession) -> None:
    x, y = X.copy(), Y.copy()
    arrays = [*session.run(None, {"x": x, "y": y}), *session.run(None, {"x": x, "y": y}), x, y]
    for index, array in enumerate(arrays):
        for other in arrays[index + 1 :]:
            assert not np.shares_memory(array, other)


@on_every_session
def test_many_held_results_stay_what_they_were(session: onnxruntime.InferenceSession) -> None:
    starts = np.linspace(-3, 3, 50)
    held = [session.run(["both"], {"x": ramp(2, 4, start=s), "y": ramp(2, 4, start=-s)})[0] for s in starts]
    for start, result in zip(starts, held, strict=True):
        wanted = two_outputs_answer(ramp(2, 4, start=start), ramp(2, 4, start=-start))[2]
        np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6)


@on_every_session
def test_results_are_bit_for_bit_onnxruntimes(session: onnxruntime.InferenceSession) -> None:
    plain = onnxruntime.InferenceSession(parse(TWO_OUTPUTS).SerializeToString())
    rng = np.random.default_rng(7)
    for rows in (1, 2, 17, 64):
        feed = {name: rng.standard_normal((rows, 4), dtype=np.float32) for name in ("x", "y")}
        for ours, theirs in zip(session.run(None, feed), plain.run(None, feed), strict=True):
            np.testing.assert_array_equal(ours, theirs)
