"""What Ctrl-C does to a run: while the workers train, a checkpoint is committed before the run ends. The error that the
driver then raises says at which step the run stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from raytrain_nlp.checkpoint import store
from raytrain_nlp.errors import Stopped
from raytrain_nlp.host import signals
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.stop_request import ask_to_move
from raytrain_nlp.storage import shown
from raytrain_nlp.tracking.events import read_events

_ASKED = "stopping: a checkpoint is committed after the step or evaluation that runs; Ctrl-C again ends at once."


@contextlib.contextmanager
def stops_at_checkpoint(paths: RunPaths, note: Callable[[], None], last_word: Callable[[], None]) -> Iterator[None]:
    """While inside, the first signal makes training end with a checkpoint. Where the workers do not train (yet, or any
    more), it raises `KeyboardInterrupt` in the main thread instead.

    Args:
        note: records at once that the run is stopping, because the sender of the signal may kill the driver before the
            checkpoint is committed (`ray job stop` waits three seconds).
        last_word: is called when a second signal ends the process.
    """
    offset = paths.events.stat().st_size if paths.events.exists() else 0

    def ask() -> str | None:
        if not training_runs(paths, offset):
            return None
        ask_to_move(paths, "stopped", then_end=True)
        note()
        return _ASKED

    with signals.asking(ask), signals.at_once(last_word):
        yield


def training_runs(paths: RunPaths, offset: int = 0) -> bool:
    """Are the workers in their training loop, where they read stop requests? Answered from the run's events after the
    byte `offset` of `events.jsonl`.
    """
    runs = False
    for event, _ in read_events(paths.events, offset):
        if event["kind"] in ("start", "resume", "end"):
            runs = False
        elif event["kind"] == "phase" and event.get("phase") == "train":
            runs = True
        elif (
            event["kind"] == "log" and "train_runtime" in event["metrics"]
        ):  # what is left is the last evaluation, and the export
            runs = False
    return runs


def stopped(paths: RunPaths) -> Stopped:
    """The error that ends a stopped run. It names the newest checkpoint, and how to continue."""
    if not paths.store.shared:  # the workers upload the checkpoints; this node does not know which are complete
        return Stopped(f"stopped. Continue with --resume; checkpoints are in {shown(paths.checkpoints)}.")
    checkpoints = store.list_checkpoints(paths.checkpoints)
    if not checkpoints:
        return Stopped("stopped before the first checkpoint. Start it again with --resume.")
    newest = checkpoints[-1]
    return Stopped(
        f"stopped; the run stands at step {newest.manifest.step} ({shown(newest.path)}). Continue with --resume."
    )
