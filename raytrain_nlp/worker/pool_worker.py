"""A worker that stays: one run after the other in one process, so that only the first pays for the process and its
imports.

    pool (the sweep's side) --spec--> mailbox --next--> each rank: run --finish--> mailbox --result--> pool

After each run the process is as it was before: the environment, what libraries keep globally, memory. Where that cannot
be trusted, after an error or when memory does not come back, the pool replaces its workers.

The first rank waits for the word to stop in a thread of each run, which imports nothing. Where the mailbox is gone, so
is the sweep; what else it meets is said once in the rank's log, and the run goes on to its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.distributed.device import held_memory, release_cache, reset_peak
from raytrain_nlp.host.once import once
from raytrain_nlp.host.threads import reason_of
from raytrain_nlp.worker.loop import run_body, run_guarded


def run_pool_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker` of a pool: runs what the mailbox gives until the pool is closed.

    A rank that is started again is given the run that had not ended, which goes on from its newest good checkpoint.
    """
    import ray

    mailbox, pool, rank, world_size = (
        config["mailbox"],
        config["pool"],
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
    )
    done = -1
    while (given := ray.get(mailbox.next.remote(pool, rank, done))) is not None:
        done, spec = given
        with _as_before():
            result = run_guarded(
                spec,
                functools.partial(run_body, stop_asked=_listen(mailbox, pool, done) if rank == 0 else lambda: False),
            )
        ray.get(mailbox.finish.remote(pool, done, rank, world_size, result, held_memory()))
    return {}


def _listen(mailbox: Any, pool: str, number: int) -> Callable[[], bool]:
    """Has the mailbox been told to stop this run? Waited for in a thread, so that asking costs a step nothing."""
    import ray

    asked = threading.Event()

    def wait() -> None:
        try:
            if ray.get(mailbox.stop_asked.remote(pool, number)):
                asked.set()
        except ray.exceptions.RayError:  # the mailbox is gone, and with it the sweep
            pass
        except Exception as error:  # noqa: BLE001 - the run then goes on to its end
            once(f"this run will not hear when it is to stop early ({reason_of(error)}).", key="stop_asked")

    threading.Thread(target=wait, name="stop", daemon=True).start()
    return asked.is_set


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Take back what a run changes in its process."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    reset_peak()
    environment, threads, deterministic = (
        dict(os.environ),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        unset_hf_deepspeed_config()
        gc.collect()
        release_cache()
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps what is freed; others have no such call
            ctypes.CDLL(None).malloc_trim(0)
