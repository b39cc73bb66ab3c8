"""Prepares the windows of a training split with `data.streaming`: the first before the workers start, the others while
they train, a few windows ahead of them.

A thread of the driver prepares them (`WindowPreparer.running`). An error in it is written to a file of the run that
workers read while they wait for a window, so they end; the driver then raises the error.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytrain_nlp.data.packing import build_blocks
from raytrain_nlp.data.prepare import QUARANTINE, MapPieces, find_tokens, first_told, prepare_pieces
from raytrain_nlp.data.reading.sources import Piece
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.split import Split
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.data.windows import FIRST_BYTES, WindowedSpec, WindowedSplit, find_window, window_folder
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.planning.truncation import cut_rows
from raytrain_nlp.storage.untrusted import parse_json
from raytrain_nlp.tasks import build_task

_AHEAD = 2
"""Windows that are prepared ahead of training. One might be too few, as the next window is up to twice as large."""
_JUDGED_ROWS = 10_000
"""Rows that must have been read before `data.max_bad_rows`, if it is a share, is compared with their bad ones."""
_POLL_S = 0.5
Mapping = Callable[[threading.Event], contextlib.AbstractContextManager[MapPieces]]
"""Opens a `MapPieces` that runs beside training and ends when the event is set."""


class WindowPreparer:
    """Prepares the windows of a training split in order, and counts their rows.

    Args:
        windows: the pieces of files of each window.
        total_steps: optimizer steps of the run; no more windows are prepared than these need.
    """

    def __init__(self, spec: WindowedSpec, windows: list[list[Piece]], prepare: PrepareSpec, total_steps: int):
        self.spec = spec
        self._windows, self._prepare, self._total_steps = windows, prepare, total_steps
        self._next = 0
        self._lines: dict[str, int] = {}
        self._read = self._bad = 0
        """Rows of all windows so far, and the bad ones among them."""
        self._joins = build_task(spec.split.task).joins_rows
        self.counts = {"rows": 0, "bad_rows": 0, "left_out": 0, "cut_rows": 0, "tokenized_rows": 0}
        self.counts |= {"features": 0} if self._joins else {}
        """Counts of rows in all windows so far, by the names of `Resolved`; rows are blocks if the task packs."""
        self.error: InputError | RunError | None = None

    def attach(self, paths: RunPaths) -> WindowedSpec:
        """The spec for the workers of a run, which names two files of the run's folder: in one the preparer tells of a
        failure, in the other a waiting worker names the window that it needs.
        """
        self.spec = replace(self.spec, failure=str(paths.feed_error), wanted=str(paths.feed_wants))
        return self.spec

    def prepare_first(self, map_pieces: MapPieces) -> None:
        """Prepare windows up to the first one with rows. Raises `InputError` if no window has any, or if too many rows
        are bad.
        """
        while not self.counts["rows"]:
            if self._next == self.spec.count:
                raise InputError(Problem("data.train", "has no rows", "Give a file with rows."))
            self._advance(map_pieces)

    @contextlib.contextmanager
    def running(self, find_step: Callable[[], int], quarantine: Path, mapping: Mapping) -> Iterator[None]:
        """While inside, a thread prepares windows ahead of training. If it fails, the workers end, and its error is
        raised on leaving.

        Args:
            find_step: the step at which training is.
            quarantine: file to which bad rows of the windows are appended.
            mapping: opens the function that tokenizes pieces beside training.
        """
        for file in (self.spec.failure, self.spec.wanted):  # an earlier driver's files
            Path(file).unlink(missing_ok=True)
        stop = threading.Event()

        def run() -> None:
            try:
                for number in range(self._next):
                    self._tell_bad_rows(number, quarantine)
                if self._next < self.spec.count and not self._enough():
                    with mapping(stop) as map_pieces:
                        self._keep_ahead(find_step, quarantine, map_pieces, stop)
            except Exception as error:  # noqa: BLE001 - the main thread raises it, below
                if stop.is_set():
                    return
                self.error = (
                    error
                    if isinstance(error, InputError)
                    else RunError(f"window {self._next} cannot be prepared: {error}")
                )
                write_json(Path(self.spec.failure), {"error": str(self.error)})

        thread = threading.Thread(target=run, name="windows", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if self.error:
                raise self.error

    def sample(self, total_bytes: int) -> tuple[Split, float]:
        """The newest prepared window, and an estimate of how many times larger all training data are than the windows
        prepared so far (at least 1).

        Args:
            total_bytes: bytes of all training files.
        """
        read = FIRST_BYTES * (2**self._next - 1)
        newest = find_window(self.spec, self._next - 1)
        assert newest is not None, "it has been prepared"
        return Split(newest), max(total_bytes / read, 1.0)

    def _keep_ahead(
        self, find_step: Callable[[], int], quarantine: Path, map_pieces: MapPieces, stop: threading.Event
    ) -> None:
        split = WindowedSplit(self.spec)
        while self._next < self.spec.count and not self._enough() and not stop.is_set():
            known = split.steps_known()
            _, window, _ = split.find(min(find_step(), max(known - 1, 0)))
            wanted = read_json(Path(self.spec.wanted)) or {"window": 0}
            if self._next - max(window, wanted["window"]) > _AHEAD:
                stop.wait(_POLL_S)
                continue
            self._advance(map_pieces)
            self._tell_bad_rows(self._next - 1, quarantine)

    def _enough(self) -> bool:
        """Are there enough windows for all steps of the run?"""
        return WindowedSplit(self.spec).steps_known() >= self._total_steps

    def _advance(self, map_pieces: MapPieces) -> None:
        """Prepare the next window, or find it in the cache, and count its rows."""
        folder = window_folder(self.spec, self._next)
        fresh = find_tokens(folder) is None
        prepare_pieces(self._windows[self._next], self._prepare, folder, map_pieces, self._check, self._lines)
        store, packing = TokenStore(folder), self.spec.split.packing
        if packing and store.num_rows:
            build_blocks(store, packing, [store.num_rows])
        self._lines |= store.manifest["lines"]
        self._read, self._bad = (
            self._read + store.num_rows + store.manifest["bad_rows"],
            self._bad + store.manifest["bad_rows"],
        )
        made = find_window(self.spec, self._next)
        assert made is not None, "it has just been prepared"
        found = {
            "rows": store.data_rows(store.num_rows) if self._joins else made.plan.num_rows,
            "features": made.plan.num_rows,
            "tokenized_rows": store.num_rows if fresh else 0,
            "cut_rows": cut_rows(store.manifest),
            **{name: store.manifest[name] for name in ("bad_rows", "left_out")},
        }
        self.counts = {name: count + found[name] for name, count in self.counts.items()}
        self._next += 1

    def _check(self, manifest: dict[str, Any], folder: Path) -> None:
        """Raises `InputError` if the bad rows of all windows so far, this one included, exceed `data.max_bad_rows`."""
        bad, most = self._bad + manifest["bad_rows"], self._prepare.max_bad_rows
        total = self._read + manifest["rows"] + manifest["bad_rows"]
        judged = most >= 1 or total >= _JUDGED_ROWS or self._next == self.spec.count - 1
        if judged and bad > (most if most >= 1 else most * total):
            shown = f"; one of them: {told}" if (told := first_told(folder)) else ""
            what = f"{bad} of {total} rows so far are bad, more than data.max_bad_rows ({most:g}){shown}"
            raise InputError(Problem("data.train", what, "Mend the rows, or raise data.max_bad_rows."))

    def _tell_bad_rows(self, number: int, quarantine: Path) -> None:
        """Append the bad rows of window `number` to the run's quarantine file."""
        source = window_folder(self.spec, number) / QUARANTINE
        with source.open(encoding="utf-8") as lines, contextlib.ExitStack() as stack:
            out = None
            for line in lines:
                out = out or stack.enter_context(quarantine.open("a", encoding="utf-8", errors="backslashreplace"))
                out.write(json.dumps({"split": "train", **parse_json(line)}, ensure_ascii=False) + "\n")
