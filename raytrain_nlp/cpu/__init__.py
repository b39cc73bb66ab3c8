"""What makes machines without GPUs fast: forked processes, huge pages, the mean of gradients in shared memory. All
works without it.
"""

from __future__ import annotations

import os

PLAIN = "RAYTRAIN_NLP_PLAIN"
"""Environment variable: `1` does without this room, on driver and workers. To find out whether a fault lies here, and
to measure.
"""


def is_plain() -> bool:
    """Is this room switched off?"""
    return os.environ.get(PLAIN) == "1"


def switch() -> dict[str, str]:
    """The environment variable that tells another process what this one was told."""
    return {PLAIN: "1"} if is_plain() else {}
