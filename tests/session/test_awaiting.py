"""``await session.arun(...)``: the event loop goes on, and a task that is cancelled stops its run."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from tests.session._dropin import (
    ENDLESS,
    FOREVER,
    branches_answer,
    branches_model,
    on_parallax_sessions,
    parse,
    ramp,
)

MODEL = branches_model().SerializeToString()
SessionType = type[parallax.InferenceSession]


@on_parallax_sessions
def test_it_returns_what_run_returns(session_class: SessionType) -> None:
    session = session_class(MODEL)
    feeds = [{"x": ramp(2, 4, start=float(number))} for number in range(8)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(session.arun(None, fed) for fed in feeds))

    for fed, (answer,) in zip(feeds, asyncio.run(main()), strict=True):
        np.testing.assert_allclose(answer, branches_answer(fed["x"]), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(answer, session.run(None, fed)[0])


@on_parallax_sessions
def test_errors_are_those_of_run(session_class: SessionType) -> None:
    session = session_class(MODEL)
    for names, fed in ((["nothing"], {"x": ramp(2, 4)}), (None, {"y": ramp(2, 4)}), (None, {"x": ramp(2, 5)})):
        with pytest.raises(Exception) as wanted:
            session.run(names, fed)
        with pytest.raises(type(wanted.value)):
            asyncio.run(session.arun(names, fed))


@on_parallax_sessions
def test_other_tasks_go_on_meanwhile(session_class: SessionType) -> None:
    session = session_class(parse(ENDLESS).SerializeToString())

    async def main() -> int:
        ticks = 0
        run = asyncio.create_task(session.arun(["last"], {"trips": np.array(40_000, np.int64), "x": ramp(4)}))
        while not run.done():
            await asyncio.sleep(0.001)
            ticks += 1
        await run
        return ticks

    assert asyncio.run(main()) > 1


@on_parallax_sessions
@pytest.mark.parametrize("is_given", [False, True], ids=["no options", "the caller's options"])
def test_a_cancelled_task_stops_waiting_and_its_run_ends(session_class: SessionType, is_given: bool) -> None:
    session = session_class(parse(ENDLESS).SerializeToString())
    given = onnxruntime.RunOptions() if is_given else None

    async def main() -> None:
        run = asyncio.create_task(session.arun(["last"], {"trips": FOREVER, "x": ramp(4)}, given))
        await asyncio.sleep(0.2)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    # A run that were not stopped would keep the loop's threads, and so this, from ending.
    asyncio.run(main())
    if given is not None:
        deadline = time.monotonic() + 30
        while given.terminate and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not given.terminate, "the caller's object is as it was"
        session.run(["last"], {"trips": np.array(1, np.int64), "x": ramp(4)}, given)
    session.run(["last"], {"trips": np.array(1, np.int64), "x": ramp(4)})


@on_parallax_sessions
def test_a_time_limit_stops_a_run(session_class: SessionType) -> None:
    session = session_class(parse(ENDLESS).SerializeToString())

    async def main() -> None:
        async with asyncio.timeout(0.2):
            await session.arun(["last"], {"trips": FOREVER, "x": ramp(4)})

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_a_closed_session_says_so() -> None:
    session = parallax.InferenceSession(MODEL)
    session.close()
    with pytest.raises(parallax.SessionClosedError):
        asyncio.run(session.arun(None, {"x": ramp(2, 4)}))
