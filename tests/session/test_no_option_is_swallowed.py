"""An option that is misspelt, of the wrong type or out of range is refused at once, whichever function it is given to.

Values of the options of sessions are tried one by one in `test_keyword_values`, those of all other parameters in
`test_every_call`; here every option is misspelt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import parallax
from parallax.options._options import COMPILE_OPTIONS, OPTION_RULES
from tests.session._dropin import branches_model, ramp

MODEL = branches_model().SerializeToString()
STOCK = ["sess_options", "providers", "provider_options", "disabled_optimizers", "read_config_from_model"]


def misspelt(name: str) -> str:
    """Without its last letter but one, as ``buget``."""
    return name[:-2] + name[-1]


def given(**options: Any) -> dict[str, Any]:
    """Options that no type checker sees."""
    return options


def _session(**options: Any) -> Any:
    return parallax.InferenceSession(MODEL, **options)


def _check(error: BaseException, name: str) -> None:
    assert isinstance(error, parallax.ConfigError)
    assert isinstance(error, TypeError), "as Python says it"
    assert misspelt(name) in error.what
    assert error.fix is not None
    assert f"did you mean {name}=?" in error.fix


@pytest.mark.parametrize("name", [*OPTION_RULES, *STOCK, "options"])
def test_a_session_refuses_a_misspelt_option_and_names_the_right_one(name: str) -> None:
    with pytest.raises(parallax.ConfigError) as caught:
        _session(**{misspelt(name): 1})
    _check(caught.value, name)


@pytest.mark.parametrize("name", OPTION_RULES)
def test_a_record_refuses_a_misspelt_option_and_names_the_right_one(name: str) -> None:
    with pytest.raises(parallax.ConfigError) as caught:
        parallax.Options(**{misspelt(name): 1})
    _check(caught.value, name)


@pytest.mark.parametrize(
    "name", [*COMPILE_OPTIONS, "portable", "memory_limit", "options", "providers", "provider_options"]
)
def test_compiling_refuses_a_misspelt_option_and_writes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(parallax.ConfigError) as caught:
        parallax.compile(MODEL, tmp_path / "m.plx", **{misspelt(name): 1})
    _check(caught.value, name)
    assert list(tmp_path.iterdir()) == []


def test_it_is_refused_before_the_model_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(parallax.ConfigError, match=r"memory_buget.*did you mean memory_budget=\?"):
        parallax.InferenceSession(tmp_path / "there is none.onnx", **given(memory_buget="1MiB"))
    with pytest.raises(parallax.ConfigError, match=r"thread.*did you mean threads=\?"):
        parallax.InferenceSession(tmp_path / "there is none.onnx", **given(thread=2))


def test_what_is_like_nothing_is_refused_without_a_guess() -> None:
    with pytest.raises(parallax.ConfigError, match="help") as caught:
        _session(xyzzy=1)
    assert "did you mean" not in str(caught.value)


def test_compiling_says_where_an_option_of_sessions_belongs(tmp_path: Path) -> None:
    with pytest.raises(parallax.ConfigError, match="give it to the InferenceSession") as caught:
        parallax.compile(MODEL, tmp_path / "m.plx", **given(cache=True))
    assert "did you mean" not in str(caught.value)


def test_what_onnxruntimes_own_class_reads_is_accepted() -> None:
    given = {"enable_fallback": 0, "disabled_optimizers": ["ConstantFolding"], "read_config_from_model": 0}
    onnxruntime.InferenceSession(MODEL, **given)
    _session(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"enable_fallback": "perhaps"},
        {"enable_fallback": None},
        {"read_config_from_model": "perhaps"},
        {"disabled_optimizers": "ConstantFolding"},
        {"disabled_optimizers": 5},
    ],
    ids=str,
)
def test_values_that_onnxruntime_makes_nothing_of_are_refused_by_name(given: Mapping[str, Any]) -> None:
    with pytest.raises(parallax.ConfigError, match=next(iter(given))):
        _session(**given)


# -- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        split: parallax.compile(MODEL, folder / f"{split}.plx", threads=2, split=split) for split in ("always", "never")
    }


@pytest.mark.parametrize("split", ["always", "never"])
@pytest.mark.parametrize(
    "given",
    [
        {"policy": "heft"},
        {"min_gain": 0.1},
        {"shapes": {"x": (2, 4)}},
        {"calibration": {"x": ramp(2, 4)}},
        {"tune": True},
        {"cache": True},
        {"backends": ("openvino",)},
        {"adapt": True},
        {"padding": "trim"},
        {"slim": True},
    ],
    ids=str,
)
def test_a_bundle_refuses_what_it_cannot_follow(bundles: dict[str, Path], split: str, given: Mapping[str, Any]) -> None:
    (name,) = given
    with pytest.raises(parallax.ConfigError, match=f"{name}="):
        parallax.InferenceSession(bundles[split], threads=2, **given)


def test_a_bundle_takes_what_asks_for_what_it_is(bundles: dict[str, Path]) -> None:
    assert len(parallax.InferenceSession(bundles["always"], threads=2, min_gain=0).plan.segments) > 1
    assert parallax.InferenceSession(bundles["never"], threads=2, policy="sequential").plan.is_whole
    with pytest.raises(parallax.ConfigError, match="min_gain= is decided"):
        parallax.InferenceSession(bundles["never"], threads=2, min_gain=0)
    with pytest.raises(parallax.ConfigError, match="policy= is decided"):
        parallax.InferenceSession(bundles["always"], threads=2, policy="sequential")
