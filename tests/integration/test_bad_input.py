"""Bad input through the real command line: exit code 2, one line a problem, no traceback, no run.

How many seconds it takes is `tests/benchmarks/refusal.py`'s question.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raytrain_nlp.checkpoint import store
from raytrain_nlp.config import load_job

STAGES = {"looking at the data ...", "preparing tokens ..."} | {
    f"{count} on CPUs ({where} has no GPU)"
    for count in ("1 worker", "2 workers")
    for where in ("this machine", "the cluster")
}
TINY = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ROWS = [{"text": f"row {number} says {'yes' if number % 2 else 'no'}", "label": number % 2} for number in range(24)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def base(folder: Path) -> dict[str, Any]:
    """A job that would train in seconds."""
    return {
        "name": "bad",
        "storage_path": str(folder / "runs"),
        "task": {"type": "text-classification"},
        "model": {"config": dict(TINY), "tokenizer": "train", "tokenizer_training": {"vocab_size": 300}},
        "data": {"train": str(folder / "train.jsonl"), "max_length": 16},
        "training": {"num_train_epochs": 1},
    }


def put(job: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; None removes it."""
    *sections, last = key.split(".")
    for section in sections:
        job = job.setdefault(section, {})
    if value is None:
        job.pop(last, None)
    else:
        job[last] = value


class Refusal:
    """One call of `raytrain-nlp train` that must be refused."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run = folder / "runs" / "bad"
        self.path = folder / "job.yaml"
        (folder / "train.jsonl").write_bytes(jsonl(ROWS))
        self.job = base(folder)
        self.here: Callable[[list[str]], tuple[int, str, str]] | None = None
        """Runs the command line in this process instead of one of its own: exit code, output, errors."""

    def check(self, expected: list[str], *arguments: str, text: str | None = None) -> None:
        """Run the job, or `text` as its file (empty: no file). `expected` is `START ... PART ... PART` of each line, in
        order.

        There are no other lines than stages.
        """
        if text is None:
            text = json.dumps(self.job)
        if text:
            self.path.write_text(text)
        before = _files(self.folder / "runs" / "bad")
        code, out, told = (self.here or self._apart)(["train", str(self.path), *arguments])
        lines = told.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert "Traceback" not in told
        assert set(lines) - set(errors) <= STAGES, told
        assert (code, out) == (2, ""), told
        assert len(errors) == len(expected), told
        for line, parts in zip(errors, expected, strict=True):
            start, *rest = parts.format(folder=self.folder).split(" ... ")
            assert line.startswith(f"error: {start}")
            assert [part for part in rest if part not in line] == [], line
        assert _files(self.run) == before  # nothing of a run is made, and nothing of an old one is touched

    def _apart(self, arguments: list[str]) -> tuple[int, str, str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf")}
        command = [sys.executable, "-m", "raytrain_nlp.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=300)
        return done.returncode, done.stdout, done.stderr


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} | (
        {"": b""} if folder.exists() else {}
    )


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    return Refusal(tmp_path)


@pytest.fixture
def on_cluster(
    refusal: Refusal, shared_ray: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refusal:
    """In this process and on the tests' own Ray: what is told depends on neither, and starting them for each case would
    take minutes.
    """
    from raytrain_nlp.cli import main as cli

    def here(arguments: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raytrain-nlp", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(refusal.folder)
    refusal.here = here
    return refusal


JOBS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "typo in a section": ({"trainig": {}}, ["trainig: unknown key ... Did you mean 'training'?"]),
    "typo in a key": ({"data.max_lenght": 8}, ["data.max_lenght: unknown key ... Did you mean 'max_length'?"]),
    "wrong types": (
        {"workers.num_workers": "two", "data.max_length": [1], "training.learning_rate": "fast"},
        [
            "data.max_length: should be a valid integer",
            "workers.num_workers: should be a valid integer ... ('two')",
            "training.learning_rate: ... 'fast'",
        ],
    ),
    "missing section": ({"task": None}, ["task: is missing"]),
    "unknown task": (
        {"task.type": "text-clasification"},
        ["task.type: unknown type ('text-clasification') ... 'text-classification'"],
    ),
    "removed TrainingArguments name": (
        {"training.evaluation_strategy": "no"},
        ["training.evaluation_strategy: was removed ... eval_strategy"],
    ),
    "name with ..": ({"name": "../bad"}, ["name: is not a run name ('../bad')"]),
    "contradictory batch sizes": (
        {"training.per_device_train_batch_size": 4, "data.global_batch_size": 6},
        ["data.global_batch_size: contradicts ... (6 and 4 x 1 x 2 = 8)"],
    ),
    "fp16 on CPU": ({"training.fp16": True}, ["training.fp16: needs a GPU"]),
    "best model without evaluation": (
        {"training.load_best_model_at_end": True},
        ["training.load_best_model_at_end: needs evaluations"],
    ),
    "file store of MLflow": (
        {"tracking.tracking_uri": "file:mlruns"},
        ["tracking.tracking_uri: MLflow's file store ... ('file:mlruns')"],
    ),
    "storage below a device": (
        {"storage_path": "/dev/null/runs"},
        ["storage_path: cannot be written (/dev/null/runs: Not a directory)"],
    ),
    "storage in /proc": ({"storage_path": "/proc/runs"}, ["storage_path: cannot be written (/proc/runs: "]),
    "storage with a name too long": ({"storage_path": "x" * 300}, ["storage_path: has a part of more than 255 bytes"]),
    "more workers than CPUs": (
        {"workers.num_workers": 5000},
        ["workers.num_workers: 5000 workers x 1 CPU need 5000 CPUs, this machine has"],
    ),
    "missing data file": (
        {"data.train": "{folder}/trian.jsonl"},
        ["data.train: there is no such file or folder ({folder}/trian.jsonl) ... 'train.jsonl'?"],
    ),
    "both data files missing": (
        {"data.train": "{folder}/x.jsonl", "data.validation": "{folder}/y.jsonl"},
        [
            "data.train: there is no such file or folder ({folder}/x.jsonl)",
            "data.validation: there is no such file or folder ({folder}/y.jsonl)",
        ],
    ),
    "unknown file format": (
        {"data.train": "{folder}/job.yaml"},
        ["data.train: unknown file format ({folder}/job.yaml) ... .jsonl"],
    ),
    "glob without a match": (
        {"data.train": "{folder}/*.parquet"},
        ["data.train: no file matches ({folder}/*.parquet)"],
    ),
    "missing columns": (
        {"task.text_columns": ["txt", "sentence"], "task.label_column": "lable"},
        [
            "data.train: no column 'txt' in {folder}/train.jsonl ... Did you mean 'text'?",
            "data.train: no column 'sentence' ... (columns: label, text)",
            "data.train: no column 'lable' ... Did you mean 'label'?",
        ],
    ),
    "missing model folder": (
        {"model": {"name_or_path": "./modell"}},
        ["model.name_or_path: there is no such folder (./modell) ... Did you mean 'model'?"],
    ),
    "folder without config.json": (
        {"model": {"name_or_path": "./model"}},
        ["model.name_or_path: is not a Hugging Face folder: no config.json (./model)"],
    ),
    "everything at once": (
        {"data.train": "{folder}/x.jsonl", "model.tokenizer": "./tokenizer"},
        ["data.train: there is no such file", "model.tokenizer: there is no such folder (./tokenizer)"],
    ),
}


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_wrong_job_is_refused_before_anything_is_loaded(refusal: Refusal, kind: str) -> None:
    """What the job, its files and their columns say is told without Ray or a model library, all at once."""
    (refusal.folder / "model").mkdir()
    changes, expected = JOBS[kind]
    for key, value in changes.items():
        put(refusal.job, key, value.format(folder=refusal.folder) if isinstance(value, str) else value)
    refusal.check(expected)


DATA: dict[str, tuple[str, bytes, list[str]]] = {
    "empty file": ("empty.jsonl", b"", ["data.train: the file is empty ({folder}/empty.jsonl)"]),
    "cut off gzip": (
        "cut.jsonl.gz",
        gzip.compress(jsonl(ROWS))[:60],
        ["{folder}/cut.jsonl.gz: cannot be read as jsonl (EOFError"],
    ),
    "text called parquet": (
        "text.parquet",
        jsonl(ROWS),
        ["{folder}/text.parquet: cannot be read as parquet (ArrowInvalid"],
    ),
    "blank lines only": ("blank.jsonl", b"\n \n\n", ["data.train: has no rows"]),
    "too many bad rows": (
        "bad.jsonl",
        jsonl(ROWS) + b'{"text": "cut\n' + jsonl(ROWS[:1]) + b'{"text": "", "label": 1}\n',
        ["data.train: 2 of 27 rows are bad ... data.max_bad_rows (0.01) ... {folder}/bad.jsonl:25: not JSON ("],
    ),
    "all labels equal": (
        "equal.jsonl",
        jsonl([{**row, "label": "a"} for row in ROWS]),
        ["data.train: all labels of column 'label' are equal ('a')"],
    ),
    "labels that are no classes": (
        "ids.jsonl",
        jsonl([{"text": "a", "label": number} for number in range(1500)]),
        ["task.label_column: has 1500 different labels in 1500 rows"],
    ),
}


@pytest.mark.parametrize("kind", sorted(DATA))
def test_wrong_data_are_refused(on_cluster: Refusal, kind: str) -> None:
    """What only reading the data shows is told with the file, or the key and what was counted."""
    name, content, expected = DATA[kind]
    (on_cluster.folder / name).write_bytes(content)
    on_cluster.job["data"]["train"] = str(on_cluster.folder / name)
    on_cluster.check(expected)


MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown model type": (
        {"model.config.model_type": "t5-unknown"},
        ["model.config.model_type: unknown model type ('t5-unknown')"],
    ),
    "misspelt key of the model's config": (
        {"model.config.hiden_size": 64},
        ["model.config.hiden_size: unknown key. Did you mean 'hidden_size'?"],
    ),
    "model type without the task's head": (
        {"model.config.model_type": "whisper"},
        ["model.config.model_type: models of type 'whisper' have no head for text-classification"],
    ),
    "model that is not in the cache": (
        {"model": {"name_or_path": "nobody/nothing"}},
        [
            "model.name_or_path: the hub cannot be asked (HF_HUB_OFFLINE is set), and nothing of this name is on this "
            "machine (nobody/nothing)"
        ],
    ),
    "dataset that cannot be reached": (
        {"data.train": "hf://nobody/nothing:train"},
        [
            "data.train: the hub cannot be asked (HF_HUB_OFFLINE is set), and nothing of this name is on this machine "
            "(hf://nobody/nothing:train)"
        ],
    ),
    "broken config.json": (
        {"model": {"name_or_path": "./model", "tokenizer": "train"}},
        ["model.name_or_path: no model can be loaded (./model: "],
    ),
    "remainder dropped is all there is": (
        {"training.dataloader_drop_last": True, "training.per_device_train_batch_size": 32},
        ["training.dataloader_drop_last: drops all 24 rows"],
    ),
}


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_wrong_model_or_plan_is_refused(on_cluster: Refusal, kind: str) -> None:
    """What a model library or the plan says is one line too; no network is waited for."""
    if "cache" in kind or "reached" in kind:
        on_cluster.here = None  # what keeps the hub's library from the network is read when it is loaded
    (on_cluster.folder / "model").mkdir()
    (on_cluster.folder / "model" / "config.json").write_text("{'no': json")
    changes, expected = MODELS[kind]
    for key, value in changes.items():
        put(on_cluster.job, key, value)
    on_cluster.check(expected)


def test_refusal_where_ray_has_to_start_too(refusal: Refusal) -> None:
    """On a laptop Ray is started while the data are read; what is wrong with them is told all the same, and Ray ends
    too.
    """
    (refusal.folder / "train.jsonl").write_bytes(jsonl([{**row, "label": "a"} for row in ROWS]))
    refusal.check(["data.train: all labels of column 'label' are equal ('a')"])


# the command line itself


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "{folder}/job.yaml: there is no such job file"),
        ("name: [bad\n", "{folder}/job.yaml:2: is not YAML"),
        ("just text", "{folder}/job.yaml: holds no mapping of sections"),
        ("name: a\nname: b\n", "{folder}/job.yaml:2: is not YAML (the key 'name' stands there twice)"),
    ],
    ids=["missing", "no YAML", "no mapping", "key twice"],
)
def test_wrong_job_file_is_refused(refusal: Refusal, text: str, expected: str) -> None:
    """A job file that is missing or is none is told with its path and line."""
    refusal.check([expected], text=text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "seed"], "--set seed: is not of the form dotted.key=value"),
        (["--set", "seed=[1"], "--set seed=[1: the value is not YAML"),
        (["--set"], "Option '--set' requires an argument"),
        (["--resumee"], "No such option: --resumee"),
        (["--resume"], "--resume: there is no run 'bad' in {folder}/runs"),
    ],
)
def test_wrong_flag_is_refused(refusal: Refusal, arguments: list[str], expected: str) -> None:
    """A wrong --set, a flag that does not exist and --resume of nothing are told in the same form as all else."""
    refusal.check([expected], *arguments)


# runs that are there already


@pytest.fixture
def started(refusal: Refusal) -> Refusal:
    """A run of the same job that was started before and failed."""
    refusal.run.mkdir(parents=True)
    job = load_job(refusal.job).model_dump(mode="json", exclude_unset=True)
    (refusal.run / "run.json").write_text(json.dumps({"status": "failed", "job": job}))
    return refusal


def test_name_in_use_is_refused(started: Refusal) -> None:
    """A name that has a run is refused with both ways on."""
    started.check(["name: the run 'bad' exists already (failed) ... --resume ... --overwrite"])


def test_folder_of_something_else_is_never_overwritten(refusal: Refusal) -> None:
    """A folder of the run's name that is no run is refused, also with --overwrite."""
    refusal.run.mkdir(parents=True)
    (refusal.run / "thesis.tex").write_text("x")
    refusal.check(["name: the folder exists and is not that of a run ({folder}/runs/bad)"], "--overwrite")


def test_resume_and_overwrite_exclude_each_other(started: Refusal) -> None:
    """Both flags together are refused."""
    started.check(["--overwrite: excludes --resume"], "--resume", "--overwrite")


def test_resume_of_a_changed_job_names_the_changes(started: Refusal) -> None:
    """A resumed job that differs where it may not is refused with each key, its value and the value of the run."""
    started.check(
        ["seed: differs ... (7, was None)", "training.learning_rate: differs from the run's own value (0.1, was None)"],
        "--resume", "--set", "training.learning_rate=1e-1", "--set", "seed=7",
    )  # fmt: skip


def test_resume_with_a_damaged_record_is_refused(started: Refusal) -> None:
    """A run.json that is cut off is told with its path."""
    (started.run / "run.json").write_text('{"status": ')
    started.check(["{folder}/runs/bad/run.json: cannot be read ... --overwrite"], "--resume")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _bit_flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])


@pytest.mark.parametrize(
    "damages", [(_truncated, _bit_flipped), (_bit_flipped, Path.unlink)], ids=["cut off, flipped", "flipped, deleted"]
)
def test_resume_where_every_checkpoint_is_damaged_is_refused(
    started: Refusal, damages: tuple[Callable[[Path], Any], ...]
) -> None:
    """Starting from step 0 would lose the work silently: a run all of whose checkpoints are damaged is refused."""
    root = started.run / "checkpoints"
    for step, apply_damage in enumerate(damages, 1):
        staging = store.staging_dir(root, step)
        staging.mkdir(parents=True)
        (staging / "model.state").write_bytes(os.urandom(100))
        files = store.describe_files(staging, [staging / "model.state"])
        committed = store.commit(root, staging, store.Manifest(step, 1, 0, "", {}, files))
        apply_damage(committed.path / "model.state")
    started.check(
        ["--resume: ... {folder}/runs/bad/checkpoints ... none of 2 checkpoints is intact ... --overwrite"], "--resume"
    )
