"""`storage_path: s3://...` on a server that is slow and fails: a run survives the kills of a worker and of its driver,
and all verbs find it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import ObjectStore
from support import TINY, checkpoint_tensors, hook_environment, run_cli, start_cli, tiny_job, write_job, write_rows

import raytrain_nlp

ROWS, STEPS, SAVE = 393, 25, 5
# Seconds that the server waits before each answer while things are killed and swept; one write in five fails besides.
DELAY = float(os.environ.get("OBJECT_STORE_DELAY", "0.1"))
URL = "s3://bucket/runs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "validation.jsonl", 64, seed=1)
    return folder


def job_of(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    """25 steps of ZeRO-3 with dropout (so that RNG states matter), a checkpoint every 5, of which two are kept."""
    return tiny_job(
        folder,
        name,
        model={"config": {**TINY, "hidden_dropout_prob": 0.1}},
        deepspeed={"zero_stage": 3},
        workers={"max_failures": 2},
        data={"validation": str(folder / "validation.jsonl")},
        checkpoint={"save_steps": SAVE, "save_total_limit": 2},
        **sections,
    )


@pytest.fixture(scope="module")
def truth(train_warm: Any, folder: Path) -> Path:
    """The run in a folder, never killed."""
    return Path(train_warm(job_of(folder, "whole")).run_dir)


@pytest.fixture(scope="module")
def killed(
    _ray: str, hooks_file: Path, object_store: ObjectStore, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """A worker and then the driver killed in the midst of steps, the storage failing all the while; resumed. What the
    storage has in the end.
    """
    scratch = tmp_path_factory.mktemp("killed")
    job = write_job(job_of(folder, "killed", storage_path=URL), scratch / "job.yaml")
    env = hook_environment(hooks_file) | object_store.environment
    object_store.behave(DELAY, failing=0.2)
    driver = start_cli("train", job, env=env, address=_ray)
    kills = [
        {"point": "mid_step", "rank": 1, "step": 13, "marker": str(scratch / "worker-killed")},
        {"point": "mid_step", "rank": 0, "step": 22, "marker": str(scratch / "driver-killed"), "parent": driver.pid},
    ]
    hooks_file.write_text(json.dumps({"kill": kills}))
    _, err = driver.communicate(timeout=900)
    assert driver.returncode == -9 and (scratch / "worker-killed").exists() and (scratch / "driver-killed").exists(), (
        err
    )
    second = run_cli("train", job, env=env, address=_ray)
    assert second.returncode == 2 and "exists already (running). Add --resume" in second.stderr
    ended = run_cli("train", job, "--resume", "--json", env=env, address=_ray)
    hooks_file.write_text("{}")
    object_store.behave()
    assert ended.returncode == 0 and "resuming at step" in ended.stderr, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["model_dir"] == f"{URL}/killed/model"
    assert object_store.requests()["failed"] > 20
    return object_store.objects("bucket", "runs/")


def files_of(objects: dict[str, bytes], prefix: str, folder: Path) -> Path:
    for key, content in objects.items():
        if key.startswith(prefix):
            path = folder / key.removeprefix(prefix).strip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def test_bits_are_those_of_the_run_in_a_folder(killed: dict[str, bytes], truth: Path, tmp_path: Path) -> None:
    assert killed["runs/killed/model/model.safetensors"] == (truth / "model" / "model.safetensors").read_bytes()
    name = f"checkpoint-{STEPS}"
    ours = checkpoint_tensors(files_of(killed, f"runs/killed/checkpoints/{name}/", tmp_path / name))
    theirs = checkpoint_tensors(truth / "checkpoints" / name)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_what_lies_in_the_storage(killed: dict[str, bytes], tmp_path: Path) -> None:
    """Two checkpoints, each whole by its manifest; every loss once in MLflow; no leftovers of ours, there or here."""
    names = {key.removeprefix("runs/killed/") for key in killed if key.startswith("runs/killed/")}
    manifests = {name: json.loads(killed[f"runs/killed/{name}"]) for name in names if name.endswith("/manifest.json")}
    assert sorted(manifests) == ["checkpoints/checkpoint-20/manifest.json", "checkpoints/checkpoint-25/manifest.json"]
    whole = {
        f"{Path(name).parent}/{entry['path']}" for name, manifest in manifests.items() for entry in manifest["files"]
    }
    assert {name for name in names if name.startswith("checkpoints/")} == whole | set(manifests)
    assert json.loads(killed["runs/killed/run.json"])["status"] == "finished"
    assert not [name for name in names if name.startswith("events/") or name == "driver.json"]
    from mlflow import MlflowClient

    (tmp_path / "mlflow.db").write_bytes(killed["runs/killed/mlflow.db"])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("raytrain_nlp").experiment_id])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, STEPS + 1))


def test_verbs_on_the_run(
    killed: dict[str, bytes],
    object_store: ObjectStore,
    folder: Path,
    tmp_path: Path,
    shared_ray: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`evaluate` gives the run's own figures; `export` and `predict` the model's; `report` reads its events."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    run = f"{URL}/killed"
    own = json.loads(killed["runs/killed/run.json"])["result"]["metrics"]
    found = raytrain_nlp.evaluate(run).metrics
    assert {key: found[key] for key in ("eval_loss", "eval_accuracy")} == pytest.approx(
        {key: own[key] for key in ("eval_loss", "eval_accuracy")}, abs=1e-6
    )
    raytrain_nlp.export(run, tmp_path / "model", checkpoint=20)
    raytrain_nlp.export(run, tmp_path / "last", checkpoint="last")
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == killed["runs/killed/model/model.safetensors"]
    assert raytrain_nlp.predict(run, str(folder / "validation.jsonl"), "s3://bucket/out/predicted.jsonl").rows == 64
    rows = object_store.objects("bucket", "out/")["out/predicted.jsonl"].splitlines()
    assert sum(
        str(json.loads(row)["prediction"]) == str(json.loads(row)["label"]) for row in rows
    ) / 64 == pytest.approx(own["eval_accuracy"])
    raytrain_nlp.report(run, output=tmp_path / "report.html")
    assert "went on from step" in (tmp_path / "report.html").read_text()


def test_sweep(
    object_store: ObjectStore, folder: Path, tmp_path: Path, shared_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials; the best model and the table are in the storage, and the sweep's best trial is a run for the
    verbs.
    """
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    sweep = {
        "kind": "sweep",
        "name": "swept",
        "job": job_of(folder, "base", storage_path=URL),
        "search_space": {"training.learning_rate": {"grid": [1e-3, 1e-2]}},
        "searcher": {"type": "grid"},
        "metric": "eval_loss",
        "mode": "min",
    }
    object_store.behave(DELAY, failing=0.2)
    result = raytrain_nlp.sweep(sweep)
    object_store.behave()
    assert result.trials == {"finished": 2, "stopped": 0, "failed": 0} and result.tokenized_rows == 0
    objects = object_store.objects("bucket", "runs/swept/")
    best = f"runs/swept/trials/trial-{result.best_trial:04d}"
    assert objects["runs/swept/model/model.safetensors"] == objects[f"{best}/model/model.safetensors"]
    assert {
        "runs/swept/trials.csv",
        "runs/swept/best.yaml",
        "runs/swept/sweep.json",
        "runs/swept/mlflow.db",
    } <= objects.keys()
    assert raytrain_nlp.evaluate(f"{URL}/swept").metrics["eval_loss"] == pytest.approx(
        result.best_metrics["eval_loss"], abs=1e-6
    )


def test_a_bucket_that_is_not_there_is_told(
    object_store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(raytrain_nlp.InputError, match=r"^storage_path: cannot be written \(s3://nothing/runs"):
        raytrain_nlp.train(job_of(folder, "nowhere", storage_path="s3://nothing/runs"))
