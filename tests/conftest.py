"""What every test gets: reproducible property tests, and no trace left in the user's cache."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from tests._older_runtimes import skip_older
from tests._rotation import Rotation, add_options
from tests._skips import SkipsAreFailures, read_allowed

# The same examples on every run and every machine, and no deadline: figures of time belong to benchmarks.
# HYPOTHESIS_PROFILE=explore looks further, with fresh examples.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what an older ONNX Runtime does otherwise by itself (`tests._older_runtimes`)."""
    skip_older(items)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `tests._rotation`."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give the run a cache folder of its own, so that it neither reads nor leaves anything in the user's.

    In continuous integration skips are failures (`tests._skips`); with ``--slow-minutes`` the slow suites take turns.

    A shell without job control has SIGINT ignored by what it starts in the background, and so by all that this starts:
    tests of Ctrl-C would wait in vain. With a handler here, the processes that tests start have it as usual.

    The folder is set before any test module is imported. Worker processes inherit it from the one that starts
    them, so a zoo model is made once per run. (Through XDG_CACHE_HOME: Linux, other Unixes and macOS.)
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        config.pluginmanager.register(SkipsAreFailures(read_allowed()), "parallax-skips")
    minutes: float | None = config.getoption("--slow-minutes")
    if minutes is not None:
        config.pluginmanager.register(Rotation(config, minutes), "parallax-rotation")
    for name in ("PARALLAX_CACHE_DIR", "PARALLAX_THREADS", "PARALLAX_MEMORY_BUDGET"):
        os.environ.pop(name, None)  # a developer's own settings are no part of what is tested
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="parallax-tests-", ignore_cleanup_errors=True)
    outside = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = folder.name

    def restore() -> None:
        if outside is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = outside
        folder.cleanup()

    config.add_cleanup(restore)
