"""The mailbox of a sweep: an actor where worker pools post runs and their workers, on whatever node, fetch them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Place:
    """The state of one pool's newest run."""

    number: int = -1
    """The run's number; -1 before the first."""
    spec: Any = None
    finished: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """For each rank that has ended the run: its result, and its memory in bytes."""
    wanted: int = 1
    """The number of ranks that must end the run."""
    starts: int = 0
    """How often the first rank has begun the run."""
    stop: bool = False
    closed: bool = False

    @property
    def ended(self) -> bool:
        return len(self.finished) >= self.wanted


class Mailbox:
    """The class of the actor. Its methods wait until there is an answer, and are async, so that many can wait."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._changed = asyncio.Condition()

    # For pools

    async def put(self, pool: str, spec: Any) -> int:
        """Post a run for the workers of a pool; returns its number."""
        place = self._place(pool)
        place.number, place.spec, place.finished, place.starts, place.stop, place.wanted = (
            place.number + 1,
            spec,
            {},
            0,
            False,
            1,
        )
        await self._tell()
        return place.number

    async def result(self, pool: str, number: int) -> dict[str, Any]:
        """Wait until all ranks have ended the run. Returns the first rank's result (`outcome`), how often the workers
        were restarted (`restarts`), and the largest memory of a rank in bytes (`memory`).
        """
        place = self._place(pool)
        await self._until(lambda: place.ended)
        return {
            "outcome": place.finished[0][0],
            "restarts": place.starts - 1,
            "memory": max(memory for _, memory in place.finished.values()),
        }

    async def stop(self, pool: str, number: int) -> None:
        """Ask a run to stop."""
        self._place(pool).stop |= self._place(pool).number == number
        await self._tell()

    async def close(self, pool: str) -> None:
        """Let the pool's workers end: `next` then returns None."""
        self._place(pool).closed = True
        await self._tell()

    # For workers

    async def next(self, pool: str, rank: int, done: int) -> tuple[int, Any] | None:
        """Wait for the pool's newest run with a number above `done`. Returns its number and spec; None once the pool is
        closed.
        """
        place = self._place(pool)
        await self._until(lambda: place.closed or (place.number > done and not place.ended))
        if place.closed:
            return None
        place.starts += rank == 0
        place.finished.pop(rank, None)  # it ended the run once, and was started again with the others
        return place.number, place.spec

    async def finish(self, pool: str, number: int, rank: int, world_size: int, result: Any, memory: int) -> None:
        """Store the result of a rank that has ended the run.

        Args:
            memory: what the rank holds after the run, in bytes.
        """
        place = self._place(pool)
        if number != place.number:
            return
        place.wanted = world_size
        place.finished[rank] = (result, memory)
        await self._tell()

    async def stop_asked(self, pool: str, number: int) -> bool:
        """Wait until the run is asked to stop (True) or has ended (False)."""
        place = self._place(pool)
        await self._until(lambda: place.stop or place.closed or place.number != number or 0 in place.finished)
        return place.stop and place.number == number

    def _place(self, pool: str) -> _Place:
        return self._places.setdefault(pool, _Place())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, true: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(true)


def open_mailbox() -> Any:
    """Start the actor on this node; its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000).remote()
