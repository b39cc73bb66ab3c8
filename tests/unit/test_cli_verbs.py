"""Verbs of the command line: flags reach the function they stand for, people read a table, programs the last line;
commands become jobs word by word.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from support import TINY, plain_job
from typer.testing import CliRunner

from raytrain_nlp.cli import check as check_verb
from raytrain_nlp.cli import doctor as doctor_verb
from raytrain_nlp.cli import entry, terminal
from raytrain_nlp.cli import evaluate as evaluate_verb
from raytrain_nlp.cli import export as export_verb
from raytrain_nlp.cli import predict as predict_verb
from raytrain_nlp.cli import report as report_verb
from raytrain_nlp.cli import submit as submit_verb
from raytrain_nlp.cli import train as train_verb
from raytrain_nlp.cli.from_hf.accelerate import read_accelerate
from raytrain_nlp.cli.from_hf.command import Command, read_command
from raytrain_nlp.cli.from_hf.files import first_rows, is_number, model_config, model_length, model_positions
from raytrain_nlp.cli.from_hf.launcher import read_launcher
from raytrain_nlp.cli.from_hf.lengths import fit_positions
from raytrain_nlp.cli.from_hf.scripts import fill_data, fill_model, fill_task
from raytrain_nlp.cli.from_hf.variables import Processes, read_variables, take_precision
from raytrain_nlp.cli.main import app
from raytrain_nlp.cli.sweep import verb as sweep_verb
from raytrain_nlp.cli.sweep.table import TerminalSweepObserver, print_sweep
from raytrain_nlp.cli.terminal import TerminalObserver, print_evaluation, print_result, print_rows
from raytrain_nlp.config.sweep import load_sweep
from raytrain_nlp.errors import InputError
from raytrain_nlp.run.trial_records import FAILED, FINISHED, TrialRecord


class Result(SimpleNamespace):
    """What a verb returns, as the command line reads it."""

    features: ClassVar[dict[str, int]] = {}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "result"}

    def rows_for_people(self) -> dict[str, str]:
        return {"job": "x"}


TRAINED: dict[str, Any] = {
    "run_dir": "runs/x",
    "features": {},
    "model_dir": "runs/x/model",
    "mlflow_run_id": None,
    "global_step": 30,
    "epoch": 1.5,
    "world_size": 2,
    "rows": {"train": 9},
    "tokenized_rows": 9,
    "left_out": {},
    "bad_rows": {"train": 1},
    "cut_rows": {"train": 0},
    "dropped_rows": 0,
    "best_step": None,
    "ended_early": None,
    "restarts": 2,
    "tracking_uri": "sqlite:////my runs/mlflow.db",
    "majority_accuracy": 0.5,
    "metrics": {"eval_loss": 0.25, "epochs": 2.0},
}
SCORED: dict[str, Any] = {
    "run_dir": "runs/x",
    "weights": "model",
    "rows": 4,
    "bad_rows": 0,
    "scores": None,
    "metrics": {"eval_accuracy": 0.75},
    "labels": ["no", "yes"],
    "report": {
        "classes": {"no": {"precision": 0.5, "recall": 1.0, "f1-score": 0.6667, "support": 1}, "accuracy": 0.75},
        "confusion_matrix": [[1, 0], [1, 2]],
    },
}
SWEPT: dict[str, Any] = {
    "sweep_dir": "runs/s",
    "trials": {"finished": 2},
    "best_trial": 1,
    "best_params": {"seed": 3},
    "best_job": "best.yaml",
    "model_dir": "m",
    "model_version": None,
    "mlflow_run_id": "id",
    "tracking_uri": "sqlite:////runs/mlflow.db",
    "tokenized_rows": 5,
    "best_metrics": {"eval_loss": 0.125},
    "table": [{"trial": 0, "params.seed": 1}, {"trial": 1, "params.seed": None}],
}
PREDICTED: dict[str, Any] = {
    "output": "o.jsonl",
    "rows": 1200,
    "errors": 1,
    "quarantine": "b.quarantine.jsonl",
    "bad_rows": 2,
    "found_rows": 3,
    "seconds": 1.25,
}
EXPORTED: dict[str, Any] = {
    "output": "o",
    "adapter": False,
    "source": "model",
    "dtype": "float32",
    "size_bytes": 2_500_000,
    "model_version": "4",
    "serve_file": "o/serve.yaml",
    "gguf_file": None,
    "commit_url": None,
}
OVERRIDE = ["--set", "seed=3"]


@pytest.mark.parametrize(
    ("verb", "target", "arguments", "result", "expected", "shown"),
    [
        (
            train_verb,
            "verbs.train.train",
            ["j", *OVERRIDE, "--resume"],
            TRAINED,
            {"overrides": ["seed=3"], "resume": True, "overwrite": False},
            "30 (1.5 epochs, 2 workers)",
        ),
        (
            check_verb,
            "tuning.check.check",
            ["j", "--worker-memory", "8GB", "--price", "2"],
            {},
            {"worker_memory": "8GB", "price": 2.0, "calibrate": False},
            "job",
        ),
        (
            evaluate_verb,
            "verbs.evaluate.evaluate",
            ["r", "--data", "a", "--data", "b"],
            SCORED,
            {"data": ["a", "b"], "checkpoint": None},
            "0.6667",
        ),
        (
            export_verb,
            "verbs.export.export",
            ["r", "-o", "o", "--merge-lora", "--register", "n"],
            EXPORTED,
            {"merge_lora": True, "register": "n"},
            "n, version 4",
        ),
        (
            predict_verb,
            "verbs.predict.predict",
            ["r", "-i", "a", "-o", "b", "--generation", "num_beams=4"],
            PREDICTED,
            {"generation": {"num_beams": 4}},
            "1,200",
        ),
        (report_verb, "verbs.report.report", ["r", "s"], {"page": "p.html", "pictures": ["a", "b"]}, {}, "2 PNG files"),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else "",
)
def test_flags_reach_the_verb_and_its_result_is_read_by_people_and_programs(
    monkeypatch: pytest.MonkeyPatch,
    verb: Any,
    target: str,
    arguments: list[str],
    result: dict[str, Any],
    expected: dict[str, Any],
    shown: str,
) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr(
        f"raytrain_nlp.{target}", lambda *given, **more: heard.update(more, given=given) or Result(**result)
    )
    name = target.split(".")[1]
    done = CliRunner().invoke(app, [name, *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and {key: heard[key] for key in expected} == expected and verb.HELP
    assert shown in done.stdout and json.loads(done.stdout.splitlines()[-1]) == {"kind": "result"}
    assert "kind" not in CliRunner().invoke(app, [name, *arguments], catch_exceptions=False).stdout


def test_a_sweep_ends_with_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain_nlp.tuning.sweep.sweep", lambda job, **_: Result(**SWEPT))
    done = CliRunner().invoke(app, ["sweep", "s.yaml", "--json"], catch_exceptions=False)
    assert (
        "1: seed 3" in done.stdout
        and "2 finished" in done.stdout
        and "0.1250" in done.stdout
        and json.loads(done.stdout.splitlines()[-1])
        and sweep_verb.HELP
    )


def test_a_wrong_generation_flag_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match=r"--generation: is not KEY=VALUE \(num_beams\)"):
        predict_verb.run("r", ["a"], "b", generation=["num_beams"])


@pytest.mark.parametrize("ok", [True, False])
def test_the_doctor_says_a_line_each_and_its_exit_code_is_the_finding(
    monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    finding = SimpleNamespace(ok=ok, name="ray", what="2.60", todo="Upgrade", to_dict=lambda: {"name": "ray"})
    monkeypatch.setattr("raytrain_nlp.verbs.doctor.doctor", lambda path, uri: iter([finding]))
    done = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    assert done.exit_code == int(not ok) and json.loads(done.stdout.splitlines()[-1])["ok"] is ok and doctor_verb.HELP
    assert done.stdout.splitlines()[0].split() == (
        ["ok", "ray", "2.60"] if ok else ["problem", "ray", "2.60.", "Upgrade"]
    )


def test_submit_passes_on_what_train_would_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr("raytrain_nlp.verbs.submit.submit", lambda job, **more: heard.update(more) or Result())
    done = CliRunner().invoke(
        app,
        ["submit", "j", *OVERRIDE, "--resume", "--env", "HF_TOKEN", "--no-wait", "--installed", "--json"],
        catch_exceptions=False,
    )
    assert (
        heard["arguments"] == ["--set", "seed=3", "--resume", "--json"]
        and heard["env"] == ["HF_TOKEN"]
        and not heard["wait"]
        and not heard["ship"]
    )
    assert json.loads(done.stdout) == {"kind": "result"} and submit_verb.STOP_HELP
    job = SimpleNamespace(submission_id="id", status="FAILED", exit_code=1, message="two\nlines", to_dict=lambda: {})
    monkeypatch.setattr("raytrain_nlp.verbs.submit.open_client", lambda address, force: None)
    monkeypatch.setattr("raytrain_nlp.verbs.submit.status_of", lambda identity, client: job)
    assert (
        CliRunner().invoke(app, ["status", "id"], catch_exceptions=False).stdout
        == "id: FAILED, exit code 1. two lines\n"
    )


def test_ctrl_c_while_the_command_line_is_loaded_ends_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading:
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(__import__("sys").modules, "raytrain_nlp.cli.main", Loading())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert (
        ended.value.code == 130
        and capsys.readouterr().err == "stopped.\n"
        and signal.getsignal(signal.SIGINT) == before
    )


# what a person sees


def test_without_a_terminal_there_are_lines_and_not_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalObserver(verbose=False) as observer:
        observer.stage("looking at the data")
        for step in range(1, 50):
            observer.progress({"step": step, "total": 50, "epoch": 0.5, "loss": 1.0})
        observer.event({"kind": "resume", "step": 5, "world_size": 2})
        observer.event({"kind": "log", "step": 5, "metrics": {"eval_loss": 0.5, "eval_runtime": 3.0}})
        observer.event({"kind": "log", "step": 5, "metrics": {"loss": 0.5}})
        observer.event({"kind": "notice", "text": "a node [red]leaves"})
    told = capsys.readouterr()
    assert told.out == "" and told.err.splitlines() == [
        "looking at the data ...",
        "resuming at step 5 with 2 workers",
        "step 5: eval_loss 0.5",
        "warning: a node [red]leaves",
    ]


def test_what_a_dead_group_left_is_not_shown_and_its_end_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalObserver(verbose=False) as observer:
        observer.event({"kind": "phase", "phase": "worker"})
        observer.progress({"step": 7, "total": 50})
        observer.event({"kind": "phase", "phase": "worker"})
        observer.event({"kind": "resume", "step": 5, "world_size": 2})
    assert capsys.readouterr().err.splitlines() == [
        "step 7/50",
        "the workers have ended; others go on from the newest checkpoint",
        "resuming at step 5 with 2 workers",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, None])
def test_a_live_line_neither_wraps_nor_cuts_a_number(width: int | None) -> None:
    parts = {
        "step": "step 12345/678901",
        "epoch": "epoch 12.34",
        "loss": "loss 0.1234",
        "rate": "1,234,567 tokens/s",
        "mfu": "MFU 41%",
        "left": "12 h 34 min left",
    }
    line = terminal._fitting(parts, width)
    assert width is None or len(line) < width
    assert line.split("  ") == [part for part in parts.values() if part in line] and line.startswith(parts["step"])
    assert width is not None or line.split("  ") == list(parts.values())


def test_tables_hold_whole_texts(capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is cut cannot be copied."""
    print_rows({"run": "/a" * 200, "note": "[bold]x"})
    result: Any = Result(**TRAINED)
    print_result(result)
    print_evaluation(Result(**SCORED))
    out = capsys.readouterr().out
    assert (
        "/a" * 200 in out
        and "[bold]x" in out
        and "restarts" in out
        and "best step" not in out
        and "rows cut" not in out
    )
    assert [line.split() for line in out.splitlines() if line.startswith(("no ", "yes "))] == [
        ["no", "0.5000", "1.0000", "0.6667", "1"],
        ["no", "1", "0"],
        ["yes", "1", "2"],
    ]


def test_a_run_ends_with_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(Result(**{**TRAINED, "run_dir": "my runs/x"}), 3725.0)
    *lines, last = capsys.readouterr().out.splitlines()
    rows = dict(line.split("  ", 1) for line in lines)
    assert rows["MLflow page"].strip() == "mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db'"
    assert rows["time"].strip() == "1h02m"
    assert last == (
        "next:  raytrain-nlp predict 'my runs/x' --input FILE --output FILE   # also report, evaluate, export"
    )
    print_result(Result(**{**TRAINED, "tracking_uri": "https://mlflow.example"}))
    assert "https://mlflow.example\n" in capsys.readouterr().out


def test_figures_of_classes_with_long_names_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{sign * 60}" for sign in "ab"]
    classes = {name: {"precision": 0.5, "recall": 1.0, "f1-score": 0.6667, "support": 1} for name in names}
    print_evaluation(
        Result(**{**SCORED, "labels": names, "report": {"classes": classes, "confusion_matrix": [[1, 0], [1, 2]]}})
    )
    out = capsys.readouterr().out
    assert out.count(names[0]) == 3 and out.count("0.6667") == 2 and "…" not in out


def test_trials_are_told_as_they_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = plain_job(tmp_path, "base", data={"validation": "v.jsonl"})
    plan = load_sweep(
        {
            "kind": "sweep",
            "job": base,
            "search_space": {"seed": {"choice": [1, 2]}},
            "mode": "max",
            "metric": "eval_accuracy",
            "num_samples": 3,
        }
    )
    with TerminalSweepObserver(verbose=False) as observer:
        observer.begin(plan, 2)
        running, record = (
            TrialRecord(0, {"seed": 1}),
            TrialRecord(1, {"seed": 2}, status=FINISHED, metrics={"eval_accuracy": 0.5}, history=[{"step": 9}]),
        )
        for one in (running, record, TrialRecord(2, {}, status=FAILED, reason="no room")):
            observer.trial(one, [one])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "3 trials, 2 at a time ...",
        "trial-0000 starts: seed 1",
        "trial-0001 finished, eval_accuracy 0.5000 at step 9",
        "trial-0002 failed (no room)",
    ]
    result: Any = Result(**SWEPT)
    print_sweep(result)
    assert "attempts" not in capsys.readouterr().out


# from-hf: a command, part by part


def command_of(*words: str) -> Command:
    return read_command(list(words))


def test_a_command_is_a_script_with_typed_flags_and_a_launcher() -> None:
    found = command_of(
        "torchrun",
        "--nproc-per-node",
        "4",
        "run_glue.py",
        "--learning_rate",
        "2e-5",
        "--do_train",
        "--task_name=mrpc",
        "--max_seq_length",
        "64",
    )
    assert (found.script, found.task, found.num_workers) == ("run_glue.py", "text-classification", 4)
    assert (
        found.get("learning_rate"),
        found.get("do_train"),
        found.get("max_seq_length"),
        found.get("unknown", 7),
    ) == (2e-5, True, 64, 7) and not found.problems
    for words, line in (
        (["python", "run_mim.py"], "is not supported"),
        (["python", "run_glu.py"], "Did you mean 'run_glue.py'"),
        (["ls"], "names no script"),
    ):
        with pytest.raises(InputError, match=line):
            command_of(*words)


@pytest.mark.parametrize(
    ("words", "workers", "use_gpu"),
    [
        ([], 1, False), (["python"], 1, False), (["torchrun", "--nproc_per_node=2", "--nnodes=3"], 6, False), (["torchrun", "--nproc_per_node", "gpu"], "auto", True),  # noqa: E501
        (["torchrun", "--nproc_per_node=2", "--nnodes=1:4"], [2, 8], False), (["deepspeed", "--num_gpus", "3"], 3, True), (["deepspeed"], "auto", True),  # noqa: E501
        (["deepspeed", "--include", "a:0,1@b:2"], 3, True), (["CUDA_VISIBLE_DEVICES=0,2", "python"], 2, True), (["srun", "--ntasks", "5"], 5, False),  # noqa: E501
        (["accelerate", "launch", "--num_processes", "8", "--multi_gpu"], 8, True),
    ],
)  # fmt: skip
def test_a_launcher_says_how_many_processes_there_are(words: list[str], workers: Any, use_gpu: bool) -> None:
    found = Command("run_glue.py", "text-classification")
    read_launcher(found, words)
    assert (found.num_workers, found.use_gpu) == (workers, use_gpu)


def test_the_file_of_accelerate_goes_behind_its_flags(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    deepspeed = {"zero_stage": 3, "offload_optimizer_device": "cpu", "gradient_accumulation_steps": 4}
    file.write_text(
        yaml.safe_dump(
            {
                "distributed_type": "DEEPSPEED",
                "num_processes": 8,
                "mixed_precision": "bf16",
                "deepspeed_config": deepspeed,
            }
        )
    )
    found, processes = Command("run_glue.py", "text-classification"), Processes()
    read_accelerate(found, [("config_file", str(file)), ("num_processes", "2")], processes)
    assert processes.total == 2 and found.sharding == {"zero_stage": 3, "offload_optimizer": "cpu"}
    assert found.values == {"bf16": True, "gradient_accumulation_steps": 4} and not found.problems
    missing = Command("run_glue.py", "text-classification")
    read_accelerate(missing, [("config_file", str(tmp_path / "none"))], Processes())
    assert str(missing.problems[0]).startswith("--config_file: there is no such file")


def test_variables_before_a_command_are_read_and_named() -> None:
    found, processes = Command("run_glue.py", "text-classification"), Processes()
    words = [
        "env",
        "CUDA_VISIBLE_DEVICES=0,1,-1",
        "OMP_NUM_THREADS=4",
        "MLFLOW_EXPERIMENT_NAME=e",
        "X=1",
        "python",
        "Y=2",
    ]
    assert list(read_variables(found, words, processes)) == ["env", "python", "Y=2"]
    assert (
        processes.devices == 2
        and found.use_gpu
        and found.workers == {"resources_per_worker": {"CPU": 4}}
        and found.tracking == {"experiment_name": "e"}
    )
    assert any(note.startswith("X: ") for note in found.notes)
    take_precision(found, "fp16")
    take_precision(found, "fp8")
    assert found.values == {"fp16": True} and any("fp8 is not supported" in note for note in found.notes)


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, content: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write


def test_files_say_columns_and_models_their_length(files: Callable[[str, str], str], tmp_path: Path) -> None:
    rows = first_rows(files("a.csv", "sentence,label\ngood,0.5\n"))
    assert (
        rows is not None
        and rows[0]["sentence"] == "good"
        and is_number(rows[0]["label"])
        and not is_number("x")
        and first_rows(str(tmp_path / "none.csv")) is None
    )
    files("m/config.json", json.dumps({**TINY, "max_position_embeddings": 64}))
    files("m/tokenizer_config.json", json.dumps({"model_max_length": 48}))
    config = model_config(str(tmp_path / "m"))
    assert (
        config is not None
        and model_positions(config) == 64
        and model_length(str(tmp_path / "m")) == 48
        and model_config(str(tmp_path / "none")) is None
    )


def test_a_script_makes_sections_of_its_flags(files: Callable[[str, str], str]) -> None:
    found = Command(
        "run_glue.py",
        "text-classification",
        {"train_file": files("t.csv", "sentence1,sentence2,label\na,b,0.5\n"), "model_name_or_path": "m"},
    )
    job: dict[str, Any] = {"model": {}, "data": {}, "task": {}, "training": {}}
    fill_model(found, job)
    fill_data(found, job)
    fill_task(found, job)
    assert job["data"]["train"].endswith("t.csv") and job["task"] == {
        "text_columns": ["sentence1", "sentence2"],
        "problem_type": "regression",
    }
    glue = Command(
        "run_glue.py",
        "text-classification",
        {
            "task_name": "MNLI",
            "do_eval": True,
            "model_type": "bert",
            "config_overrides": "hidden_size=8,use_cache=false",
        },
    )
    job = {"model": {}, "data": {}, "task": {}, "training": {}}
    fill_model(glue, job)
    fill_data(glue, job)
    fill_task(glue, job)
    assert (
        job["data"]["train"] == "hf://nyu-mll/glue/mnli:train"
        and list(job["data"]["validation"]) == ["matched", "mismatched"]
        and job["task"]["glue"] == "mnli"
    )
    assert job["model"]["config"] == {"model_type": "bert", "hidden_size": 8, "use_cache": False}


def test_a_length_beyond_the_positions_of_the_model_is_cut_and_told() -> None:
    found = Command("run_glue.py", "text-classification")
    job: dict[str, Any] = {
        "model": {"config": {**TINY, "max_position_embeddings": 64}},
        "data": {"max_length": 512},
        "task": {},
    }
    fit_positions(found, job)
    assert job["data"]["max_length"] == 64 and found.notes == [
        "--max_seq_length: The model has 64 positions; data.max_length is 64, not 512."
    ]
    fit_positions(found, job)
    assert len(found.notes) == 1
