"""Every option has its effect in every mode, or keeps the model whole with a reason that names it.

Modes are how a session comes to its plan: by default, with its callers followed, split on demand, from a plan that
tuning kept, inside a memory budget, beside a device, without what zeros make superfluous, from a bundle, from the cache
of bundles.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import parallax
from parallax.model import load_model
from parallax.opening._plan_choice import plan_request
from parallax.options._config_keys import DECIDED_WHEN_COMPILED, FOR_THE_WHOLE_MODEL, INHERITED, WITHOUT_EFFECT
from parallax.options._options import Options, PlanningOptions
from parallax.planner._kept import remember_plan
from parallax.planner._tables import forced_plan
from tests.session._option_rows import (
    ARGUMENT_ROWS,
    ROWS_OF_ALL,
    RUN_ROWS,
    SESSION_ROWS,
    Opened,
    Row,
    Scene,
    make_adapter,
    make_model,
)

DEVICE = "emulated:pixel-6-gpu"
SHAPES = {"x": (2, 4), "rows": (1,)}
SPLIT_MODES = ("split", "kept plan", "budget", "device", "cached split", "slim split")
MODES = ("default", "throughput", "slim", *SPLIT_MODES, "cached", "bundle", "split bundle")
TUNED = pytest.param("tuned", marks=pytest.mark.slow)


class Places:
    """Models and bundles that all rows share; nothing writes to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_model(folder)
        self.adapter = make_adapter(folder)
        self.bundle = parallax.compile(self.model, folder / "whole.plx", policy="sequential")
        self.split_bundle = parallax.compile(self.model, folder / "split.plx", min_gain=0, threads=2)
        self.kept_plans = folder / "plans"

    def keep_plan(self, session_options: Any) -> None:
        """As if tuning had found that this model is best split."""
        model = load_model(self.model)
        options = PlanningOptions.of(Options(threads=2, cache_dir=self.kept_plans, backends=()))
        remember_plan(plan_request(model, options, session_options), forced_plan(model, cores=2))


@pytest.fixture(autouse=True)
def default_severity() -> None:
    """The runtime's own, which the command line raises for the whole process, and with it runs' messages."""
    onnxruntime.set_default_logger_severity(2)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("options"))


@pytest.fixture
def scene(places: Places, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Scene:
    return Scene(
        folder=tmp_path,
        model=places.model,
        adapter=places.adapter,
        log=lambda: capfd.readouterr().err,
        calls=[],
    )


def _stock(row: Row, mode: str, places: Places, scene: Scene, *, has_option: bool = True) -> Any:
    """What ONNX Runtime's own session shows; with providers where the mode has some, which come before options'."""
    source = places.model.read_bytes() if row.as_bytes else places.model
    own = {"providers": ["CPUExecutionProvider"]} if mode == "device" else {}
    return _seen(
        row,
        scene,
        lambda options, **given: onnxruntime.InferenceSession(source, options, **{**own, **given}),
        has_option,
    )


def _seen(row: Row, scene: Scene, opened: Callable[..., Any], has_option: bool = True) -> Any:
    """What the row's effect looks like: a value, or the class of the runtime's exception that stands for it."""
    options = run_options = None
    if has_option and row.session is not None:
        options = onnxruntime.SessionOptions()
        row.session(options, scene)
    if has_option and row.run is not None:
        run_options = onnxruntime.RunOptions()
        row.run(run_options, scene)
    scene.log()
    scene.calls.clear()
    try:
        session = opened(options, **(row.arguments if has_option else {}))
        return row.observe(Opened(session=session, run_options=run_options), scene)
    except Exception as error:
        if type(error) is parallax.ConfigError:
            raise
        return next(kind for kind in type(error).__mro__ if kind.__module__ in ("builtins", _RUNTIME)).__name__


_RUNTIME = "onnxruntime.capi.onnxruntime_pybind11_state"


def _opener(mode: str, row: Row, places: Places, tmp_path: Path, sessions: list[Any]) -> Callable[..., Any]:
    source: Any = places.model.read_bytes() if row.as_bytes else places.model
    own: dict[str, Any] = {}
    if mode == "split":
        own = {"min_gain": 0, "threads": 2}
    elif mode == "kept plan":
        own = {"threads": 2, "cache_dir": places.kept_plans, "backends": ()}
    elif mode == "budget":
        own = {"min_gain": 0, "threads": 2, "memory_budget": "512MiB"}
    elif mode == "device":
        own = {"min_gain": 0, "threads": 2, "providers": [DEVICE, "CPUExecutionProvider"], "shapes": SHAPES}
    elif mode == "throughput":
        own = {"objective": "throughput"}
    elif mode == "slim":
        own = {"slim": True}
    elif mode == "slim split":
        own = {"slim": True, "min_gain": 0, "threads": 2}
    elif mode == "tuned":
        own = {"tune": True, "threads": 2, "cache_dir": places.folder / "tuned", "backends": ()}
    elif mode == "cached split":
        own = {"cache": True, "cache_dir": places.folder / "cache", "min_gain": 0, "threads": 2}
    elif mode == "cached":
        own = {"cache": True, "cache_dir": places.folder / "cache"}
    elif mode == "bundle":
        source = places.bundle
    elif mode == "split bundle":
        source = places.split_bundle

    def opened(options: Any, **arguments: Any) -> Any:
        if mode == "kept plan":
            places.keep_plan(options)
        if mode == "device" and "provider_options" in arguments:
            arguments = {**arguments, "providers": own["providers"], "provider_options": [{}]}
        elif mode == "device" and arguments.get("providers") == [5]:
            arguments = {**arguments, "providers": [*own["providers"], 5]}
        session = parallax.InferenceSession(source, options, **{**own, **arguments})
        sessions.append(session)
        return session

    return opened


@contextlib.contextmanager
def _refusal(text: str | None) -> Iterator[None]:
    if text is None:
        yield
    else:
        with pytest.raises(parallax.ConfigError, match=re.escape(text)):
            yield


@pytest.mark.filterwarnings("ignore:Specified")
@pytest.mark.parametrize("mode", [*MODES, TUNED])
@pytest.mark.parametrize("row", ROWS_OF_ALL, ids=lambda row: row.name)
def test_an_option_has_the_effect_it_has_in_onnxruntime(
    row: Row, mode: str, places: Places, scene: Scene, tmp_path: Path
) -> None:
    without = _stock(row, mode, places, scene, has_option=False)
    expected = _stock(row, mode, places, scene)
    assert expected != without or not row.is_visible or mode == "device", "the row has no effect to see"
    refused = row.refused if mode.endswith("bundle") else None
    if mode == "split bundle":
        refused = row.refused_split or refused
    sessions: list[Any] = []
    with _refusal(refused):
        assert _seen(row, scene, _opener(mode, row, places, tmp_path, sessions)) == expected
    if refused is not None or mode not in (*SPLIT_MODES, "tuned") or not sessions:
        return
    (session,) = sessions
    if row.whole is None:
        assert len(session.plan.segments) > 1 or mode == "tuned"
    else:
        assert len(session.plan.segments) == 1
        assert row.whole in session.plan.provenance.reason


@pytest.mark.parametrize("mode", MODES)
def test_without_options_the_modes_are_what_they_are_called(mode: str, places: Places, tmp_path: Path) -> None:
    row = Row(option="none", observe=lambda opened, scene: None)
    session = _opener(mode, row, places, tmp_path, [])(None)
    assert (len(session.plan.segments) > 1) == (mode in (*SPLIT_MODES, "split bundle"))
    on_device = any(segment.backend == DEVICE for segment in session.plan.segments)
    assert on_device == (mode == "device")


# --- Nothing is left out --------------------------------------------------------------------------


def _members(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_member_of_session_options_has_a_row() -> None:
    readers = {"get_session_config_entry", "has_providers"}
    elsewhere = {"register_custom_ops_library"}  # in a process of its own, below
    assert _members(onnxruntime.SessionOptions) == {row.option for row in SESSION_ROWS} | readers | elsewhere


def test_every_member_of_run_options_has_a_row() -> None:
    assert _members(onnxruntime.RunOptions) == {row.option for row in RUN_ROWS} | {"get_run_config_entry"}


def test_every_argument_of_the_constructor_has_a_row() -> None:
    made = onnxruntime.InferenceSession.__init__
    named = set(inspect.signature(made).parameters) - {"self", "kwargs"}
    further = set(re.findall(r"kwargs(?:\.get\(|\[)\"(\w+)\"", inspect.getsource(made)))
    assert {"disabled_optimizers", "enable_fallback"} < further
    assert named | further == {row.option for row in ARGUMENT_ROWS}


def test_every_config_key_of_the_installed_runtime_is_sorted() -> None:
    library = Path(onnxruntime.capi.onnxruntime_pybind11_state.__file__).read_bytes()
    found = {
        match.decode()
        for match in re.findall(rb"\0((?:session|optimization|mlas|ep)\.[A-Za-z0-9_.]{3,})(?=\0)", library)
    }
    assert len(found) > 60
    sorted_keys = {*INHERITED, *WITHOUT_EFFECT, *FOR_THE_WHOLE_MODEL}
    # Compilers keep the ends of some strings elsewhere.
    unsorted = {key for key in found if not any(known.startswith(key) for known in sorted_keys)}
    assert not unsorted
    assert len(sorted_keys) == len(INHERITED) + len(WITHOUT_EFFECT) + len(FOR_THE_WHOLE_MODEL)
    assert set(DECIDED_WHEN_COMPILED) <= sorted_keys
