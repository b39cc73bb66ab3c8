"""How much memory a worker has, and how much its process needs before there is a model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from raytrain_nlp.cluster import gpus
from raytrain_nlp.cluster.session import is_local, owns_ray
from raytrain_nlp.cluster.targets import find_place
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.host import devices
from raytrain_nlp.host.processes import python_command
from raytrain_nlp.paths import cache_dir, read_json, write_json

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BASE = """
import json, torch
import pandas, raytrain_nlp.data.feed, raytrain_nlp.worker.loop, raytrain_nlp.trainer.trainer
from raytrain_nlp.compat.deepspeed import import_deepspeed
import_deepspeed()
import ray, ray.data, ray.train.torch, peft, psutil
print(psutil.Process().memory_info().rss)
"""


def parse_bytes(text: str, where: str) -> int:
    """The bytes of an amount such as `80GB` (10^9), `80GiB` (2^30), `512M`, or a plain number of bytes.

    Args:
        where: the option or key that holds the text, for the error message.

    Raises:
        InputError: `text` is not such an amount, or it is 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text, re.I)
    if not match or not float(match[1]):
        raise InputError(Problem(where, f"is no amount of memory ({text})", "Write e.g. 80GB or 512MiB."))
    return round(float(match[1]) * _UNITS[(match[2] or "").lower()])


def find_available(job: TrainJob) -> int | None:
    """Bytes that one worker has: the memory of the smallest GPU of this machine, or of the cluster where the job is
    for one; on CPU an equal share of this machine's memory (or of its cgroup's limit) for each worker. None where it
    is not known: GPUs of a kind without a known size, CPU workers on other machines.
    """
    here = is_local() or owns_ray()
    if job.workers.use_gpu:
        return share_of(job, gpus.smallest_memory(gpus.local_gpus()) if here else find_place().memory)
    if not here:
        return None
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # a container may have less
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // job.workers.num_workers


def share_of(job: TrainJob, gpu_memory: int | None) -> int | None:
    """What a worker has of a GPU of that many bytes: all, but where it asks for a part of one."""
    part = min(job.workers.resources_per_worker.get("GPU") or 1, 1)
    return None if gpu_memory is None else int(gpu_memory * part)


@contextlib.contextmanager
def process_measured(job: TrainJob, storage: Path) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the bytes of a worker's process without a model: resident memory after importing
    what a worker imports, or on a GPU an estimate of the CUDA context.

    Resident memory is measured in a subprocess while the driver goes on, once for each set of package versions, and
    then cached. The function waits for the subprocess; it raises `RunError` where the imports fail.
    """
    if job.workers.use_gpu:
        yield lambda: devices.CONTEXT_BYTES
        return
    from raytrain_nlp.host.packages import package_versions

    file, versions = cache_dir(storage, "memory") / "process.json", {**package_versions(), "python": sys.version}
    known = read_json(file) or {}
    if known.get("versions") == versions:
        yield lambda: known["bytes"]
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **devices.WITHOUT_GPU}
    process = subprocess.Popen(
        python_command(_BASE), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )

    def wait() -> int:
        out, err = process.communicate()
        if process.returncode:
            raise RunError(
                f"a worker's libraries cannot be loaded: {(err.strip().splitlines() or ['no reason given'])[-1]}"
            )
        size = json.loads(out.splitlines()[-1])
        write_json(file, {"versions": versions, "bytes": size})
        return size

    try:
        yield wait
    finally:
        if process.poll() is None:  # the job was refused meanwhile
            process.kill()
            process.communicate()
