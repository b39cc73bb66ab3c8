"""What a run has met that did not end it: bits that changed silently, ranks that were slower than the others."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tracking.events import read_events

KINDS = ("silent_error", "straggler")
"""Events that tell of one."""


def faults_of(paths: RunPaths) -> list[dict[str, Any]]:
    """The events of a run that tell of faults, in order."""
    return [event for event, _ in read_events(paths.events) if event["kind"] in KINDS]
