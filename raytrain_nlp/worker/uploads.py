"""What a rank sends back where nodes share no folder: the first one's events and progress while it runs, everybody's
log at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from raytrain_nlp.errors import StorageError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.storage.uploader import Courier, Outbox
from raytrain_nlp.tracking.events import EventLog


@contextlib.contextmanager
def event_log(paths: RunPaths, driver: int, rank: int) -> Iterator[tuple[EventLog, Callable[[], None]]]:
    """The log of the first rank, which drops everything on the others; and what waits until its events are where the
    driver finds them.

    In object storage each start of the first rank has an object of its own, which grows; the driver joins them.
    """
    if rank or paths.store.shared:
        yield EventLog(None if rank else paths.events), lambda: None
        return
    paths.worker_events.mkdir(parents=True, exist_ok=True)
    file = paths.worker_events / f"{driver:04d}-{time.time_ns()}.jsonl"
    events, outbox = EventLog(file), Outbox(paths.store)

    def carry(patience: float) -> None:
        for path in (file, paths.progress, *(paths.base_model.glob("*") if paths.base_model.exists() else ())):
            outbox.send(path, patience)

    with Courier(carry, lambda line: events.write("notice", text=line)) as courier:
        yield events, courier.flush


@contextlib.contextmanager
def errors_of_before(paths: RunPaths, rank: int) -> Iterator[None]:
    """While inside this node keeps copies of the run; at first of what ranks before this one said of their end, at last
    its log is sent.
    """
    with paths.store.in_use():
        if not paths.store.shared:
            for file in (paths.failure, paths.feed_error, paths.logs / f"rank-{rank}.log"):
                paths.store.refetch(file)
        try:
            yield
        finally:
            with contextlib.suppress(StorageError, FileNotFoundError):
                paths.store.push(paths.logs / f"rank-{rank}.log", patience=20)


def send_results(paths: RunPaths, *more: Path) -> None:
    """The model and what lies beside it."""
    paths.store.push_tree(paths.model, again=True)
    for path in more:
        if path.exists():
            paths.store.push(path)
