"""What is known of one piece of a file once it has been tokenized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PieceSummary:
    """The result of `prepare_piece`, without the rows."""

    path: str
    lines: int = 0
    bad: int = 0
    left_out: int = 0
    """Rows for which the user's `preprocess` returned None, and rows in which nothing is learned."""
    unlearned: int = 0
    """Rows in which nothing is learned; a part of `left_out`. They are listed in the quarantine."""
    spread: int = 0
    """Rows of the data that became several rows of tokens."""
    cut: dict[str, int] = field(default_factory=dict)
    """Number of tokens before truncation -> number of truncated rows of that length; `cut_targets`: the same for
    targets."""
    cut_targets: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    bad_file: str | None = None
    problems: list[dict[str, str]] = field(default_factory=list)
    """Why the file cannot be read, as fields of `Problem`. Ray would turn an exception into another one."""

    def parts(self) -> list[str]:
        """Names of the files that the driver joins: lengths and checksums of each shard, and bad rows."""
        joined = [shard["file"].replace(".arrow", end) for shard in self.shards for end in (".npy", ".crc.npy")]
        return joined + ([self.bad_file] if self.bad_file else [])
