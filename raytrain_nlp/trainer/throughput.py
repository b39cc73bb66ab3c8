"""Throughput, padding and waiting, for the log."""

from __future__ import annotations

import time

from raytrain_nlp.data.split import MicroBatch


class Meter:
    """Throughput of the whole job, and padding and waiting of this rank, since the last reading.

    Throughput needs no collective, because each micro-batch carries the counts of its whole global batch.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._rows = self._tokens = self._own_tokens = self._own_padded = 0
        self._wait = self._wait_before = 0.0

    def add(self, micro_batches: list[MicroBatch], wait_s: float) -> None:
        """Count the micro-batches of one optimizer step of this rank.

        Args:
            wait_s: seconds this rank has waited for the feed so far, in total.
        """
        for micro_batch in micro_batches:
            self._own_padded += micro_batch.padded_tokens
            self._own_tokens += micro_batch.tokens
        if micro_batches:
            self._rows += micro_batches[0].global_rows
            self._tokens += micro_batches[0].global_tokens
        self._wait = wait_s

    def read(self) -> dict[str, float]:
        """Figures since the last call: of all ranks rows and tokens (without padding) a second; of this rank the share
        of its tokens that are padding, and of its time that it waited for data.
        """
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
