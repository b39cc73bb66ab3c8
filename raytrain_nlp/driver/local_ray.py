"""A Ray of the driver's own, for one run on one machine: what it is told, and what it is spared."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no spot notice can come
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # the end of a short run is seen at once
    # a worker that registers later is turned away, and the driver then waits for the first ones without end
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_worker_niceness": "0",  # Ray would run the training itself below everything else on this machine
    # every process of Ray, idle or not, wakes up a hundred times a second: with a few CPUs that is felt in training
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
}
_START_S = 120.0
"""How long a raylet may take to start. Ray itself gives it 30 s, however busy the machine is."""


@contextlib.contextmanager
def unsaid(verbose: bool) -> Iterator[None]:
    """Ray prints what raylets tell, as that one has died, to the driver's standard output, whatever the level of its logs is."""
    import ray._private.worker as of_ray

    printed = getattr(of_ray, "print_to_stdstream", None)
    if not verbose and printed is not None:
        of_ray.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        if printed is not None:
            of_ray.print_to_stdstream = printed


@contextlib.contextmanager
def lean(verbose: bool) -> Iterator[None]:
    """Ray without what the Ray of one driver on one machine has no use for: dashboard, autoscaler, and, unless its output is
    wanted, what carries it to the driver (ranks have log files of their own). Each is a process that takes seconds to start."""
    from ray._private import services
    from ray._private.node import Node

    unused = ["start_monitor", "start_api_server", *([] if verbose else ["start_log_monitor"])]
    kept = {name: vars(Node)[name] for name in unused if name in vars(Node)}  # private parts: one that is gone is only not left out
    for name in kept:
        setattr(Node, name, lambda node, **arguments: None)
    get_node = services.get_node
    services.get_node = _patient(get_node)
    try:
        yield
    finally:
        services.get_node = get_node
        for name, method in kept.items():
            setattr(Node, name, method)


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's question for a node that has just been started, which raises `RuntimeError` while it is not there."""

    def wait(*args: Any, **kwargs: Any) -> Any:
        end = time.monotonic() + _START_S
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    return wait
