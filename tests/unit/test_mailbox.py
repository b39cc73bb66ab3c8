"""The mailbox between pools and their workers, without Ray: who is given which run, and when a call comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from raytrain_nlp.tuning.mailbox import Mailbox


async def settled(call: Coroutine[Any, Any, Any]) -> asyncio.Task:
    """The call, after all that could happen has happened."""
    task = asyncio.ensure_future(call)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


def test_a_run_ends_when_all_ranks_have_ended_it() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        waiting = [await settled(mailbox.next("pool", rank, -1)) for rank in (0, 1)]
        assert not any(task.done() for task in waiting)
        assert await mailbox.put("pool", "first") == 0
        assert [await task for task in waiting] == [(0, "first")] * 2
        result = await settled(mailbox.result("pool", 0))
        await mailbox.finish("pool", 0, 0, 2, {"result": 1}, 10)
        again = await settled(mailbox.next("pool", 0, 0))
        assert not result.done() and not again.done()  # the second rank is still at it
        await mailbox.finish("pool", 0, 1, 2, {"result": 2}, 30)
        assert await result == {"outcome": {"result": 1}, "restarts": 0, "memory": 30}
        assert await mailbox.put("pool", "second") == 1
        assert await again == (1, "second")

    asyncio.run(story())


def test_ranks_that_start_again_are_given_the_run_that_had_not_ended() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        await mailbox.put("pool", "spec")
        assert await mailbox.next("pool", 0, -1) == await mailbox.next("pool", 1, -1) == (0, "spec")
        await mailbox.finish("pool", 0, 0, 2, "ended just before the other died", 1)
        assert await mailbox.next("pool", 0, -1) == await mailbox.next("pool", 1, -1) == (0, "spec")
        await mailbox.finish("pool", 0, 1, 2, {}, 1)
        result = await settled(mailbox.result("pool", 0))
        assert not result.done()  # the first rank's end of before does not count
        await mailbox.finish("pool", 0, 0, 2, {}, 1)
        await result
        assert (await mailbox.result("pool", 0))["restarts"] == 1
        idle = await settled(mailbox.next("pool", 0, -1))  # a process started after the end has nothing to do
        assert not idle.done()
        await mailbox.close("pool")
        assert await idle is None

    asyncio.run(story())


def test_only_the_run_that_was_asked_to_stop_is_stopped() -> None:
    async def story() -> None:
        mailbox = Mailbox()
        await mailbox.put("pool", "first")
        asked = await settled(mailbox.stop_asked("pool", 0))
        await mailbox.put("other", "elsewhere")
        await mailbox.stop("other", 0)
        assert not asked.done()
        await mailbox.stop("pool", 0)
        assert await asked is True
        await mailbox.finish("pool", 0, 0, 1, {}, 1)
        await mailbox.put("pool", "second")
        await mailbox.stop("pool", 0)  # came late
        asked = await settled(mailbox.stop_asked("pool", 1))
        assert not asked.done()
        await mailbox.finish("pool", 1, 0, 1, {}, 1)
        assert await asked is False

    asyncio.run(story())
