"""Throughput, padding and waiting, for the log."""

from __future__ import annotations

import time

from raytrain_nlp.worker.loader import FeedBatch


class Meter:
    """Rates since the last reading, of the whole job: the plan's counts are global, so no collective is needed."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._rows = self._tokens = self._own_tokens = self._own_padded = 0
        self._wait = self._wait_before = 0.0

    def add(self, batches: list[FeedBatch], wait_s: float) -> None:
        """Count the micro-batches of one optimizer update and the feed's total waiting time so far."""
        for batch in batches:
            self._own_padded += batch.micro_batch.padded_tokens
            self._own_tokens += batch.micro_batch.tokens
        if batches:
            self._rows += batches[0].micro_batch.global_rows
            self._tokens += batches[0].micro_batch.global_tokens
        self._wait = wait_s

    def read(self) -> dict[str, float]:
        """The rates, and a new start."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rates = {
            "samples_per_second": self._rows / seconds,
            "tokens_per_second": self._tokens / seconds,
            "padding_share": 1 - self._own_tokens / max(self._own_padded, 1),
            "data_wait_share": (self._wait - self._wait_before) / seconds,
        }
        self._since, self._wait_before = now, self._wait
        self._rows = self._tokens = self._own_tokens = self._own_padded = 0
        return rates
