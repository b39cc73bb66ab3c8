"""The mailbox of a sweep: an actor where worker pools post runs and their workers, on whatever node, fetch them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Place:
    """What lies there for one pool."""

    number: int = -1
    """Of its newest run."""
    spec: Any = None
    finished: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """Result and memory, for each rank that has ended the run."""
    wanted: int = 1
    """Ranks."""
    starts: int = 0
    """How often the first rank has begun it."""
    stop: bool = False
    closed: bool = False

    @property
    def ended(self) -> bool:
        return len(self.finished) >= self.wanted


class Mailbox:
    """Calls wait until there is something to say. Async, so that many wait at once."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._changed = asyncio.Condition()

    # For pools

    async def put(self, pool: str, spec: Any) -> int:
        """Lay down a run; returns its number."""
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
        """Of a run that all ranks have ended: the first rank's result, restarts, the largest memory of a rank in
        bytes.
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
        """The pool's workers may go."""
        self._place(pool).closed = True
        await self._tell()

    # For workers

    async def next(self, pool: str, rank: int, done: int) -> tuple[int, Any] | None:
        """The newest run after `done`; None once the pool is closed."""
        place = self._place(pool)
        await self._until(lambda: place.closed or (place.number > done and not place.ended))
        if place.closed:
            return None
        place.starts += rank == 0
        place.finished.pop(rank, None)  # it ended the run once, and was started again with the others
        return place.number, place.spec

    async def finish(self, pool: str, number: int, rank: int, world_size: int, result: Any, memory: int) -> None:
        """A rank has ended its part."""
        place = self._place(pool)
        if number != place.number:
            return
        place.wanted = world_size
        place.finished[rank] = (result, memory)
        await self._tell()

    async def stop_asked(self, pool: str, number: int) -> bool:
        """Waits until the run is asked to stop (True), or is over."""
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
    """The actor, on this node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000).remote()
