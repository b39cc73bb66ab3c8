"""Does a cluster have room for a job? It has, or its nodes are waited for, or it never can and the job is refused."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from raytrain_nlp.cluster.resources import (
    Scaling,
    alive_of,
    bundles_of,
    find_scaling,
    left_over,
    living_nodes,
    need_of,
    nodes_for,
    worker_of,
)
from raytrain_nlp.compat.ray import asking_ray, infeasible_gangs
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem, RunError

_POLL_S = 1.0
_LISTED_S, _LOOK_S = 60.0, 0.1
"""Seconds until the node of a Ray that was just started here must be listed, and seconds between two looks."""
_SAID_S = 30.0
"""Seconds after which an unchanged line is repeated."""
_SLACK = 1e-6
_TODO = "Lower num_workers or resources_per_worker, or add nodes."


def wait_for_room(
    job: TrainJob,
    say: Callable[[str], None] | None,
    fixed: bool = False,
    patient: bool = False,
    asked: Any | None = None,
) -> None:
    """Return when the nodes of the cluster have room for the job. Where they have not, its autoscaler is asked for
    nodes.

    Args:
        say: called with a line of text while nodes are waited for. None: do not wait; it is enough that the autoscaler
            could start the nodes.
        fixed: the cluster has no autoscaler.
        patient: the cluster had room for the job before, so that a lost node may come back; nothing is refused.
        asked: the result of `ask_for_room`, which is released here.

    Raises:
        InputError: neither the nodes of the cluster nor those that its autoscaler may start can ever hold the job.
        RunError: the nodes have not come within `workers.start_timeout_s`.
    """
    job = job.smallest
    bundles = bundles_of(job)
    with contextlib.ExitStack() as stack:
        if asked is not None:
            stack.callback(_take_back, asked)
        if fixed:
            _await_own_node()
        if not left_over(bundles, living_nodes()):
            return
        scaling = Scaling([], 0) if fixed or patient else find_scaling()
        if scaling is not None and not patient and (problems := _never(job, bundles, scaling)):
            raise InputError(problems)
        if say is not None:
            group = asked if asked is not None else _ask(bundles)
            stack.callback(_take_back, group)
            _wait(job, bundles, scaling, say, group)


def ask_for_room(job: TrainJob) -> Any | None:
    """Ask the autoscaler for the nodes that the job lacks, without waiting for them.

    Returns:
        A placement group, to be given to `wait_for_room`; None where there is room already.

    Raises:
        InputError: the nodes can never come.
    """
    wait_for_room(job, None)
    bundles = bundles_of(job.smallest)
    return _ask(bundles) if left_over(bundles, living_nodes()) else None


def resources_text(resources: dict[str, float]) -> str:
    """Resources as text, e.g. `{CPU: 2, GPU: 1}`."""
    return (
        "{"
        + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items()) if not name.startswith("node:"))
        + "}"
    )


def _await_own_node() -> None:
    """Return when the node of a Ray that was just started here is listed, which may take a while on a busy machine."""
    end = time.monotonic() + _LISTED_S
    while not living_nodes():
        if time.monotonic() > end:
            raise RunError(
                f"Ray has started, but its node is not there after {_LISTED_S:.0f} s: its process may have been "
                f"killed. Run it again."
            )
        time.sleep(_LOOK_S)


def _never(job: TrainJob, bundles: list[dict[str, float]], scaling: Scaling) -> list[Problem]:
    """The reasons why the cluster could not hold a job even if all possible nodes came."""
    nodes = living_nodes()
    missing = left_over(bundles, nodes)
    existing = {kind.name: alive_of(kind.name) for kind in scaling.types}
    if not nodes_for(missing, scaling, existing, max(len(nodes) - 1, 0))[1]:
        return []
    if not scaling.types:
        return _too_little(job, nodes, "the cluster has")
    possible = nodes + [kind.resources for kind in scaling.types if kind.most > 0]
    if left_over([worker_of(job)], possible):
        kinds = "; ".join(f"{kind.name}: {resources_text(kind.resources)}" for kind in scaling.types)
        what = (
            f"no node of the cluster and no type its autoscaler can start holds a worker of "
            f"{resources_text(worker_of(job))} ({kinds})"
        )
        return [Problem("workers.resources_per_worker", what, "Lower it, or add a node type.")]
    most = [kind.resources for kind in scaling.types for _ in range(min(kind.most - existing[kind.name], len(bundles)))]
    return _too_little(
        job,
        nodes + most[: max(scaling.most - len(nodes) + 1, 0)],
        "with all that its autoscaler may add, the cluster has",
    )


def _too_little(job: TrainJob, nodes: list[dict[str, float]], whose: str) -> list[Problem]:
    problems, count = [], job.workers.num_workers
    for name, wanted in need_of(job).items():
        have = sum(node.get(name, 0) for node in nodes)
        if wanted > have + _SLACK:
            extra = f" (with {job.data.feed_cpus_per_worker:g} CPU for each worker's feed)" if name == "CPU" else ""
            problems.append(
                Problem("workers", f"{count} workers need {wanted:g} {name}{extra}, {whose} {have:g}", _TODO)
            )
    what = f"{count} workers of {resources_text(worker_of(job))} and their feeds do not fit on its nodes"
    return problems or [
        Problem("workers", what, "Lower num_workers or resources_per_worker, or add nodes or larger ones.")
    ]


def _ask(bundles: list[dict[str, float]]) -> Any:
    """Ask for nodes with a placement group. It is placed as a whole or not at all, and Ray removes it when this driver
    ends.
    """
    from ray.util.placement_group import placement_group

    return placement_group(bundles, strategy="PACK")


def _take_back(group: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def _wait(
    job: TrainJob, bundles: list[dict[str, float]], scaling: Scaling | None, say: Callable[[str], None], group: Any
) -> None:
    start, said, told = time.monotonic(), "", 0.0
    while left_over(bundles, living_nodes()):
        waited = time.monotonic() - start
        line = _line(job, bundles)
        if waited > job.workers.start_timeout_s:
            todo = "Raise workers.start_timeout_s, or look at the autoscaler (ray status)."
            raise RunError(
                f"the nodes have not come within workers.start_timeout_s ({job.workers.start_timeout_s:g} s): {line}. "
                f"{todo}"
            )
        if scaling is None and _is_refused(group):
            raise InputError(
                Problem("workers", f"the cluster's autoscaler has no node type that holds them: {line}", _TODO)
            )
        if line != said or waited - told >= _SAID_S:
            said, told = line, waited
            say(f"waiting for nodes, {waited:.0f} s of {job.workers.start_timeout_s:g}: {line}")
        time.sleep(_POLL_S)


def _line(job: TrainJob, bundles: list[dict[str, float]]) -> str:
    """What the job has asked for, and what the cluster has."""
    nodes = living_nodes()
    need = need_of(job)
    have = {name: sum(node.get(name, 0) for node in nodes) for name in need}
    return (
        f"asked for {_counted(bundles)}; there is {resources_text(have)} on {len(nodes)} "
        f"{'node' if len(nodes) == 1 else 'nodes'}"
    )


def _is_refused(group: Any) -> bool:
    """Has the autoscaler said that it cannot start nodes for this placement group? Only version 2 of it says so."""
    with asking_ray(
        "a job that the autoscaler can never hold is not refused before workers.start_timeout_s has passed"
    ):
        return any(group.id.hex() in details for details in infeasible_gangs())
    return False


def _counted(bundles: Iterable[dict[str, float]]) -> str:
    return " + ".join(
        f"{count} x {text}" for text, count in Counter(resources_text(bundle) for bundle in bundles).items()
    )
