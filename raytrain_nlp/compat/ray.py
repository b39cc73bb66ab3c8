"""Ray's private tables and processes, as driver and workers ask for them. A version that has renamed one must not turn
a feature off without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.compat.quiet import quiet
from raytrain_nlp.host.once import once
from raytrain_nlp.host.threads import reason_of

_RENAMED = (AttributeError, ImportError, TypeError, NameError, NotImplementedError)
"""What a name, a module or a signature that has changed raises."""
_GCS_S = 10
"""Seconds the GCS may take to answer."""


@contextlib.contextmanager
def asking_ray(lost: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Ask Ray inside; what it raises while its head is away is passed over, and the next question may be answered.

    Args:
        lost: what does not work where this Ray has the part no more. Said once in a process, with the version.
        say: says it; default: standard error.
    """
    import ray

    try:
        yield
    except _RENAMED as error:
        if ray.is_initialized():  # else it is the connection that has gone in the middle of the question
            more: dict[str, Any] = {} if say is None else {"say": say}
            once(
                f"{lost}: Ray {ray.__version__} has changed ({reason_of(error)}). Use the version this package was "
                f"tested with.",
                key=lost,
                **more,
            )
    except Exception:  # noqa: BLE001 - Ray raises what it likes
        pass


# Questions to the GCS


def available_per_node() -> dict[str, dict[str, float]]:
    """What nobody uses of each node's resources, by node id; `ray.available_resources` gives only the sum over all
    nodes.
    """
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def draining_nodes() -> dict[str, int]:
    """Ids of nodes that are being drained -> deadline in milliseconds since the epoch (0 = none); `ray.nodes` does not
    say it.
    """
    from ray._private.state import state

    return state.get_draining_nodes()


def reported_cluster_config() -> Any:
    """The node groups that an autoscaler has reported (`autoscaler_pb2.ClusterConfig`), or None; no public function
    reads them.
    """
    from ray._private.state import state

    return state.get_cluster_config()


def infeasible_gangs() -> list[str]:
    """What the second autoscaler says of each placement group it can never place;
    `ray.autoscaler.v2.sdk.get_cluster_status` leaves these out.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray's stub of this module leaves it out
    from ray.autoscaler.v2.sdk import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=_GCS_S))
    return [request.details for request in reply.autoscaling_state.infeasible_gang_resource_requests]


def placement_groups_of_this_job() -> list[tuple[str, str]]:
    """Ids of the job's placement groups and of the actors that made them, in hex. `ray.util.placement_group_table` does
    not tell the creator, `ray.util.state` needs a dashboard."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    job = ray.get_runtime_context().get_job_id()
    table = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    return [
        (entry.placement_group_id.hex(), entry.creator_actor_id.hex())
        for entry in table
        if entry.state != PlacementGroupTableData.REMOVED
        and not entry.is_detached
        and entry.creator_job_id.hex() == job
    ]


def actor_entry(actor: str) -> dict[str, Any]:
    """What the GCS knows of an actor (its id in hex), with `State` and `ActorClassName`; empty where there is none.
    `ray.util.state` needs a dashboard.
    """
    from ray._private.state import state

    return state.actor_table(actor)


def actor_id(handle: Any) -> str:
    """The id, in hex, of the actor a handle is of; only an actor itself can ask for its own
    (`get_runtime_context().get_actor_id`).
    """
    return handle._actor_id.hex()


# The driver's process


def boot_service_actors() -> None:
    """Start Ray Data's two actors of each cluster, which the first data set would otherwise wait for. A Ray without
    them changes nothing else.
    """
    with contextlib.suppress(ImportError):
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_autoscaling_coordinator()
        get_or_create_stats_actor()


def use_token() -> None:
    """Have this process authenticate as `ray.init` does in a Ray that it starts itself; to one it only connects to, it
    would send no token.
    """
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default

    with quiet("ray._private.authentication.authentication_token_setup"):
        enable_token_auth_by_default()


def make_token() -> None:
    """The same for the process that starts a Ray: where this user has no token yet, one is made, as `ray.init` makes
    it.
    """
    from ray._private.authentication.authentication_token_setup import (
        enable_token_auth_by_default,
        ensure_token_if_auth_enabled,
    )

    enable_token_auth_by_default()
    ensure_token_if_auth_enabled({}, create_token_if_missing=True)


@contextlib.contextmanager
def errors_unsaid(verbose: bool) -> Iterator[None]:
    """Patch: Ray prints what raylets tell, as that one has died, to the driver's standard output, where an answer in
    JSON may stand. Neither `log_to_driver` nor `logging_level` keeps it from that."""
    import ray._private.worker as of_ray

    printed = getattr(of_ray, "print_to_stdstream", None)
    if not verbose and printed is not None:
        of_ray.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        if printed is not None:
            of_ray.print_to_stdstream = printed


# Job submission


def largest_package() -> int:
    """Bytes a working folder may have, by which Ray refuses it only after it has been packed."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return GCS_STORAGE_MAX_SIZE


def packed_files(folder: Path) -> Iterator[Path]:
    """The files of a working folder that Ray packs: all but those its reading of .gitignore and .rayignore leaves out,
    which has no public form.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: list[Path] = []
    _dir_travel(
        folder,
        [_get_excludes(folder, [])],
        lambda path: found.append(path) if path.is_file() else None,
        include_gitignore=True,
    )
    yield from found
