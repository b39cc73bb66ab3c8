"""`check JOB --cluster FILE`: the nodes of a `ray up` cluster file that a job will use, computed with the code of Ray's
autoscaler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain_nlp.cluster.capacity import resources_text
from raytrain_nlp.cluster.resources import MOST_LISTED, bundles_of, left_over, nodes_for, read_scaling, worker_of
from raytrain_nlp.cluster.targets import Place, place_of
from raytrain_nlp.compat.ray_autoscaler import check_cluster_file
from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.yaml_text import parse_yaml
from raytrain_nlp.errors import InputError, Problem


def plan_nodes(job: TrainJob, path: str) -> dict[str, int]:
    """Type of node -> number of nodes that the autoscaler starts for the job, besides the head. Raises `InputError`
    where the cluster cannot hold the job.
    """
    config = _read(path)
    head = config["available_node_types"][config["head_node_type"]].get("resources") or {}
    scaling, bundles = read_scaling(config), bundles_of(job)
    found, left = nodes_for(left_over(bundles, [head]), scaling, {}, 0)
    if not left:
        return found
    kinds = "; ".join(
        f"{kind.name}: {resources_text(kind.resources)} x {min(kind.most, scaling.most)}" for kind in scaling.types
    )
    if left_over([worker_of(job)], [head, *(kind.resources for kind in scaling.types if kind.most)]):
        what = f"no node type of {path} holds a worker of {resources_text(worker_of(job))} ({kinds})"
        raise InputError(Problem("workers.resources_per_worker", what, "Lower it, or add a node type."))
    what = (
        f"{job.workers.num_workers} workers of {resources_text(worker_of(job))} with their feeds need more nodes "
        f"than {path} allows ({kinds})"
    )
    raise InputError(Problem("workers.num_workers", what, "Lower it, or raise max_workers there."))


def place_of_file(path: str) -> Place:
    """The GPUs that the cluster of a file may have."""
    config = _read(path)
    head = config["available_node_types"][config["head_node_type"]].get("resources") or {}
    scaling = read_scaling(config)
    return place_of(
        path,
        [head, *(kind.resources for kind in scaling.types for _ in range(min(kind.most, scaling.most, MOST_LISTED)))],
    )


def _read(path: str) -> dict[str, Any]:
    """The content of a cluster file. Raises `InputError` where it breaks Ray's schema, or leaves out the resources of a
    node type.
    """
    import yaml
    from jsonschema import ValidationError  # type: ignore[import-untyped]  # its types are a package of their own

    todo = "Correct it; `cluster.yaml` of this package is an example."
    try:
        config = parse_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("is not a mapping")
        check_cluster_file(config)
    except OSError as error:
        raise InputError(
            Problem("--cluster", f"cannot be read ({path}: {error.strerror})", "Name the cluster file.")
        ) from None
    except ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "the top level"
        raise InputError(
            Problem("--cluster", f"is no cluster file of Ray's ({path}: {where}: {error.message[:200]})", todo)
        ) from None
    except (
        yaml.YAMLError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise InputError(
            Problem("--cluster", f"is no cluster file of Ray's ({path}: {' '.join(str(error).split())[:200]})", todo)
        ) from None
    bare = [
        name
        for name, kind in config["available_node_types"].items()
        if not kind.get("resources") and name != config["head_node_type"]
    ]
    if bare:
        what = f"says no resources of {', '.join(bare)} ({path}); only the cloud could tell"
        raise InputError(Problem("--cluster", what, "Write them out, e.g. resources: {CPU: 8, GPU: 1}."))
    return config
