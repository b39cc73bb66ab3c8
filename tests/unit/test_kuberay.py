"""The manifest of `submit --kuberay`: what Ray's own reading of it for the autoscaler gives, and that it carries no
secret.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain_nlp.cluster.kuberay import manifest
from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError


def job_file(folder: Path, **sections: Any) -> str:
    tiny = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    job = {
        "name": "My_Run.1",
        "storage_path": "/mnt/shared/runs",
        "task": {"type": "text-classification", "text_columns": ["text"]},
        "model": {"config": tiny, "tokenizer": "train"},
        "data": {"train": "s3://bucket/train.jsonl"},
        "workers": {"num_workers": 4, "use_gpu": True, "resources_per_worker": {"CPU": 6, "GPU": 1}},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job | sections))
    return str(path)


def test_rays_autoscaler_reads_what_the_job_needs(tmp_path: Path) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    text = manifest(
        job_file(tmp_path),
        image="registry/mine:1",
        overrides=["training.max_steps=7"],
        arguments=["--resume"],
        env=["HF_TOKEN"],
    )
    files, ray_job = yaml.safe_load_all(text)
    assert (ray_job["apiVersion"], ray_job["kind"], ray_job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "my-run-1")
    spec = ray_job["spec"]
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "r", "namespace": "n"}, "spec": spec["rayClusterSpec"]}
    )  # validates, too
    kinds = config["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0 and kinds["headgroup"]["max_workers"] == 0
    train = kinds["train"]
    assert (train["min_workers"], train["max_workers"], train["resources"]["CPU"], train["resources"]["GPU"]) == (
        0,
        4,
        7,
        1,
    )  # 6, and its feed
    assert kinds["data"]["resources"].get("GPU", 0) == 0
    assert spec["entrypoint"] == "python -m raytrain_nlp.cli.main train /home/ray/job/job.yaml --resume"
    again = load_job(yaml.safe_load(files["data"]["job.yaml"]))
    assert again.arguments()["max_steps"] == 7 and again.workers.num_workers == 4
    pods = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        (container,) = pod["containers"]
        assert container["env"] == [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "raytrain-nlp", "key": "HF_TOKEN"}}}
        ]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["image"] == "registry/mine:1"


POD: dict[str, Any] = {"spec": dict}
GROUP = {"rayStartParams": {str: str}, "template": POD}
WORKERS = {**GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
OPTIONS = {
    "version": {"v1", "v2"},
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "idleTimeoutSeconds": int,
}
RAY_JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode"},
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": {
        "rayVersion": str,
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": OPTIONS,
        "headGroupSpec": GROUP,
        "workerGroupSpecs": [WORKERS],
    },
}
"""Fields of KubeRay's own types (ray-operator/apis/ray/v1/rayjob_types.go, raycluster_types.go) that are written."""


def assert_like(value: Any, wanted: Any, at: str) -> None:
    """A field that KubeRay does not know would be dropped without a word; one of another type is refused."""
    if isinstance(wanted, set):
        assert value in wanted, at
    elif isinstance(wanted, list):
        for number, item in enumerate(value):
            assert_like(item, wanted[0], f"{at}[{number}]")
    elif isinstance(wanted, dict) and str in wanted:
        assert all(type(key) is str and type(item) is str for key, item in value.items()), at
    elif isinstance(wanted, dict):
        assert value.keys() <= wanted.keys(), at
        for key, item in value.items():
            assert_like(item, wanted[key], f"{at}.{key}")
    else:
        assert type(value) is wanted, at


@pytest.mark.parametrize("resources", [{"CPU": 6, "GPU": 1}, {"CPU": 1, "place": 1}])
def test_every_field_is_one_of_kuberays(tmp_path: Path, resources: dict[str, Any]) -> None:
    workers = {"num_workers": 2, "use_gpu": "GPU" in resources, "resources_per_worker": resources}
    _, ray_job = yaml.safe_load_all(manifest(job_file(tmp_path, workers=workers), image="i", overrides=[]))
    assert ray_job.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert_like(ray_job["spec"], RAY_JOB, "spec")


def test_no_value_of_the_environment_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    assert "hf_canary" not in manifest(job_file(tmp_path), image="i", env=["HF_TOKEN"])


def test_what_no_pod_would_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        manifest(job_file(tmp_path, storage_path="runs", data={"train": ["a.jsonl", "/mnt/shared/b.jsonl"]}), image="i")
    assert [problem.where for problem in caught.value.problems] == ["storage_path", "data.train"]
    (tmp_path / "sweep.yaml").write_text("kind: sweep\njob: job.yaml\n")
    with pytest.raises(InputError, match="is a sweep"):
        manifest(str(tmp_path / "sweep.yaml"), image="i")
