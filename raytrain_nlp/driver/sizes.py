"""What a worker has in memory, and what its process needs before there is a model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from raytrain_nlp.config import TrainJob
from raytrain_nlp.driver.cluster import is_local
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.paths import cache_dir, read_json, write_json

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BASE = """
import json, torch
import pandas, raytrain_nlp.data.feed, raytrain_nlp.worker.loop, raytrain_nlp.worker.trainer
from raytrain_nlp.worker.arguments import import_deepspeed
import_deepspeed()
import ray, ray.data, ray.train.torch, peft, psutil
print(psutil.Process().memory_info().rss)
"""



def parse_bytes(text: str, where: str) -> int:
    """`80GB`, `80GiB`, `512M`, or bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text, re.I)
    if not match or not float(match[1]):
        raise InputError(Problem(where, f"is no amount of memory ({text})", "Write e.g. 80GB or 512MiB."))
    return round(float(match[1]) * _UNITS[(match[2] or "").lower()])


def find_available(job: TrainJob) -> int | None:
    """Of the GPU this machine has, or of this machine's memory for each of its workers; of other machines nothing is known here."""
    if job.workers.use_gpu:
        import torch

        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    if not is_local():
        return None
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # a container may have less
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // job.workers.num_workers


def process_bytes(storage: Path) -> int:
    """Resident bytes of a process that has loaded what a worker loads: measured in one, once for these versions, then kept in the cache."""
    from raytrain_nlp.driver.resolve import package_versions

    file, versions = cache_dir(storage, "memory") / "process.json", {**package_versions(), "python": sys.version}
    known = read_json(file) or {}
    if known.get("versions") != versions:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run([sys.executable, "-c", _BASE], capture_output=True, text=True, env=environment)
        if ended.returncode:
            raise RunError(f"a worker's libraries cannot be loaded: {(ended.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        known = {"versions": versions, "bytes": json.loads(ended.stdout.splitlines()[-1])}
        write_json(file, known)
    return known["bytes"]
