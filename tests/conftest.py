"""Fixtures. Integration and fault tests share one local Ray; it is started when the first of them needs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from object_store import ObjectStore, environment, free_port, serving
from support import HOOKS


def pytest_configure(config: pytest.Config) -> None:
    """`pytest` alone runs what is not slow; whoever names files, or a marker, gets what they name."""
    if config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.markexpr:
        config.option.markexpr = "not slow"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if (
            signal.getsignal(number) is signal.SIG_IGN
        ):  # by nohup, or for a shell's background job; what tests start would inherit it
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is part of `-m full`; faults and joints are slow, but for the joints marked `quick`."""
    for item in items:
        item.add_marker("full")
        if item.path.parent.name != "unit" and item.get_closest_marker("quick") is None:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def hooks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hooks") / "hooks.json"


@pytest.fixture(scope="session")
def _object_store_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def object_store(_object_store_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server with an empty bucket named `bucket`; the workers of the shared Ray find it, a driver needs its
    `environment`.
    """
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with serving(_object_store_port, tmp_path_factory.mktemp("object-store"), "bucket") as store:
        yield store


@pytest.fixture(scope="session")
def _ray(hooks_file: Path, _object_store_port: int) -> Iterator[str]:
    """A local Ray with room for three workers and their feed, whose processes load the test hooks; its address."""
    import ray

    from raytrain_nlp.cluster.local_ray import LocalRay, connect
    from raytrain_nlp.cluster.ray_head import HeadSettings

    saved = dict(os.environ)
    os.environ |= {
        "RAYTRAIN_NLP_TEST_HOOKS": str(hooks_file),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HOOKS), saved.get("PYTHONPATH")])),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_agent_register_timeout_ms": "600000",
        **environment(_object_store_port),
    }
    local = LocalRay(HeadSettings(8, ["sklearn.metrics", "peft"]))
    try:
        connect(local.address(), log_to_driver=False, logging_level="ERROR")
        os.environ.pop("PYTHONPATH")
        for name in environment(_object_store_port):
            os.environ.pop(name)
        os.environ.update({key: value for key, value in saved.items() if key == "PYTHONPATH" or key.startswith("AWS_")})
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
    finally:
        local.end()


@pytest.fixture(scope="session")
def _workers(_ray: str) -> Iterator[Any]:
    """For each number of workers a group that stays, as those of a sweep do: most of a run of seconds is the start of
    its processes.
    """
    import ray

    from raytrain_nlp.launch.worker_pool import WorkerPool
    from raytrain_nlp.tuning.mailbox import open_mailbox

    mailbox = open_mailbox()
    pools = {number: WorkerPool(mailbox) for number in (1, 2, 3)}
    yield pools
    for pool in pools.values():
        pool.close()
    ray.kill(mailbox)


@pytest.fixture(scope="session")
def train_warm(_workers: Any) -> Callable[..., Any]:
    """`raytrain_nlp.train` on these workers."""
    import raytrain_nlp

    def train(job: Any, **arguments: Any) -> Any:
        with mock.patch("raytrain_nlp.verbs.train.Fit", lambda **_: _SharedFit(_workers)):
            return raytrain_nlp.train(job, **arguments)

    return train


@pytest.fixture
def shared_ray(
    _ray: str, hooks_file: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The shared Ray; call it with what the hooks of this test's workers shall do.

    Runs of integration tests share workers; those of the faults start their own, as users' runs do.
    """
    hooks_file.write_text("{}")
    if "integration" in request.path.parts:
        pools = request.getfixturevalue("_workers")
        monkeypatch.setattr("raytrain_nlp.verbs.train.Fit", lambda **_: _SharedFit(pools))
    yield lambda **wanted: hooks_file.write_text(json.dumps(wanted))
    hooks_file.write_text("{}")


class _SharedFit:
    """`Fit` on the shared workers where the job's are alike."""

    def __init__(self, pools: dict[int, Any]):
        self._pools = pools

    def __call__(self, job: Any, spec: Any, paths: Any) -> dict[str, Any]:
        from raytrain_nlp.launch.fit import Fit

        pool = self._pools.get(job.workers.num_workers)
        alike = job.workers.resources_per_worker == {"CPU": 0.5} and "ddp_timeout" not in job.arguments()
        return pool.turn()(job, spec, paths) if pool and alike else Fit()(job, spec, paths)


@pytest.fixture(scope="session")
def nlp_data() -> Path:
    """The folder of real datasets; tests that need it skip where RAYTRAIN_NLP_DATA does not name it."""
    folder = os.environ.get("RAYTRAIN_NLP_DATA")
    if not folder:
        pytest.skip("RAYTRAIN_NLP_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of a Chromium; tests that need it skip where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
