"""Optimizations that all else works without: forked processes, and for CPUs huge pages and gradients averaged in shared
memory.
"""

from __future__ import annotations

import os

PLAIN = "RAYTRAIN_NLP_PLAIN"
"""Environment variable: `1` switches these optimizations off, on driver and workers, to find out whether they cause a
fault, and to measure what they gain.
"""


def is_plain() -> bool:
    """Are these optimizations switched off?"""
    return os.environ.get(PLAIN) == "1"


def switch() -> dict[str, str]:
    """Environment variables that pass the switch on to another process; empty where it is not set."""
    return {PLAIN: "1"} if is_plain() else {}
