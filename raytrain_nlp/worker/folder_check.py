"""Does every node see the folder of the run, and the same one? Asked before the first step, where the answer costs
nothing yet.
"""

from __future__ import annotations

import socket
import time

from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.worker.spec import WorkerSpec

_LAG_S = 10.0
"""A network file system may show a new file this much later."""


def check_shared(spec: WorkerSpec, paths: RunPaths) -> None:
    """Raise the same `InputError` on all ranks where one of them does not see what the driver wrote."""
    blind = gather_objects(None if sees_record(spec, paths) else socket.gethostname())
    found = [f"rank {rank} on {host}" for rank, host in enumerate(blind) if host is not None]
    if found:
        what = f"is not shared by all nodes: {', '.join(found)} does not see the driver's {paths.record}"
        raise InputError(Problem("storage_path", what, "Name a folder that is the same on every node, e.g. on NFS."))


def sees_record(spec: WorkerSpec, paths: RunPaths) -> bool:
    """Is the record here that this driver wrote, and not none or that of another time?"""
    end = time.monotonic() + _LAG_S
    while spec.driver:
        paths.store.refetch(paths.record)
        if (read_json(paths.record) or {}).get("drivers") == spec.driver:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
