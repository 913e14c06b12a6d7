"""Every public function and method, with each of its parameters misspelt, of a wrong type and out of range.

Which there are follows from the signatures, so that what is added is missed by the table of wrong values. The options
of sessions and of ``compile`` have theirs in `test_keyword_values`, and those of the command line in
`tests/cli/test_options.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.backends import FaultPolicy, open_backend
from parallax.options._options import COMPILE_OPTIONS, OPTION_RULES
from parallax.serving import Batcher
from tests.session import test_keyword_values as values
from tests.session._dropin import branches_answer, branches_model, ramp
from tests.session.test_no_option_is_swallowed import given, misspelt

MODEL = branches_model().SerializeToString()
X = {"x": ramp(2, 4)}
CPU = ["CPUExecutionProvider"]
MODES: dict[str, dict[str, Any]] = {"whole": {}, "split": {"split": "always", "threads": 2}}

NO_NAMES = ["y", b"y", 5, ["z"], [5]]
NO_FEEDS = [5, None, "x", [1], {}, {"z": ramp(2, 4)}, {5: 1}, {"x": object()}, {"x": ramp(2, 5)}]
NO_FEEDS += [{"x": ramp(2, 4).astype(np.int64)}, {"x": "words"}]
NO_RUN_OPTIONS = [5, "x", {"terminate": True}, onnxruntime.SessionOptions()]
NO_PLAN = [5, None, "x", parallax.Options()]
NO_MILLISECONDS = ["5", 0, -1, float("nan"), float("inf"), True, [1]]
NO_COUNT = ["2", 0, -1, 1.5, True]
NO_OPTIONS_OF_PROVIDERS = [5, ["a"], [{}, {}]]


class Call(NamedTuple):
    """How a method is called rightly, and the wrong values of each of its parameters."""

    right: Mapping[str, Any]
    wrong: Mapping[str, list[Any]]


SESSION: dict[str, Call] = {
    "run": Call(
        {"output_names": None, "input_feed": X},
        {"output_names": NO_NAMES, "input_feed": NO_FEEDS, "run_options": NO_RUN_OPTIONS},
    ),
    "arun": Call(
        {"output_names": None, "input_feed": X},
        {"output_names": NO_NAMES, "input_feed": NO_FEEDS, "run_options": NO_RUN_OPTIONS},
    ),
    "run_async": Call(
        {"output_names": None, "input_feed": X, "callback": print, "user_data": None},
        {
            "output_names": ["y", b"y", 5, [5]],  # a name that there is not, and feeds, are told to the callback
            "input_feed": [5, None, "x", [1], {}, {5: 1}],
            "callback": [5, "x"],
            "user_data": [],  # whatever it is, it is handed on
            "run_options": NO_RUN_OPTIONS,
        },
    ),
    "run_with_ort_values": Call(
        {"output_names": ["y"], "input_dict_ort_values": {"x": onnxruntime.OrtValue.ortvalue_from_numpy(X["x"])}},
        {"output_names": NO_NAMES, "input_dict_ort_values": [5, None, "x", X], "run_options": NO_RUN_OPTIONS},
    ),
    "run_with_iobinding": Call({}, {"iobinding": [5, None, "x", X], "run_options": []}),
    "run_many": Call({"feeds": [X]}, {"feeds": [5, None, "x", X, [5], [{}], [{"z": 1}], [{"x": object()}]]}),
    "batcher": Call(
        {},
        {
            "slo_ms": NO_MILLISECONDS,
            "max_batch": [*NO_COUNT, None],
            "max_queue": NO_COUNT,
            "pad": [5, "x", {"nowhere": 0}, {5: 0}, {"x": "a"}, {"x": None}],
            "examples": [5, "xy", [], [X], [5, 5], [{}, {}], [{"z": 1}] * 2, [{"x": "a"}] * 2, X],
        },
    ),
    "swap_plan": Call({"plan": parallax.InferenceSession(MODEL).plan}, {"plan": NO_PLAN, "reason": [5, None]}),
    "prepare_plan": Call({"plan": parallax.InferenceSession(MODEL).plan}, {"plan": NO_PLAN}),
    "use_prepared": Call({"opened": None, "reason": ""}, {"opened": [5, None, "x"], "reason": [5, None]}),
    "add_observer": Call({"observer": print}, {"observer": [5, None, "x"]}),
    "remove_observer": Call({"observer": print}, {"observer": []}),  # what was not attached is not attached afterwards
    "set_providers": Call(
        {"providers": CPU},
        {
            "providers": [5, "CPUExecutionProvider", ["NoSuchProvider"], [("CPUExecutionProvider", 5)]],
            "provider_options": NO_OPTIONS_OF_PROVIDERS,
        },
    ),
}
"""Methods of sessions that take anything."""

BATCHER: dict[str, Call] = {
    "submit": Call({"feeds": X}, {"feeds": NO_FEEDS, "deadline_ms": NO_MILLISECONDS, "client": [[], {}, ([],)]}),
    "asubmit": Call({"feeds": X}, {"feeds": NO_FEEDS, "deadline_ms": NO_MILLISECONDS, "client": [[], {}, ([],)]}),
    "close": Call({}, {"drain": ["no", 5, None]}),
}

OF_PACKAGE: dict[str, dict[str, list[Any]]] = {
    "InferenceSession": {
        "path_or_bytes": [5, None, [], b"no model"],
        "sess_options": [5, "x", {"threads": 2}],
        "providers": [5, [5], [("CPUExecutionProvider", 5)]],
        "provider_options": NO_OPTIONS_OF_PROVIDERS,
        "options": [5, "x", {"threads": 2}],
    },
    "compile": {
        "model": [5, None, [], b"no model"],
        "target": [5, None, "", b"m.plx"],
        "providers": [5, [5], ["CUDAExecutionProvider"], [("emulated:pixel-6-gpu", 5)]],
        "provider_options": NO_OPTIONS_OF_PROVIDERS,
        "options": [5, "x", {"threads": 2}, parallax.Options(cache=True)],
        "portable": ["yes", 1, None],
        "memory_limit": ["much", 0, -1, True, float("nan")],
    },
    "share_thread_pool": {"threads": ["2", 0, -1, 1.5, True]},
    "Options": {},
    "Plan": {"value": [5, None, "x", b"[]", {}, []]},
    "MemoryUsage": {},
    "Patch": {},
    "patch": {},
    "unpatch": {},
}
"""What the package exports beside errors, with the wrong values of its parameters. The fields of the records that it
returns are not given by callers."""

OF_FAULTS: dict[str, list[Any]] = {
    "tolerated": ["3", 0, -1, 1.5, True],
    "retry_s": ["1", -1, float("nan"), True],
    "deadline_s": ["2", 0, -1, float("nan"), True],
    "checks_nan": ["yes", 1, None],
}

FOR_FOLLOWERS = {"open_narrow", "planning_request", "share_weights", "sharing", "use_runner"}
"""What `parallax.adapting` asks of a session; people have no use for it."""


def methods(kind: type, base: type) -> Iterator[str]:
    """Public methods that a class has by itself, and takes something."""
    for name in dir(kind):
        if name.startswith("_") or name in FOR_FOLLOWERS:
            continue
        method = inspect.getattr_static(kind, name)
        is_own = method is not inspect.getattr_static(base, name, None)
        if is_own and inspect.isfunction(method) and len(inspect.signature(method).parameters) > 1:
            yield name


def parameters(function: Callable[..., Any]) -> set[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        entry.name
        for entry in inspect.signature(function).parameters.values()
        if entry.name != "self" and entry.kind not in kinds
    }


def test_every_method_and_parameter_is_in_the_tables() -> None:
    assert {*methods(parallax.InferenceSession, onnxruntime.InferenceSession), "set_providers"} == SESSION.keys()
    assert set(methods(Batcher, object)) == BATCHER.keys()
    for kind, table in ((parallax.InferenceSession, SESSION), (Batcher, BATCHER)):
        for name, call in table.items():
            assert parameters(getattr(kind, name)) == call.wrong.keys(), name


def test_every_function_of_the_package_and_every_option_is_in_the_tables() -> None:
    public = {
        name
        for name in parallax.__all__
        if callable(value := getattr(parallax, name)) and not (isinstance(value, type) and issubclass(value, Exception))
    }
    assert public == OF_PACKAGE.keys()
    for name in ("InferenceSession", "compile"):
        assert parameters(getattr(parallax, name)) - OPTION_RULES.keys() == OF_PACKAGE[name].keys(), name
    for name in ("share_thread_pool", "patch", "unpatch"):
        assert parameters(getattr(parallax, name)) == OF_PACKAGE[name].keys(), name
    assert parameters(parallax.Options) == OPTION_RULES.keys()
    tried = {name for name, _ in (*values.WRONG, *values.ONLY_SESSIONS)}
    assert tried == OPTION_RULES.keys()
    assert {name for name, _ in values.WRONG} == set(COMPILE_OPTIONS)
    assert parameters(FaultPolicy) == OF_FAULTS.keys()


def cases(table: Mapping[str, Call]) -> list[Any]:
    return [
        pytest.param(name, parameter, value, id=f"{name}-{parameter}-{number}")
        for name, call in table.items()
        for parameter, wrong in call.wrong.items()
        for number, value in enumerate(wrong)
    ]


@pytest.fixture(scope="module", params=MODES)
def session(request: pytest.FixtureRequest) -> Iterator[parallax.InferenceSession]:
    with parallax.InferenceSession(MODEL, **MODES[request.param]) as opened:
        yield opened


@pytest.fixture(scope="module")
def batcher(session: parallax.InferenceSession) -> Iterator[Batcher]:
    with session.batcher() as made:
        yield made


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    made = function(**arguments)
    return asyncio.run(made) if inspect.iscoroutine(made) else made


def _is_clear(error: BaseException) -> None:
    """Of our tree, or in ONNX Runtime's own words; never what a wrong argument lacks inside."""
    assert not isinstance(error, parallax.InternalError)
    text = str(error)
    assert text
    if not isinstance(error, parallax.ParallaxError):
        assert isinstance(error, ValueError | RuntimeError | TypeError)
        for leak in ("has no attribute", "object is not", "has no len", "incompatible function arguments"):
            assert leak not in text


@pytest.mark.filterwarnings("ignore:.*NoSuchProvider:UserWarning")
@pytest.mark.parametrize(("name", "parameter", "value"), cases(SESSION))
def test_a_method_of_a_session_refuses_a_wrong_value_and_the_session_stays_as_it_was(
    name: str, parameter: str, value: Any, session: parallax.InferenceSession
) -> None:
    plan = session.plan
    with pytest.raises(Exception) as caught:
        _call(getattr(session, name), {**SESSION[name].right, parameter: value})
    _is_clear(caught.value)
    assert session.plan == plan
    assert session.get_providers() == CPU
    np.testing.assert_allclose(session.run(None, X)[0], branches_answer(X["x"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "parameter", "value"), cases(BATCHER))
def test_a_method_of_a_batcher_refuses_a_wrong_value_and_the_batcher_goes_on(
    name: str, parameter: str, value: Any, batcher: Batcher
) -> None:
    taken = batcher.stats().taken
    with pytest.raises(Exception) as caught:
        _call(getattr(batcher, name), {**BATCHER[name].right, parameter: value})
    _is_clear(caught.value)
    assert batcher.stats().taken == taken
    np.testing.assert_allclose(batcher.submit(X).result()[0], branches_answer(X["x"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SESSION)
def test_a_method_of_a_session_refuses_a_misspelt_keyword(name: str, session: parallax.InferenceSession) -> None:
    for parameter in SESSION[name].wrong:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{misspelt(parameter)}'"):
            _call(getattr(session, name), {**SESSION[name].right, misspelt(parameter): None})


@pytest.mark.parametrize("name", BATCHER)
def test_a_method_of_a_batcher_refuses_a_misspelt_keyword(name: str, batcher: Batcher) -> None:
    for parameter in BATCHER[name].wrong:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{misspelt(parameter)}'"):
            _call(getattr(batcher, name), {**BATCHER[name].right, misspelt(parameter): None})


RIGHT: dict[str, Callable[[], dict[str, Any]]] = {
    # Otherwise it goes on without what it cannot have of providers, as ONNX Runtime does, and the plan says so.
    "InferenceSession": lambda: {"path_or_bytes": MODEL, "providers": CPU, "enable_fallback": 0},
    "compile": lambda: {"model": MODEL, "target": "made.plx", "providers": CPU},
    "share_thread_pool": dict,
    "patch": dict,
    "unpatch": dict,
}


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        pytest.param(name, parameter, value, id=f"{name}-{parameter}-{number}")
        for name, table in OF_PACKAGE.items()
        if name in RIGHT
        for parameter, wrong in table.items()
        for number, value in enumerate(wrong)
    ],
)
def test_a_function_refuses_a_wrong_value_and_nothing_is_written(
    name: str, parameter: str, value: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:
        getattr(parallax, name)(**{**RIGHT[name](), parameter: value})
    _is_clear(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", RIGHT)
def test_a_function_refuses_a_misspelt_keyword(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for parameter in (*OF_PACKAGE[name], "module"):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            getattr(parallax, name)(**{**RIGHT[name](), **given(**{misspelt(parameter): None})})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", OF_PACKAGE["Plan"]["value"], ids=str)
def test_a_plan_is_read_of_nothing_else(value: Any) -> None:
    with pytest.raises(parallax.PlanError):
        parallax.Plan.from_json(value)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, wrong in OF_FAULTS.items() for value in wrong], ids=str
)
def test_a_policy_for_faults_is_made_of_nothing_else(name: str, value: Any) -> None:
    with pytest.raises(parallax.ConfigError, match=name):
        FaultPolicy(**{name: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cup", {}),
        ("emulated:no-such-phone", {}),
        ("emulated:pixel-6-gpu", {"sped": 2}),
        ("emulated:pixel-6-gpu", {"speed": "quick"}),
        ("emulated:pixel-6-gpu", {"float16": 2}),
        ("emulated:pixel-6-gpu", {"condition": "gone.json"}),
    ],
)
def test_a_backend_is_opened_with_nothing_else(name: str, options: Mapping[str, Any]) -> None:
    with pytest.raises(parallax.ConfigError):
        open_backend(name, options)
