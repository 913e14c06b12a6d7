"""Every dispatcher made by a test is strict, and its whole state is judged once more when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from parallax.schedule import Dispatcher
from parallax.schedule._verify_state import verify_state


@pytest.fixture
def dispatch() -> Iterator[Callable[..., Dispatcher]]:
    made: list[Dispatcher] = []

    def make(table: object, **settings: object) -> Dispatcher:
        dispatcher = Dispatcher(table, **{"cores": 2, "lanes": 2, "strict": True, **settings})  # type: ignore[arg-type]
        made.append(dispatcher)
        return dispatcher

    yield make
    for dispatcher in made:
        verify_state(dispatcher)
