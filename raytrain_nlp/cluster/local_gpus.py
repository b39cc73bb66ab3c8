"""A job with GPUs on this machine: are there enough, and do they compute in what the job asks for?"""

from __future__ import annotations

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import Problem
from raytrain_nlp.host import devices

_NEED_AMPERE = ("bf16", "bf16_full_eval", "tf32")


def check_gpus(job: TrainJob) -> list[Problem]:
    """What this machine's GPUs lack."""
    found, workers = devices.local_gpus(), job.workers
    each = workers.resources_per_worker.get("GPU", 1)
    wanted = each * workers.num_workers
    if wanted > len(found):
        why = " that torch can use: it is built for CPUs only" if devices.torch_without_gpu() else ""
        who = "1 worker needs" if workers.num_workers == 1 else f"{workers.num_workers} workers need"
        what = f"{who} {wanted:g} GPU{'s' if wanted != 1 else ''}, this machine has {len(found) or 'none'}{why}"
        todo = "Lower num_workers, or run on a cluster." if found else "Remove use_gpu, and they run on CPUs, or run on a cluster."
        return [Problem("workers.use_gpu" if not found else "workers.num_workers", what, todo)]
    old = next((gpu.name for gpu in found if not gpu.bf16), None)
    values = job.arguments()
    return [
        Problem(f"training.{key}", f"is not for this machine's GPU ({old}); it came with the Ampere generation", f"Remove it{'' if key == 'tf32' else ', or use fp16'}.")
        for key in _NEED_AMPERE
        if values.get(key) and old
    ]
