"""The rules that a test run keeps by itself: what may be skipped where, and which slow tests have their turn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests._rotation import in_turn, turn_of
from tests._skips import AllowedSkip, read_allowed

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]

SOME_TESTS = """
    import pytest

    @pytest.mark.skip(reason="openvino is not installed")
    def test_of_a_backend(): ...

    def test_of_permissions():
        pytest.skip("this user may read everything")

    @pytest.mark.xfail(reason="known", strict=True)
    def test_that_is_known_to_fail():
        assert False

    def test_that_passes(): ...
"""
SLOW_TESTS = """
    import pytest

    @pytest.mark.slow
    @pytest.mark.parametrize("number", range(6))
    def test_of_minutes(number): ...

    def test_of_seconds(): ...
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of its own with these rules; the run of these tests must not tell it anything."""
    for name in ("CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PARALLAX_SLOW_TURN", "PARALLAX_SLOW_DEADLINE"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(f"[pytest]\npythonpath = {ROOT}\nmarkers = slow: minutes\n")
    folder = pytester.mkdir("tests")
    for source in (ROOT / "tests" / "conftest.py", *(ROOT / "tests").glob("_*.py"), ROOT / "tests/allowed_skips.toml"):
        (folder / source.name).write_bytes(source.read_bytes())
    return pytester


def run(project: pytest.Pytester, tests: str, *arguments: str, module: str = "model/test_bad_models.py") -> str:
    """What pytest prints about these tests."""
    place = project.path / "tests" / module
    place.parent.mkdir(exist_ok=True)
    place.write_text(re.sub("^    ", "", tests, flags=re.MULTILINE))
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-ra", *arguments).stdout.str()


@pytest.mark.parametrize("value", [None, "", "false", "0"])
def test_elsewhere_skipped_tests_are_skipped(project, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("CI", value)
    assert "1 passed, 2 skipped, 1 xfailed" in run(project, SOME_TESTS)


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_in_continuous_integration_a_skip_that_is_not_listed_fails_by_name_and_reason(project, monkeypatch, workers):
    monkeypatch.setenv("CI", "true")
    printed = run(project, SOME_TESTS, *workers)
    assert "1 passed, 1 skipped, 1 xfailed, 1 error" in printed
    assert "tests/model/test_bad_models.py::test_of_a_backend was skipped: openvino is not installed" in printed
    assert "tests/allowed_skips.toml" in printed


def test_what_is_allowed_to_one_test_is_not_allowed_to_another(project, monkeypatch):
    monkeypatch.setenv("CI", "true")
    printed = run(project, SOME_TESTS, module="model/test_others.py")
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in printed
    assert "tests/model/test_others.py::test_of_permissions was skipped: this user may read everything" in printed


def test_in_continuous_integration_a_skipped_module_fails(project, monkeypatch):
    monkeypatch.setenv("CI", "true")
    printed = run(project, "    import pytest\n    pytest.importorskip('openvino_of_another_world')\n")
    assert "test_bad_models.py was skipped: could not import 'openvino_of_another_world'" in printed
    assert "1 error" in printed


def test_reasons_are_matched_whole_and_brackets_are_no_classes():
    entry = AllowedSkip(tests="tests/a.py::test[x]*", reason="no cores", why="")
    assert entry.covers("tests/a.py::test[x]-1", "no cores")
    assert not entry.covers("tests/a.py::testx", "no cores")
    assert not entry.covers("tests/a.py::test[x]", "no cores, no backend")


def test_the_list_says_why_and_excuses_no_backend():
    for entry in read_allowed():
        assert entry.why
        for lacking in ("openvino is not installed: pip install", "the WebGPU plugin is not installed", "swiftshader"):
            assert not entry.covers("tests/backends/test_backend_contract.py::test[openvino]", lacking)


def test_every_slow_test_begins_some_turn_and_is_in_all_of_them():
    names = [f"tests/a.py::test[{number}]" for number in range(7)]
    turns = [in_turn(names, turn) for turn in range(7)]
    assert {turn[0] for turn in turns} == set(range(7))
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert in_turn(names, 9) == turns[2]
    # A further test has its place, and leaves the others in their order.
    more = in_turn(["tests/b.py::test", *names], 0)
    assert [place - 1 for place in more if place] == turns[0]
    assert in_turn([], 3) == []


def test_a_turn_follows_from_the_commit_and_without_one_from_the_day(tmp_path):
    assert turn_of(tmp_path, 86400.0 * 5 + 10) == (5, "day 5")


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_slow_tests_run_in_turn_after_the_others_and_the_run_says_which(project, workers):
    printed = run(project, SLOW_TESTS, "-m", "slow or not slow", "--slow-minutes", "5", *workers)
    assert "6 of 6 slow tests ran in this turn (day " in printed
    assert "    6 of 6     tests/model/test_bad_models.py::test_of_minutes" in printed
    assert "7 passed" in printed.splitlines()[-1]


def test_when_the_time_is_used_up_the_rest_is_left_to_others(project, monkeypatch):
    monkeypatch.setenv("CI", "true")
    printed = run(project, SLOW_TESTS, "-m", "slow or not slow", "--slow-minutes", "0")
    assert "0 of 6 slow tests ran in this turn" in printed
    assert "1 passed, 6 skipped" in printed.splitlines()[-1]


def test_slow_tests_are_left_out_by_default(project):
    assert "slow suites" not in run(project, SLOW_TESTS, "-m", "not slow")
