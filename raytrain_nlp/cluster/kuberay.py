"""`submit JOB --kuberay`: a manifest for KubeRay that runs the job as a RayJob, on a cluster of its own that starts
without workers and is removed after the job.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.cluster.resources import worker_of
from raytrain_nlp.cluster.targets import Place
from raytrain_nlp.config import TrainJob, dump_job
from raytrain_nlp.config.data import sources_of
from raytrain_nlp.config.load import load_job, read_values
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.storage import open_storage

_FOLDER = "/home/ray/job"
_FILE = "job.yaml"
_CLAIM = "raytrain-nlp"
_MEMORY_GI = {"head": 8, "data": 16, "train": 32}
_NOTES = f"""\
# {{name}} as a RayJob (KubeRay 1.3 or newer): kubectl apply -f FILE
#
# It needs an image with this package ({{image}}). Environment variables come from the secret
# '{_CLAIM}', never from this file. Where storage_path is a folder, it is a volume that many nodes may write
# (ReadWriteMany: EFS, Filestore, CephFS), bound to the claim '{_CLAIM}'. For s3:// and gs:// the credentials come from
# the service account of the pods, or from variables named by --env.
# The values of `memory` below are guesses: set what the model needs.
#
# {{workers}}. For pods with a GPU each: --set workers.use_gpu=true --set workers.num_workers=N.
"""


def manifest(
    job: str, *, image: str, arguments: Iterable[str] = (), overrides: Iterable[str] = (), env: Iterable[str] = ()
) -> str:
    """Documents for `kubectl apply`, as YAML: a ConfigMap with the job file, and the RayJob that runs it.

    Args:
        job: path of a job file for `train`.
        image: image of all pods, in which this package is installed.
        arguments: further arguments of the verb, e.g. --resume.
        overrides: `dotted.key=value`, applied to the job file.
        env: names of environment variables, taken from the secret `raytrain-nlp`.

    Raises:
        InputError: the job is wrong, is a sweep, or needs files that only this machine has.
    """
    import yaml

    if read_values(job).get("kind") == "sweep":
        raise InputError(
            Problem(
                "--kuberay",
                f"is for a job of `train` ({job} is a sweep)",
                "Submit the sweep to a running cluster: submit JOB --address URL.",
            )
        )
    found = settled(load_job(job, overrides), find=lambda: Place("the cluster that it makes"))
    loaded = found.job
    if problems := _check(loaded):
        raise InputError(problems)
    name = _kubernetes_name(loaded.name)
    files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {_FILE: dump_job(loaded)}}
    entrypoint = shlex.join(["python", "-m", "raytrain_nlp.cli.main", "train", f"{_FOLDER}/{_FILE}", *arguments])
    ray_job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": entrypoint,
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}),
            "submissionMode": "K8sJobMode",
            # Ray Train restarts failed workers; the run of a failed driver is continued with --resume
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 300,
            "rayClusterSpec": _cluster(loaded, name, image, [*env]),
        },
    }
    return _NOTES.format(name=loaded.name, image=image, workers=found.line) + yaml.dump_all(
        [files, ray_job], Dumper=_dumper(), sort_keys=False
    )


def _dumper() -> type:
    """A YAML dumper that writes multi-line text as a block, and no references."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return Dumper


def _check(job: TrainJob) -> list[Problem]:
    """Paths of this machine in the job; a pod sees only the image and the shared volume."""
    problems = []
    paths = {
        "storage_path": job.storage_path,
        "data.train": job.data.train,
        "data.validation": sources_of(job.data.validation),
    }
    for key, value in paths.items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and not re.match(r"[a-z0-9]+:", path) and not Path(path).is_absolute():
                todo = f"Name it as it is on the shared volume, e.g. /mnt/shared/{path}."
                problems.append(Problem(key, f"is relative ({path}), and a pod has no folder of yours", todo))
    return problems


def _cluster(job: TrainJob, name: str, image: str, env: list[str]) -> dict[str, Any]:
    """A head that runs no work, a pod for each worker and its feed, and pods that prepare data."""
    worker = worker_of(job)
    cpus = math.ceil(worker["CPU"] + job.data.feed_cpus_per_worker)
    gpus = math.ceil(worker.get("GPU", 0))
    custom = {key: int(amount) for key, amount in worker.items() if key not in ("CPU", "GPU", "memory") and amount}

    def group(kind: str, most: int, cpus: int, gpus: int = 0) -> dict[str, Any]:
        params = {"resources": '"' + str(custom).replace("'", '\\"') + '"'} if custom and kind == "train" else {}
        pod = _pod(job, name, image, env, kind, cpus, gpus)
        return {
            "groupName": kind,
            "replicas": 0,
            "minReplicas": 0,
            "maxReplicas": most,
            "rayStartParams": params,
            "template": pod,
        }

    from importlib.metadata import version

    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": 300},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _pod(job, name, image, env, "head", 2, 0)},
        "workerGroupSpecs": [
            group("train", job.workers.num_workers, cpus, gpus),
            group("data", max(job.workers.num_workers // 2, 1), 4),
        ],
    }


def _pod(job: TrainJob, name: str, image: str, env: list[str], kind: str, cpus: int, gpus: int) -> dict[str, Any]:
    amounts = {"cpu": str(cpus), "memory": f"{_MEMORY_GI[kind]}Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    shared = open_storage(job.storage_path).shared
    secrets = [{"name": key, "valueFrom": {"secretKeyRef": {"name": _CLAIM, "key": key}}} for key in env]
    container = {
        "name": f"ray-{kind}",
        "image": image,
        "resources": {"limits": amounts, "requests": amounts},
        **({"env": secrets} if secrets else {}),
        "volumeMounts": [
            {"name": "job", "mountPath": _FOLDER},
            *([{"name": "storage", "mountPath": job.storage_path}] if shared else []),
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    volumes = [
        {"name": "job", "configMap": {"name": name}},
        *([{"name": "storage", "persistentVolumeClaim": {"claimName": _CLAIM}}] if shared else []),
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # Ray's object store, and what ranks of one node share
    ]
    return {"spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes}}


def _kubernetes_name(name: str) -> str:
    """The run's name in a form that Kubernetes accepts, short enough for the suffixes of KubeRay."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40].strip("-") or "run"
