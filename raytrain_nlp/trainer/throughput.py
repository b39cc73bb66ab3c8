"""Throughput, padding and waiting, for the log."""

from __future__ import annotations

import time

from raytrain_nlp.data.split import MicroBatch


class Meter:
    """Rates since the last reading, of the whole job: the plan's counts are global, so no collective is needed."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._rows = self._tokens = self._own_tokens = self._own_padded = 0
        self._wait = self._wait_before = 0.0

    def add(self, micro_batches: list[MicroBatch], wait_s: float) -> None:
        """Count the micro-batches of one optimizer update and the feed's total waiting time so far."""
        for micro_batch in micro_batches:
            self._own_padded += micro_batch.padded_tokens
            self._own_tokens += micro_batch.tokens
        if micro_batches:
            self._rows += micro_batches[0].global_rows
            self._tokens += micro_batches[0].global_tokens
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
