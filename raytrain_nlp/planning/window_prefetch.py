"""`data.streaming`: the first window is prepared before the workers start, the others beside training, never far ahead
of it.

A thread of the driver prepares them (`WindowPreparer.running`). What it raises is written where the workers that wait
for a window look, so that they end, and is raised by the driver when they have.
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
from raytrain_nlp.tasks import build_task

_AHEAD = 2
"""Windows prepared before training needs them: as the next is up to twice as large, one might come late."""
_JUDGED_ROWS = 10_000
"""A share of bad rows is no share of the data while fewer rows than these have been read."""
_POLL_S = 0.5
Mapping = Callable[[threading.Event], contextlib.AbstractContextManager[MapPieces]]


class WindowPreparer:
    """Prepares the windows of a training split in order, and counts what is in them."""

    def __init__(self, spec: WindowedSpec, windows: list[list[Piece]], prepare: PrepareSpec, total_steps: int):
        self.spec = spec
        self._windows, self._prepare, self._total_steps = windows, prepare, total_steps
        self._next = 0
        self._lines: dict[str, int] = {}
        self._read = self._bad = 0
        """Of all windows so far: rows, and bad ones among them."""
        self._joins = build_task(spec.split.task).joins_rows
        self.counts = {"rows": 0, "bad_rows": 0, "left_out": 0, "cut_rows": 0, "tokenized_rows": 0}
        self.counts |= {"features": 0} if self._joins else {}
        """Of all windows so far; rows are blocks where the task packs."""
        self.error: InputError | RunError | None = None

    def attach(self, paths: RunPaths) -> WindowedSpec:
        """The spec for the workers of a run: preparer and readers leave each other word in its folder."""
        self.spec = replace(self.spec, failure=str(paths.feed_error), wanted=str(paths.feed_wants))
        return self.spec

    def prepare_first(self, map_pieces: MapPieces) -> None:
        """Prepare up to the first window with rows. Raises `InputError` where none has any, or too many are bad."""
        while not self.counts["rows"]:
            if self._next == self.spec.count:
                raise InputError(Problem("data.train", "has no rows", "Give a file with rows."))
            self._advance(map_pieces)

    @contextlib.contextmanager
    def running(self, find_step: Callable[[], int], quarantine: Path, mapping: Mapping) -> Iterator[None]:
        """While inside, keep ahead of training, which stands at `find_step()`. A failure stops training, and is raised
        at the end.
        """
        for file in (self.spec.failure, self.spec.wanted):  # of the driver before this one
            Path(file).unlink(missing_ok=True)
        stop = threading.Event()

        def run() -> None:
            try:
                for number in range(self._next):
                    self._tell_bad_rows(number, quarantine)
                if self._next < self.spec.count and not self._enough():
                    with mapping(stop) as map_pieces:
                        self._keep_ahead(find_step, quarantine, map_pieces, stop)
            except Exception as error:  # noqa: BLE001 - it is raised by the driver, below
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
        """The newest window, opened, and about how many times as large all data are as the windows so far."""
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
        return WindowedSplit(self.spec).steps_known() >= self._total_steps

    def _advance(self, map_pieces: MapPieces) -> None:
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
        """Bad rows over `data.max_bad_rows`, of all rows read so far."""
        bad, most = self._bad + manifest["bad_rows"], self._prepare.max_bad_rows
        total = self._read + manifest["rows"] + manifest["bad_rows"]
        judged = most >= 1 or total >= _JUDGED_ROWS or self._next == self.spec.count - 1
        if judged and bad > (most if most >= 1 else most * total):
            shown = f"; one of them: {told}" if (told := first_told(folder)) else ""
            what = f"{bad} of {total} rows so far are bad, more than data.max_bad_rows ({most:g}){shown}"
            raise InputError(Problem("data.train", what, "Mend the rows, or raise data.max_bad_rows."))

    def _tell_bad_rows(self, number: int, quarantine: Path) -> None:
        source = window_folder(self.spec, number) / QUARANTINE
        with source.open(encoding="utf-8") as lines, contextlib.ExitStack() as stack:
            out = None
            for line in lines:
                out = out or stack.enter_context(quarantine.open("a", encoding="utf-8", errors="backslashreplace"))
                out.write(json.dumps({"split": "train", **json.loads(line)}, ensure_ascii=False) + "\n")
