"""What integration and fault tests share: tiny data, a tiny model, jobs, and runs through the real command line."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOOKS = Path(__file__).parent / "hooks"
_WORDS = "ada bell curie darwin euler fermi gauss hopper ising joule kepler lovelace maxwell noether".split()
TINY = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Rows whose label is the word that occurs more often; texts of 3 to 30 words, all different."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            label = draw.randrange(2)
            words = draw.choices(_WORDS, k=draw.randint(2, 28)) + ["yes" if label else "no"] * draw.randint(1, 2)
            draw.shuffle(words)
            file.write(json.dumps({"text": f"{' '.join(words)} {number}", "label": label}) + "\n")
    return path


@functools.cache
def _empty_mlflow() -> bytes:
    """The database of an MLflow in which nothing has been logged: its tables take two seconds to make, once for all
    tests.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory() as folder:
        SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", folder).engine.dispose()
        return (Path(folder) / "mlflow.db").read_bytes()


def with_mlflow(storage: Path) -> Path:
    """A storage path in which MLflow's tables are there already."""
    storage.mkdir(parents=True, exist_ok=True)
    if not (storage / "mlflow.db").exists():
        (storage / "mlflow.db").write_bytes(_empty_mlflow())
    return storage


def tiny_job(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    """A job of seconds on CPU, and MLflow's tables below its storage path."""
    with_mlflow(folder / "runs")
    return plain_job(folder, name, **sections)


def plain_job(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    """A job of two workers, no dropout; sections are merged over it. For tests that track nothing: importing MLflow
    takes seconds.
    """
    job: dict[str, Any] = {
        "name": name,
        "storage_path": str(folder / "runs"),
        "seed": 7,
        "task": {"type": "text-classification", "text_columns": ["text"]},
        "model": {"config": TINY, "tokenizer": "train", "tokenizer_training": {"vocab_size": 400}},
        "data": {"train": str(folder / "train.jsonl"), "max_length": 48},
        "training": {
            "per_device_train_batch_size": 8,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "logging_steps": 1,
        },
        "workers": {"num_workers": 2, "resources_per_worker": {"CPU": 0.5}, "max_failures": 0},
    }
    for key, value in sections.items():
        job[key] = {**job[key], **value} if isinstance(value, dict) and isinstance(job.get(key), dict) else value
    return job


def hook_environment(file: Path, **wanted: Any) -> dict[str, str]:
    """The environment of a process whose workers do what `wanted` says (tests/hooks/sitecustomize.py)."""
    file.write_text(json.dumps(wanted))
    paths = [str(HOOKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAYTRAIN_NLP_TEST_HOOKS": str(file)}


def guarded(report: Path, seed: int | None = None) -> dict[str, str]:
    """The environment of a driver whose threads are watched (tests/guard/sitecustomize.py): what they should not import
    is told in `report`. With a seed, its imports take their time."""
    paths = [str(Path(__file__).parent / "guard"), *filter(None, [os.environ.get("PYTHONPATH")])]
    delays = {"RAYTRAIN_NLP_DELAYS": str(seed)} if seed is not None else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAYTRAIN_NLP_GUARD": str(report), **delays}


def start_cli(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None, address: str | None = None
) -> subprocess.Popen:
    """The command line as a user starts it, in a Ray of its own, or on the Ray that is at an address."""
    environment = {key: value for key, value in (env or os.environ).items() if key != "RAY_ADDRESS"} | (
        {"RAY_ADDRESS": address} if address else {}
    )
    command = [sys.executable, "-m", "raytrain_nlp.cli.main", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd
    )


def run_cli(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None, address: str | None = None
) -> subprocess.CompletedProcess:
    process = start_cli(*arguments, env=env, cwd=cwd, address=address)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_job(job: dict[str, Any], path: Path) -> str:
    """A job file (JSON is YAML)."""
    path.write_text(json.dumps(job))
    return str(path)


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The logged loss of each step, in order of steps; a repeated step counts once, with its last value."""
    found = {
        event["step"]: event["metrics"]["loss"]
        for event in events(run)
        if event["kind"] == "log" and "loss" in event["metrics"]
    }
    return [found[step] for step in sorted(found)]


def recorded_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Poll a condition; fails naming what did not happen."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def checkpoint_tensors(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of every state file of a checkpoint, by file and number: weights, optimizer, RNG."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.suffix in (".state", ".pt"):
            found |= {f"{path.relative_to(checkpoint)}:{key}": tensor for key, tensor in load_file(path).items()}
    return found
