"""Ray's private tables and processes, as driver and workers use them. Where a version of Ray has renamed something, the
feature that needs it is not lost silently.
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
"""Exceptions that a changed name, module or signature raises."""
_GCS_S = 10
"""Seconds within which the GCS must answer."""


@contextlib.contextmanager
def asking_ray(lost: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Ask Ray something inside the block. Exceptions that Ray raises, as while its head cannot be reached, are ignored:
    the next question may be answered.

    Args:
        lost: what does not work where this version of Ray has changed; shown once in a process, with the version.
        say: shows it; default: standard error.
    """
    import ray

    try:
        yield
    except _RENAMED as error:
        if ray.is_initialized():  # otherwise the connection was lost in the middle of the call
            more: dict[str, Any] = {} if say is None else {"say": say}
            once(
                f"{lost}: Ray {ray.__version__} has changed ({reason_of(error)}). Use the version this package was "
                f"tested with.",
                key=lost,
                **more,
            )
    except Exception:  # noqa: BLE001 - Ray raises many kinds of exceptions
        pass


# Questions to the GCS


def available_per_node() -> dict[str, dict[str, float]]:
    """Node id -> its unused resources. `ray.available_resources` returns only their sum over all nodes."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def draining_nodes() -> dict[str, int]:
    """Id of each node that is being drained -> deadline in milliseconds since the epoch (0: none). `ray.nodes` does not
    contain it.
    """
    from ray._private.state import state

    return state.get_draining_nodes()


def reported_cluster_config() -> Any:
    """The node groups that an autoscaler has reported (`autoscaler_pb2.ClusterConfig`), or None. No public function
    reads them.
    """
    from ray._private.state import state

    return state.get_cluster_config()


def infeasible_gangs() -> list[str]:
    """What version 2 of the autoscaler says about each placement group that it can never place.
    `ray.autoscaler.v2.sdk.get_cluster_status` leaves these out.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray's stub of this module leaves it out
    from ray.autoscaler.v2.sdk import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=_GCS_S))
    return [request.details for request in reply.autoscaling_state.infeasible_gang_resource_requests]


def placement_groups_of_this_job() -> list[tuple[str, str]]:
    """(id, id of the actor that created it), in hex, of each placement group of this Ray job.
    `ray.util.placement_group_table` does not contain the creator, and `ray.util.state` needs a dashboard.
    """
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
    """The GCS's entry of an actor, with `State` and `ActorClassName`; empty where there is none. `ray.util.state` needs
    a dashboard.

    Args:
        actor: the actor's id, in hex.
    """
    from ray._private.state import state

    return state.actor_table(actor)


def actor_id(handle: Any) -> str:
    """The id, in hex, of the actor behind a handle. In public, only the actor itself can get its id
    (`get_runtime_context().get_actor_id`).
    """
    return handle._actor_id.hex()


# The driver's process


def boot_service_actors() -> None:
    """Start the two actors that Ray Data has in each cluster, for which the first dataset would otherwise wait. Does
    nothing in a version of Ray without them.
    """
    with contextlib.suppress(ImportError):
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_autoscaling_coordinator()
        get_or_create_stats_actor()


def use_token() -> None:
    """Make this process authenticate as `ray.init` does with a Ray that it starts itself. When it only connects to one,
    it would send no token.
    """
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default

    with quiet("ray._private.authentication.authentication_token_setup"):
        enable_token_auth_by_default()


def make_token() -> None:
    """As `use_token`, for the process that starts a Ray; creates a token, as `ray.init` does, where this user
    has none.
    """
    from ray._private.authentication.authentication_token_setup import (
        enable_token_auth_by_default,
        ensure_token_if_auth_enabled,
    )

    enable_token_auth_by_default()
    ensure_token_if_auth_enabled({}, create_token_if_missing=True)


@contextlib.contextmanager
def raylet_errors_hidden(verbose: bool) -> Iterator[None]:
    """Patch: while inside, unless `verbose`, Ray does not print what raylets report, such as the death of one, to the
    driver's standard output, where a JSON answer may go. Neither `log_to_driver` nor `logging_level` prevents that.
    """
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
    """Most bytes that a working directory may have. Ray refuses a larger one only after it has packed it."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return GCS_STORAGE_MAX_SIZE


def packed_files(folder: Path) -> Iterator[Path]:
    """The files of a working directory that Ray packs: all except those excluded by .gitignore and .rayignore, as Ray
    reads these. There is no public function for this.
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
