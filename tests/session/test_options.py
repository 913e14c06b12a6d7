"""`parallax.Options`: one record from which keywords, signatures, docstrings and checks follow."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.backends import FaultPolicy
from parallax.bundle import read_manifest
from parallax.engine import TraceRecorder
from parallax.options._options import (
    COMPILE_OPTIONS,
    OPTION_RULES,
    CompileKeywords,
    OptionKeywords,
    PlanningOptions,
    option_docs,
    with_option_docs,
)
from parallax.schedule.placement import PLACERS
from tests.session._dropin import branches_answer, branches_model, ramp

MODEL = branches_model().SerializeToString()
FIELDS = [entry.name for entry in dataclasses.fields(parallax.Options)]


def segments(session: parallax.InferenceSession) -> int:
    return len(session.plan.segments)


# -- one source -------------------------------------------------------------------------------------------------------


def test_type_checkers_see_each_option_as_a_keyword_of_the_same_type() -> None:
    keywords = {name: hint.__forward_arg__ for name, hint in OptionKeywords.__annotations__.items()}
    assert keywords == parallax.Options.__annotations__
    assert set(CompileKeywords.__annotations__) == set(COMPILE_OPTIONS) < set(FIELDS)


def test_the_signature_shows_each_option_with_its_default_after_those_of_onnx_runtime() -> None:
    parameters = inspect.signature(parallax.InferenceSession).parameters
    stock = [name for name in inspect.signature(onnxruntime.InferenceSession).parameters if name != "kwargs"]
    assert list(parameters) == [*stock, "options", *FIELDS, "keywords"]
    positional = [name for name, entry in parameters.items() if entry.kind is entry.POSITIONAL_OR_KEYWORD]
    assert positional == stock
    for entry in dataclasses.fields(parallax.Options):
        assert parameters[entry.name].default == entry.default


def test_compile_shows_those_it_takes() -> None:
    parameters = inspect.signature(parallax.compile).parameters
    own = ["model", "target", "options", "providers", "provider_options", "portable", "memory_limit"]
    assert list(parameters) == [*own, *COMPILE_OPTIONS]


@pytest.mark.parametrize("name", FIELDS)
def test_each_option_is_described_once_and_shown_wherever_it_is_a_keyword(name: str) -> None:
    entry = option_docs()[name]
    assert entry.startswith(f"    {name}: ")
    assert entry.endswith(".")
    assert entry in inspect.getdoc(parallax.InferenceSession)
    assert (entry in inspect.getdoc(parallax.compile)) is (name in COMPILE_OPTIONS)


def test_docstrings_keep_what_follows_the_keywords() -> None:
    for function in (parallax.InferenceSession, parallax.compile):
        doc = inspect.getdoc(function)
        assert doc.index("    keywords: ") < doc.index("    threads: ") < doc.index("Raises:") < doc.index("Example::")


def test_without_docstrings_nothing_is_put_together() -> None:
    assert with_option_docs(None, FIELDS) is None
    assert with_option_docs("Says nothing of keywords.", FIELDS) == "Says nothing of keywords."


# -- the record -------------------------------------------------------------------------------------------------------


def test_a_record_and_its_fields_as_keywords_are_the_same() -> None:
    by_record = parallax.InferenceSession(MODEL, options=parallax.Options(threads=2, split="always"))
    by_keywords = parallax.InferenceSession(MODEL, threads=2, split="always")
    assert by_record.plan == by_keywords.plan
    assert segments(by_record) > 1
    x = ramp(2, 4)
    np.testing.assert_allclose(by_record.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)


def test_values_are_checked_and_kept_in_one_form_when_the_record_is_made() -> None:
    options = parallax.Options(
        threads=np.int64(2), shapes={"x": [2, np.int64(4)]}, cache_dir="folder", backends=["cpu", "a", "a"]
    )
    assert options.shapes == {"x": (2, 4)}
    assert (options.cache_dir, options.backends, options.faults) == (Path("folder"), ("a",), FaultPolicy())
    assert type(options.threads) is int
    with pytest.raises(parallax.ConfigError, match="threads=0"):
        dataclasses.replace(options, threads=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.__setattr__("threads", 3)


def test_a_keyword_fills_what_the_record_leaves_at_its_default() -> None:
    options = parallax.Options(threads=2)
    session = parallax.InferenceSession(MODEL, options=options, split="always")
    assert segments(session) > 1
    assert options.split == "auto", "the caller's record is as it was"


@pytest.mark.parametrize(
    ("stated", "keyword"),
    [
        ({"threads": 2}, {"threads": 2}),
        ({"memory_budget": "1GiB"}, {"memory_budget": "1GiB"}),
        ({"shapes": {"x": (2, 4)}}, {"shapes": {"x": [2, 4]}}),
        ({"cache_dir": "a"}, {"cache_dir": Path("a")}),
    ],
)
def test_a_keyword_that_says_the_same_is_no_contradiction(stated: dict[str, Any], keyword: dict[str, Any]) -> None:
    parallax.InferenceSession(MODEL, options=parallax.Options(**stated), **keyword)


@pytest.mark.parametrize(
    ("stated", "keyword"),
    [
        ({"threads": 2}, {"threads": 1}),
        ({"threads": 2}, {"threads": None}),
        ({"split": "never"}, {"split": "auto"}),
        ({"memory_budget": 1.0}, {"memory_budget": 1}),
        ({"calibration": {"x": ramp(2, 4)}}, {"calibration": {"x": ramp(2, 4)}}),
    ],
)
def test_a_keyword_that_contradicts_the_record_is_refused(stated: dict[str, Any], keyword: dict[str, Any]) -> None:
    ((name, _),) = keyword.items()
    with pytest.raises(parallax.ConfigError, match=f"(?s){name}=.* contradicts options.{name}=") as caught:
        parallax.InferenceSession(MODEL, options=parallax.Options(**stated), **keyword)
    assert "leave one of them out" in str(caught.value)


@pytest.mark.parametrize("given", [onnxruntime.SessionOptions(), {"threads": 2}, 2])
def test_what_is_no_record_is_refused(given: Any) -> None:
    with pytest.raises(parallax.ConfigError, match=r"is no parallax\.Options"):
        parallax.InferenceSession(MODEL, options=given)


def test_a_share_of_memory_is_one_of_what_is_free_when_the_session_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parallax.Options(memory_budget="50%")
    monkeypatch.setattr("parallax.machine.free_memory_bytes", lambda: 1 << 30)
    assert parallax.InferenceSession(MODEL, options=options).memory().budget_bytes == 1 << 29
    monkeypatch.setattr("parallax.machine.free_memory_bytes", lambda: 1 << 31)
    assert parallax.InferenceSession(MODEL, options=options).memory().budget_bytes == 1 << 30


def test_a_record_travels_and_leaves_behind_what_cannot() -> None:
    every = parallax.Options(
        threads=2, tune=True, calibration={"x": ramp(2, 4)}, trace=TraceRecorder(), progress=print, idle_trim_s=7
    )
    carried = pickle.loads(pickle.dumps(every.carried()))
    assert carried == parallax.Options(threads=2, idle_trim_s=7)
    session = parallax.InferenceSession(MODEL, threads=2, split="always", trace=TraceRecorder(), progress=print)
    copy = pickle.loads(pickle.dumps(session))
    assert copy.plan == session.plan
    assert copy.trace is None


# -- compiling --------------------------------------------------------------------------------------------------------


def test_compile_takes_a_record(tmp_path: Path) -> None:
    options = parallax.Options(threads=2, split="always")
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", options=options)
    assert segments(parallax.InferenceSession(bundle, threads=2)) > 1
    with pytest.raises(parallax.ConfigError, match="threads=1 contradicts"):
        parallax.compile(MODEL, tmp_path / "m.plx", options=options, threads=1)


@pytest.mark.parametrize(
    "given",
    [
        {"verify": "full"},
        {"cache": True},
        {"idle_trim_s": 5},
        {"backends": ()},
        {"trace": TraceRecorder()},
        {"observers": [print]},
    ],
)
def test_compile_refuses_what_is_a_sessions_alone(given: dict[str, Any], tmp_path: Path) -> None:
    ((name, _),) = given.items()
    with pytest.raises(parallax.ConfigError, match=f"{name}= is an option of sessions"):
        parallax.compile(MODEL, tmp_path / "m.plx", options=parallax.Options(**given))
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        parallax.compile(MODEL, tmp_path / "m.plx", **given)
    assert list(tmp_path.iterdir()) == []


# -- split ------------------------------------------------------------------------------------------------------------


def test_always_is_what_a_least_gain_of_zero_is() -> None:
    always = parallax.InferenceSession(MODEL, threads=2, split="always")
    assert segments(always) > 1
    assert always.plan == parallax.InferenceSession(MODEL, threads=2, min_gain=0).plan
    assert always.plan.provenance.source == "forced"
    assert 'split="always"' in always.plan.provenance.reason


@pytest.mark.parametrize("keywords", [{"split": "never"}, {"policy": "sequential"}])
def test_never_keeps_the_model_whole_and_says_so(keywords: dict[str, Any]) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, **keywords)
    assert session.plan.is_whole
    assert 'split="never"' in session.plan.provenance.reason


@pytest.mark.parametrize(
    "keywords",
    [
        {"split": "never", "tune": True},
        {"split": "never", "min_gain": 0.1},
        {"split": "never", "min_gain": 0},
        {"split": "always", "tune": True},
        {"split": "always", "min_gain": 0.1},
        {"split": "always", "policy": "sequential"},
        {"min_gain": 0, "policy": "sequential"},
        {"min_gain": 0, "tune": True},
        {"split": "always", "policy": "heft"},
        {"split": "never", "policy": "greedy,partitions=3"},
        {"min_gain": 0, "policy": "heft"},
    ],
)
def test_options_that_exclude_each_other_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(parallax.ConfigError, match="exclude each other") as caught:
        parallax.Options(**keywords)
    for name in keywords:
        assert name in caught.value.what
    assert "leave one of them out" in (caught.value.fix or "")


def test_a_placer_as_an_object_and_a_forced_split_exclude_each_other() -> None:
    with pytest.raises(parallax.ConfigError, match='split="always" and policy=Heft exclude each other'):
        parallax.Options(split="always", policy=PLACERS["heft"]())


def test_always_and_a_least_gain_of_zero_do_not_exclude_each_other() -> None:
    assert segments(parallax.InferenceSession(MODEL, threads=2, split="always", min_gain=0)) > 1


def test_given_session_options_do_not_keep_a_model_whole_that_is_always_to_be_split() -> None:
    asked = onnxruntime.SessionOptions()
    assert segments(parallax.InferenceSession(MODEL, asked, threads=2, split="always")) > 1
    unasked = parallax.InferenceSession(MODEL, asked, threads=2)
    assert 'split="always"' in unasked.plan.provenance.reason


def test_a_bundle_has_decided_whether_the_model_is_split(tmp_path: Path) -> None:
    split = parallax.compile(MODEL, tmp_path / "split.plx", threads=2, split="always")
    whole = parallax.compile(MODEL, tmp_path / "whole.plx", threads=2, split="never")
    assert segments(parallax.InferenceSession(split, threads=2, split="always")) > 1
    assert parallax.InferenceSession(whole, threads=2, split="never").plan.is_whole
    for bundle, asked in ((split, "never"), (whole, "always")):
        with pytest.raises(parallax.ConfigError, match="split= is decided when a bundle is compiled"):
            parallax.InferenceSession(bundle, threads=2, split=asked)


def test_a_bundle_remembers_it_in_the_terms_of_its_format(tmp_path: Path) -> None:
    recorded = read_manifest(parallax.compile(MODEL, tmp_path / "m.plx", threads=2, split="always"))[0].options
    assert (recorded.policy, recorded.min_gain) == ("adaptive", "0.0")
    recorded = read_manifest(parallax.compile(MODEL, tmp_path / "m.plx", threads=2, split="never"))[0].options
    assert (recorded.policy, recorded.min_gain) == ("sequential", None)


@pytest.mark.parametrize("name", list(OPTION_RULES))
def test_what_the_planner_goes_by_is_what_was_given(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "threads": 2, "policy": "sequential", "split": "never", "shapes": {"x": (2, 4)},
        "calibration": {"x": ramp(2, 4)}, "tune": True, "min_gain": 0.5, "cache_dir": tmp_path, "progress": print,
        "memory_budget": "1GiB", "trace": TraceRecorder(), "verify": "full", "cache": True, "idle_trim_s": 3.0,
        "backends": ("openvino",), "faults": FaultPolicy(tolerated=5), "observers": (print,), "adapt": True,
        "margin": 0.2, "padding": "trim", "objective": "throughput",
        "slim": True,
    }  # fmt: skip
    assert set(given) == set(OPTION_RULES), "give the new option a value here that is not its default"
    options = PlanningOptions.of(parallax.Options(**{name: given[name]}))
    if name != "progress":  # which is wrapped, so that its failure ends no work
        assert getattr(options, name) == given[name]
    assert getattr(options, name) != getattr(PlanningOptions.of(parallax.Options()), name)
    assert options.budget_bytes == (1 << 30 if name == "memory_budget" else None)
