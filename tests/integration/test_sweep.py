"""Sweeps on a real Ray: one MLflow tree, tokens made once, bad trials that do not end the others, PBT to the bit,
nothing left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import colours, show
from mlflow import MlflowClient
from support import TINY, events, tiny_job, wait_until, write_rows

import raytrain_nlp
from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.state import load_state
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.run.trial_records import Book

ROWS, VALID = 96, 32
STEPS = ROWS // 16
"""Of an epoch."""
SMALL = {**TINY, "num_hidden_layers": 1}
CANARY = "canary-of-a-secret-4711"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "validation.jsonl", VALID, seed=1)
    return folder


def sweep_of(
    folder: Path, name: str, space: dict[str, Any], job: dict[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    small = {"model": {"config": SMALL}, "lora": lora, "deepspeed": {"zero_stage": 3}}
    base = tiny_job(folder, "base", data={"validation": str(folder / "validation.jsonl")}, **{**small, **(job or {})})
    return {
        "kind": "sweep",
        "name": name,
        "job": base,
        "search_space": space,
        "metric": "eval_accuracy",
        "mode": "max",
        **sections,
    }


@pytest.fixture
def left_behind(shared_ray: Any) -> Callable[[], list[str]]:
    """Placement groups and actors that are there now and were not when the test began; Ray Data's own of the whole
    cluster aside.
    """
    import ray
    from ray._private.state import state

    def there() -> dict[str, str]:
        groups = {
            key: f"placement group {key}"
            for key, value in ray.util.placement_group_table().items()
            if value["state"] != "REMOVED"
        }
        actors = {
            key: f"{entry['ActorClassName']} {entry['State']}"
            for key, entry in state.actor_table(None).items()
            if entry["State"] != "DEAD"
        }
        return {
            key: name for key, name in {**groups, **actors}.items() if "Stats" not in name and "Coordinator" not in name
        }

    before = there()
    return lambda: [name for key, name in there().items() if key not in before]


@pytest.fixture(scope="module")
def tree(_workers: Any, folder: Path) -> Any:
    """The sweep of three trials, one of whose losses is not a number, with secrets in the driver's environment."""
    space = {
        "training.learning_rate": {"grid": [3e-3, 1e-2, 1e30]},
        "lora.r": {"choice": [2]},
        "lora.lora_alpha": {"multiply": ["lora.r", 2]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
        patch.setenv("HF_TOKEN", CANARY)
        return raytrain_nlp.sweep(
            sweep_of(folder, "tree", space, searcher={"type": "grid"}, max_concurrent_trials=2, register_model="swept")
        )


def test_a_sweep_with_a_failing_trial(
    shared_ray: Any, left_behind: Any, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Two good trials and one that fails: the tree, the table, the best model, the tokens, the secrets."""
    result = request.getfixturevalue("tree")  # after what was there before has been noted
    paths = SweepPaths(folder / "runs", "tree")
    assert result.tokenized_rows == ROWS + VALID and result.trials == {"finished": 2, "stopped": 0, "failed": 1}
    table = result.dataframe()
    assert (
        list(table["status"]).count("failed") == 1
        and "the loss is" in table[table["status"] == "failed"]["reason"].item()
    )

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("raytrain_nlp").experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == result.mlflow_run_id]
    assert len(runs) == 4 and len(children) == 3
    assert {run.data.params["training.learning_rate"] for run in children} == {"0.003", "0.01", "1e+30"}
    assert {run.data.params["lora.r"] for run in children} == {"2"} and {
        run.data.params["lora.lora_alpha"] for run in children
    } == {"4"}
    best = [run for run in children if run.data.tags.get("raytrain_nlp.best") == "true"]
    assert [run.info.run_id for run in best] == [Book(paths).trials[result.best_trial].mlflow_run_id]
    for run in children:
        shipped = [
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "eval_accuracy")
        ]
        logged = [
            (event["step"], event["metrics"]["eval_accuracy"])
            for event in events(paths.trials / run.info.run_name)
            if "eval_accuracy" in event.get("metrics", {})
        ]
        assert shipped == logged
    artifacts = {item.path for item in client.list_artifacts(result.mlflow_run_id)} | {
        item.path for item in client.list_artifacts(result.mlflow_run_id, "plots")
    }
    assert {"trials.csv", "best.yaml", "plots/metric-over-steps.png", "plots/parallel-coordinates.png"} <= artifacts

    assert accuracy_of(Path(result.model_dir), folder) == pytest.approx(result.best_metrics["eval_accuracy"])
    assert raytrain_nlp.load_job(result.best_job).lora["lora_alpha"] == 4
    wait_until(lambda: not left_behind(), 20, f"all is given back: {left_behind()}")
    found = [file for file in (folder / "runs").rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert not found


def test_the_page_of_a_sweep_in_a_browser(chromium: str, tree: Any, tmp_path: Path) -> None:
    page = Path(raytrain_nlp.report(tree.sweep_dir).page)
    assert "<td>failed</td>" in page.read_text() and page.stat().st_size < 2_000_000
    console, asked, picture = show(chromium, page, tmp_path)
    assert not console and not asked and colours(picture) > 200


def groups_of(paths: SweepPaths) -> set[tuple[int, ...]]:
    """The process ids of each group of workers that trials ran on."""
    started = (
        event for trial in paths.trials.iterdir() for event in events(trial) if event["kind"] in ("start", "resume")
    )
    return {tuple(event["pids"]) for event in started}


def test_the_best_model_is_served(tree: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From MLflow's registry, merged, as the answers of the exported adapter."""
    import mlflow

    uri = f"sqlite:///{folder / 'runs' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    served = mlflow.pyfunc.load_model(f"models:/swept/{tree.model_version}").predict([row["text"] for row in rows])
    right = [
        label == f"LABEL_{row['label']}" or label == str(row["label"])
        for label, row in zip(served["label"], rows, strict=True)
    ]
    assert sum(right) / len(rows) == pytest.approx(accuracy_of(Path(tree.model_dir), folder))
    (version,) = MlflowClient(tracking_uri=uri).search_model_versions("name='swept'")
    assert version.run_id == Book(SweepPaths(folder / "runs", "tree")).trials[tree.best_trial].mlflow_run_id


def test_a_model_that_cannot_be_registered_is_refused(folder: Path) -> None:
    sweep = sweep_of(folder, "no-pipeline", {"training.learning_rate": {"choice": [1e-3]}}, register_model="x")
    sweep["job"]["task"] = {"type": "summarization", "text_column": "text", "summary_column": "text"}
    sweep["job"]["model"] = {"config": {"model_type": "t5", "d_model": 16, "num_layers": 1}, "tokenizer": "train"}
    with pytest.raises(raytrain_nlp.InputError, match="register_model: is not possible for summarization"):
        raytrain_nlp.sweep({**sweep, "metric": "eval_loss", "mode": "min"})


def accuracy_of(model_dir: Path, folder: Path) -> float:
    """The exported adapter on the validation rows, with PEFT and transformers alone."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(model_dir),
        AutoPeftModelForSequenceClassification.from_pretrained(model_dir, num_labels=2).eval(),
    )
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    with torch.no_grad():
        right = [
            int(model(**tokenizer(row["text"], truncation=True, max_length=48, return_tensors="pt")).logits.argmax())
            == row["label"]
            for row in rows
        ]
    return sum(right) / len(right)


def test_a_trial_on_used_workers_ends_with_the_bits_of_the_run_alone(shared_ray: Any, folder: Path) -> None:
    """LoRA under ZeRO-3 with dropout, then plain DDP, then ZeRO-3 again in the same two processes: nothing of a trial
    is left for the next.
    """
    space = {"deepspeed.zero_stage": {"grid": [3, 0, 3]}}
    job = {
        "model": {"config": {**SMALL, "hidden_dropout_prob": 0.1}},
        "training": {"save_strategy": "epoch", "neftune_noise_alpha": 5},
    }
    result = raytrain_nlp.sweep(
        sweep_of(folder, "used", space, job, searcher={"type": "grid"}, max_concurrent_trials=1)
    )
    paths = SweepPaths(folder / "runs", "used")
    order = [paths.trial(row["trial"]) for row in result.table]
    assert (
        len({tuple(event["pids"]) for trial in order for event in events(trial.run) if event["kind"] == "start"}) == 1
    )
    for trial in order[1:]:
        alone = raytrain_nlp.train(
            trial.job, overrides=[f"name=alone-{trial.run.name}", f"storage_path={folder / 'runs'}"]
        )
        files = [
            {
                entry.path: entry.sha256
                for entry in store.list_checkpoints(root)[-1].manifest.files
                if entry.path != "trainer_state.json"
            }
            for root in (trial.checkpoints, Path(alone.run_dir) / "checkpoints")
        ]
        assert files[0] == files[1] and len(files[0]) > 3


def test_all_trials_fail(shared_ray: Any, folder: Path) -> None:
    sweep = sweep_of(folder, "all-fail", {"training.learning_rate": {"choice": [1e30]}}, num_samples=1)
    with pytest.raises(raytrain_nlp.RunError, match="no trial finished.*trial-0000: the loss is"):
        raytrain_nlp.sweep(sweep)


def test_a_trial_that_never_fits_is_refused(shared_ray: Any, folder: Path) -> None:
    sweep = sweep_of(
        folder,
        "too-large",
        {"lora.r": {"choice": [2]}},
        {"workers": {"num_workers": 9, "resources_per_worker": {"CPU": 1}}},
    )
    with pytest.raises(raytrain_nlp.InputError, match="9 workers needs? 13.5 CPU"):
        raytrain_nlp.sweep(sweep)
    assert not (folder / "runs" / "too-large").exists()


@pytest.mark.quick
def test_asha_stops_bad_trials_and_keeps_the_best(shared_ray: Any, folder: Path, left_behind: Any) -> None:
    space = {"training.learning_rate": {"grid": [1e-2, 1e-7, 1e-8]}}
    job = {"training": {"num_train_epochs": 3}, "deepspeed": {"zero_stage": 0}}
    scheduler = {"type": "asha", "reduction_factor": 2}
    sweep = sweep_of(
        folder,
        "asha",
        space,
        job,
        searcher={"type": "grid"},
        scheduler=scheduler,
        metric="eval_loss",
        mode="min",
        max_concurrent_trials=1,
    )
    result = raytrain_nlp.sweep(sweep)
    assert result.trials["stopped"] >= 1 and result.best_params == {"training.learning_rate": 1e-2}
    assert (
        sum(row["steps"] for row in result.table) < 3 * 3 * STEPS
        and max(row["steps"] for row in result.table) == 3 * STEPS
    )
    wait_until(lambda: not left_behind(), 20, f"all is given back: {left_behind()}")


def test_hyperband_pauses_trials_and_lets_the_best_finish(shared_ray: Any, folder: Path, left_behind: Any) -> None:
    """Two trials of the first bracket run to their ends; of the second bracket's, paused after one evaluation, the
    better one goes on.
    """
    space = {"training.learning_rate": {"grid": [1e-7, 1e-8, 1e-9, 1e-2]}}
    job, scheduler = (
        {"training": {"num_train_epochs": 2}, "deepspeed": {"zero_stage": 0}},
        {"type": "hyperband", "reduction_factor": 2},
    )
    sweep = sweep_of(
        folder, "hyperband", space, job, searcher={"type": "grid"}, scheduler=scheduler, metric="eval_loss", mode="min"
    )
    result = raytrain_nlp.sweep({**sweep, "max_concurrent_trials": 1})
    assert result.best_params == {"training.learning_rate": 1e-2} and result.trials == {
        "finished": 3,
        "stopped": 1,
        "failed": 0,
    }
    assert [row["steps"] for row in result.table] == [2 * STEPS, 2 * STEPS, STEPS, 2 * STEPS]
    paths = SweepPaths(folder / "runs", "hyperband")
    assert len(groups_of(paths)) == 1  # of workers
    for trial in paths.trials.iterdir():
        found = [event["step"] for event in events(trial) if event["kind"] == "log" and "loss" in event["metrics"]]
        assert found == list(range(1, len(found) + 1)), "a paused trial repeats or leaves out steps"
    wait_until(lambda: not left_behind(), 20, f"all is given back: {left_behind()}")


def test_a_metric_that_no_evaluation_has_ends_the_sweep_at_once(
    shared_ray: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(
        folder,
        "no-metric",
        {"training.learning_rate": {"grid": [1e-2, 1e-3]}},
        {"deepspeed": {"zero_stage": 0}},
        searcher={"type": "grid"},
    )
    with pytest.raises(raytrain_nlp.InputError, match=r"metric: no evaluation gives it \('eval_bleu'\)"):
        raytrain_nlp.sweep({**sweep, "metric": "eval_bleu"})
    assert not SweepPaths(folder / "runs", "no-metric").run.exists()
    monkeypatch.setattr(
        "raytrain_nlp.tuning.sweep.check_trials", lambda plan: []
    )  # as of figures of the user's own, whose names are not known before
    with pytest.raises(
        raytrain_nlp.InputError,
        match=r"metric: is no figure of the evaluations, which have eval_accuracy, .*eval_loss.* \(eval_bleu\)",
    ):
        raytrain_nlp.sweep({**sweep, "metric": "eval_bleu", "max_concurrent_trials": 1})
    assert len(Book(SweepPaths(folder / "runs", "no-metric")).trials) == 1


def _base_rates(entry: Any) -> set[float]:
    return set(load_state(entry.path / "scheduler.state")["scheduler"]["base_lrs"])


def test_pbt_inherits_to_the_bit(shared_ray: Any, folder: Path) -> None:
    """The bad trial goes on from the good one's checkpoint; with the bad trial's own tiny rate its weights then stay
    the donor's.
    """
    job = {"training": {"num_train_epochs": 4, "lr_scheduler_type": "constant"}}
    scheduler = {
        "type": "pbt",
        "quantile_fraction": 0.5,
        "resample_probability": 0,
        "synch": True,
        "perturbation_interval": 2,
    }
    space = {"training.learning_rate": {"choice": [1e-2, 1e-9]}}
    sweep = sweep_of(
        folder,
        "pbt",
        space,
        job,
        scheduler=scheduler,
        num_samples=2,
        max_concurrent_trials=2,
        metric="eval_loss",
        mode="min",
    )
    raytrain_nlp.sweep({**sweep, "seed": 42})
    paths = SweepPaths(folder / "runs", "pbt")
    inherited = [
        (trial, event["text"])
        for trial in sorted(paths.trials.iterdir())
        for event in events(trial)
        if event["kind"] == "notice"
    ]
    exploits = [
        (trial, int(text.split("step ")[1].split()[0]), text.rstrip(".").split()[-1]) for trial, text in inherited
    ]
    assert min(step for _, step, _ in exploits) < 4 * STEPS, "no trial was exploited before its end"
    for trial, step, donor in exploits:
        (given,) = [
            entry for entry in store.list_checkpoints(paths.trials / donor / "donated") if entry.manifest.step == step
        ]
        (taken,) = [entry for entry in store.list_checkpoints(trial / "checkpoints") if entry.manifest.step == step]
        assert {entry.path: entry.sha256 for entry in taken.manifest.files} == {
            entry.path: entry.sha256 for entry in given.manifest.files
        }
        assert store.damage(taken) is None
        assert any(event["kind"] == "resume" and event["step"] == step for event in events(trial))
        record = Book(paths).trials[int(trial.name[-4:])]
        changes = [
            change["params"] for change in record.exploits if change["after_step"] <= step
        ]  # Tune's choice of a rate is not seeded
        (first,) = _base_rates(
            next(entry for entry in store.list_checkpoints(trial / "checkpoints") if entry.manifest.step == STEPS)
        )
        rate = changes[-1]["training.learning_rate"] if changes else first
        own = [entry for entry in store.list_checkpoints(trial / "checkpoints") if entry.manifest.step == step + STEPS]
        assert bool(own) == (step < 4 * STEPS)
        assert all(_base_rates(entry) == {rate} for entry in own)
    assert len(groups_of(paths)) == 2  # of workers: trials that go on find those of trials that paused
