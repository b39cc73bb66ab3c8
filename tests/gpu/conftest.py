"""Where torch can use a GPU these run, in under eight minutes on one; elsewhere all are skipped. `pytest tests/gpu`"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from raytrain_nlp.cluster import gpus


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gpus.local_gpus():
        return
    reason = "torch is built for CPUs only" if gpus.torch_without_gpu() else "this machine has no GPU"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def train_on_gpu() -> Iterator[Callable[..., Any]]:
    """`raytrain_nlp.train` on one worker with a GPU, which stays from run to run: most of a run of seconds is the start
    of its process.
    """
    import os

    import ray

    import raytrain_nlp
    from raytrain_nlp.launch.worker_pool import WorkerPool
    from raytrain_nlp.tuning.mailbox import open_mailbox

    deterministic = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    with mock.patch.dict(os.environ, deterministic):
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        pool = WorkerPool(open_mailbox())

        class Fit:
            def __init__(self, **_: Any):
                pass

            def __call__(self, job: Any, spec: Any, paths: Any) -> Any:
                return pool.turn()(job, spec, paths)

        def train(job: Any, **arguments: Any) -> Any:
            with mock.patch("raytrain_nlp.verbs.train.Fit", Fit):
                return raytrain_nlp.train(job, **arguments)

        yield train
        pool.close()
        ray.shutdown()
