"""Notice to leave: a node of these workers is being drained, or the driver has a better place for them.

The first rank looks for it in a thread, so that asking costs a step nothing. All ranks then commit a checkpoint after
the step they are in and end, and the driver starts workers that go on from it. What the thread meets is told as a
notice of the run, once, and it goes on looking; it imports Ray alone, which the worker has loaded.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from raytrain_nlp.cluster.preemption import draining_nodes
from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.errors import StorageError
from raytrain_nlp.host.threads import looking
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.run.stop_request import ends_after_checkpoint, forget
from raytrain_nlp.tracking.events import EventLog


@contextlib.contextmanager
def noticed(paths: RunPaths, events: EventLog, rank: int) -> Iterator[Callable[[], bool]]:
    """Yields a function: has notice been given? True at most on the first rank. Every rank must enter it."""
    nodes = gather_objects(_node_id())
    given = threading.Event()
    if rank:
        yield given.is_set
        return
    if not ends_after_checkpoint(paths):  # that one is meant for all workers of this driver
        forget(paths)

    def tell(text: str) -> None:
        events.write("notice", text=text)

    def look() -> bool:
        if reason := _asked(paths) or _drained(nodes, tell):
            given.set()
            then = "ends" if ends_after_checkpoint(paths) else "goes on from it"
            tell(f"{reason}: a checkpoint is committed, and the run {then}.")
        return given.is_set()

    with looking(
        "notice",
        look,
        paths.store.poll_s,
        lambda reason: tell(f"notice to leave is not heard for now ({reason}); it is tried again."),
        join_s=0,
    ):
        yield given.is_set


def _node_id() -> str | None:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


def _asked(paths: RunPaths) -> str | None:
    with contextlib.suppress(StorageError):  # one that does not answer now may do so a second later
        paths.store.refetch(paths.move, patience=1)
    return (read_json(paths.move) or {}).get("reason")


def _drained(nodes: list[str | None], tell: Callable[[str], None]) -> str | None:
    for node, deadline in draining_nodes(tell).items():
        if node in nodes:
            left = f" within {max(deadline / 1000 - time.time(), 0):.0f} s" if deadline else ""
            return f"node {node[:8]} of rank {nodes.index(node)} is to go{left}"
    return None
