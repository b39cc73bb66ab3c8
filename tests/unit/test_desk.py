"""The desk between slots and their workers, without Ray: who is given which run, and when a call comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from raytrain_nlp.tuning.mailbox import Desk


async def settled(call: Coroutine[Any, Any, Any]) -> asyncio.Task:
    """The call, after all that could happen has happened."""
    task = asyncio.ensure_future(call)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


def test_a_run_ends_when_all_ranks_have_ended_it() -> None:
    async def story() -> None:
        desk = Desk()
        waiting = [await settled(desk.next("slot", rank, -1)) for rank in (0, 1)]
        assert not any(task.done() for task in waiting)
        assert await desk.put("slot", "first") == 0
        assert [await task for task in waiting] == [(0, "first")] * 2
        result = await settled(desk.result("slot", 0))
        await desk.finish("slot", 0, 0, 2, {"result": 1}, 10)
        again = await settled(desk.next("slot", 0, 0))
        assert not result.done() and not again.done()  # the second rank is still at it
        await desk.finish("slot", 0, 1, 2, {"result": 2}, 30)
        assert await result == {"outcome": {"result": 1}, "restarts": 0, "memory": 30}
        assert await desk.put("slot", "second") == 1
        assert await again == (1, "second")

    asyncio.run(story())


def test_ranks_that_start_again_are_given_the_run_that_had_not_ended() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.put("slot", "spec")
        assert await desk.next("slot", 0, -1) == await desk.next("slot", 1, -1) == (0, "spec")
        await desk.finish("slot", 0, 0, 2, "ended just before the other died", 1)
        assert await desk.next("slot", 0, -1) == await desk.next("slot", 1, -1) == (0, "spec")
        await desk.finish("slot", 0, 1, 2, {}, 1)
        result = await settled(desk.result("slot", 0))
        assert not result.done()  # the first rank's end of before does not count
        await desk.finish("slot", 0, 0, 2, {}, 1)
        await result
        assert (await desk.result("slot", 0))["restarts"] == 1
        idle = await settled(desk.next("slot", 0, -1))  # a process started after the end has nothing to do
        assert not idle.done()
        await desk.close("slot")
        assert await idle is None

    asyncio.run(story())


def test_only_the_run_that_was_asked_to_stop_is_stopped() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.put("slot", "first")
        asked = await settled(desk.stop_asked("slot", 0))
        await desk.put("other", "elsewhere")
        await desk.stop("other", 0)
        assert not asked.done()
        await desk.stop("slot", 0)
        assert await asked is True
        await desk.finish("slot", 0, 0, 1, {}, 1)
        await desk.put("slot", "second")
        await desk.stop("slot", 0)  # came late
        asked = await settled(desk.stop_asked("slot", 1))
        assert not asked.done()
        await desk.finish("slot", 1, 0, 1, {}, 1)
        assert await asked is False

    asyncio.run(story())
