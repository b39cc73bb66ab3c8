"""The commands of a user on a machine with a GPU: what a job leaves open is settled for it, and one that does not use
it leaves it alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import support

import raytrain_nlp
from raytrain_nlp.cluster import gpus
from raytrain_nlp.errors import InputError

JOBS = Path(__file__).parents[2] / "jobs"
SHORT = [
    "--set",
    "training.max_steps=6",
    "--set",
    "training.logging_steps=1",
    "--set",
    "training.eval_strategy=no",
    "--set",
    "training.save_strategy=no",
]


def finished(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The quickstart as it is, but short: its result, and what was said."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = support.run_cli(
        "train", str(JOBS / "quickstart.yaml"), "--json", *SHORT, "--set", f"storage_path={folder}", cwd=folder
    )
    return finished(done), done.stderr


def test_the_quickstart_takes_the_gpus(quickstart: tuple[dict[str, Any], str]) -> None:
    result, said = quickstart
    cards = gpus.local_gpus()
    assert said.splitlines()[0].startswith(f"{result['world_size']} worker") and cards[0].name in said.splitlines()[0]
    assert 1 <= result["world_size"] <= len(cards)
    run = Path(result["run_dir"])
    record = json.loads((run / "run.json").read_text())
    assert record["job"]["workers"]["use_gpu"] is True and record["job"]["training"].get("bf16", False) is all(
        gpu.bf16 for gpu in cards
    )
    losses = support.losses(run)
    assert len(losses) == 6 and all(map(math.isfinite, losses))
    peak = next(event["peak_memory"] for event in support.events(run) if event["kind"] == "end")
    assert all(10**8 < size < cards[0].memory for size in peak)


def test_the_same_on_its_cpus(tmp_path: Path) -> None:
    """ZeRO-3 of two workers that must not see the GPU."""
    arguments = [*SHORT, "--set", "workers={use_gpu: false}", "--set", f"storage_path={tmp_path}"]
    done = support.run_cli("train", str(JOBS / "quickstart.yaml"), "--json", *arguments, cwd=tmp_path)
    result = finished(done)
    assert done.stderr.splitlines()[0] == "2 workers on CPUs" and result["world_size"] == 2
    assert not any(
        "gpu" in key
        for event in support.events(Path(result["run_dir"]))
        if event["kind"] == "log"
        for key in event["metrics"]
    )
    assert all(
        size > 10**8
        for size in next(
            event["peak_memory"] for event in support.events(Path(result["run_dir"])) if event["kind"] == "end"
        )
    )


def test_a_prediction_on_the_gpu_and_on_cpus(quickstart: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    """Where the run was trained on GPUs by choice, the machine that predicts chooses anew; both find the same
    classes.
    """
    support.write_rows(tmp_path / "rows.jsonl", 40)
    found = {}
    for name, extra in {"gpu": [], "cpu": ["--set", "workers={use_gpu: false, num_workers: 1}"]}.items():
        arguments = [
            "--input",
            str(tmp_path / "rows.jsonl"),
            "--output",
            str(tmp_path / f"{name}.jsonl"),
            "--json",
            *extra,
        ]
        assert finished(support.run_cli("predict", quickstart[0]["run_dir"], *arguments, cwd=tmp_path))["rows"] == 40
        found[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    column = next(
        key for key in found["gpu"][0] if key not in ("text", "label") and isinstance(found["gpu"][0][key], str)
    )
    same = sum(one[column] == other[column] for one, other in zip(found["gpu"], found["cpu"], strict=True))
    assert same >= 38  # rounding may turn a close one


def test_a_sweep_of_a_lora_classifier(tmp_path: Path) -> None:
    """Learning rate and rank under ZeRO-3: adapters and head are of one kind, and as many trials at a time as there are
    GPUs.
    """
    support.write_rows(tmp_path / "train.jsonl", 128)
    job = support.tiny_job(
        tmp_path,
        "x",
        data={"validation": str(tmp_path / "train.jsonl")},
        lora={"r": 4, "target_modules": "all-linear"},
        deepspeed={"zero_stage": 3},
        training={"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2},
    )
    job["workers"] = {"num_workers": 1}
    sweep = {
        "kind": "sweep",
        "name": "sweep",
        "storage_path": job["storage_path"],
        "job": job,
        "metric": "eval_loss",
        "mode": "min",
        "num_samples": 3,
        "search_space": {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}, "lora.r": {"choice": [2, 4]}},
    }
    result = finished(
        support.run_cli("sweep", support.write_job(sweep, tmp_path / "sweep.json"), "--json", cwd=tmp_path)
    )
    assert result["trials"].get("finished") == 3, result["trials"]


def test_what_the_gpus_cannot_do_is_refused_before_anything_starts(tmp_path: Path) -> None:
    support.write_rows(tmp_path / "train.jsonl", 16)
    there = len(gpus.local_gpus())
    for workers, line in (
        (
            {"num_workers": there + 1, "use_gpu": True},
            f"{there + 1} workers need {there + 1} GPUs, this machine has {there}",
        ),
        ({"num_workers": 2, "use_gpu": True, "resources_per_worker": {"GPU": 0.5}}, "gives 2 workers parts of a GPU"),
    ):
        with pytest.raises(InputError, match=line):
            raytrain_nlp.check({**support.plain_job(tmp_path, "refused"), "workers": workers})
