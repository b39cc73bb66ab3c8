"""After a run, in parts: what a check prints, an export as a whole folder or none, history, curves and the page, the
mirrors of a tracker, the registry.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import TINY, plain_job
from transformers import AutoConfig, AutoModelForSequenceClassification

from raytrain_nlp.config import load_job
from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.errors import InputError, RunError
from raytrain_nlp.memory.needs import PARTS
from raytrain_nlp.memory.planner import MemoryPlan
from raytrain_nlp.modeling.export import cast_folder, export_model, gather_weights, write_model
from raytrain_nlp.modeling.load import load_trained
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.reporting import drawings
from raytrain_nlp.reporting.charts import Chart
from raytrain_nlp.reporting.curves import run_panels
from raytrain_nlp.reporting.figures import draw, draw_panel
from raytrain_nlp.reporting.history import History, read_history
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import Weights
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tracking import mirrors, registry
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.tracking.mirrors import Mirror
from raytrain_nlp.tracking.registry import check_registrable, register_model
from raytrain_nlp.verbs import export as export_module
from raytrain_nlp.verbs import report as report_module
from raytrain_nlp.verbs.check import CheckReport, check
from raytrain_nlp.verbs.export import export
from raytrain_nlp.verbs.report import report


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "runs", "x")
    paths.run.mkdir(parents=True)
    return paths


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(**TINY, vocab_size=50, num_labels=2)
    ).eval()


class Words:
    """A tokenizer that leaves a file, and has what a model is told of it."""

    pad_token_id, eos_token_id, bos_token_id = 0, None, None

    def __len__(self) -> int:
        return 50

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


# check


def test_options_that_make_no_sense_are_all_told_before_the_data_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check(plain_job(tmp_path, "x"), worker_memory="lots", price=-1, calibration_steps=0)
    assert [problem.where for problem in caught.value.problems] == [
        "--worker-memory",
        "--price",
        "--calibration-steps",
        "--price",
        "--calibration-steps",
    ]
    assert not (tmp_path / "runs").exists()


def plan(**more: Any) -> CheckReport:
    memory = MemoryPlan({name: 10**8 for name in PARTS}, 0, 8, 48, 10**9)
    values: dict[str, Any] = {
        "name": "x",
        "rows": {"train": 1234, "validation": 10},
        "bad_rows": {"train": 2, "validation": 0},
        "labels": ["no", "yes"],
        "steps_per_epoch": 77,
        "total_steps": 154,
        "tokens_per_epoch": 98765,
        "padding_share": 0.125,
        "parameters": 5000,
        "trainable_parameters": 5000,
        "workers": "2 on CPUs",
        "num_workers": 2,
        "zero_stage": 1,
        "memory": memory,
    }
    return CheckReport(**{**values, **more})


def test_a_plan_is_read_by_people_and_by_programs() -> None:
    rows = plan().rows_for_people()
    assert (
        rows["rows"] == "train 1,234, validation 10"
        and rows["steps"] == "154 (77 an epoch)"
        and rows["labels"] == "2: no, yes"
    )
    assert (
        rows["memory of a worker"] == "600 of 1,000 MB (ZeRO 1, 2 workers, micro-batch of 8 x 48 tokens)"
        and rows["parameters"] == "5,000"
    )
    assert not {"rows cut", "nodes", "does not fit"} & set(rows)
    more = plan(trainable_parameters=7, streamed=True, cut_rows={"train": 3}, nodes={"gpu": 2}, labels=[])
    assert (
        more.rows_for_people()["parameters"] == "5,000, 7 of them trained"
        and more.rows_for_people()["nodes"] == "2 x gpu"
    )
    assert (
        more.rows_for_people()["rows"].startswith("train about 1,234")
        and more.rows_for_people()["steps"] == "154 (streamed)"
    )
    assert json.loads(json.dumps(plan().to_dict()))["memory"]["total"] == 6 * 10**8


# export


@pytest.fixture
def exported(tmp_path: Path, paths: RunPaths, model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run with a model, as `export` finds it."""
    write_model(model, model.state_dict(), Words(), paths.model)
    job = load_job(plain_job(tmp_path, "x"))
    record = {
        "result": {"metrics": {"eval_accuracy": 0.75, "train_loss": 1.0}, "rows": {"train": 9}},
        "versions": {"torch": "2.0"},
    }
    run = SimpleNamespace(
        paths=paths,
        job=job,
        labels=["no", "yes"],
        tokenizer="t",
        record=record,
        result=record["result"],
        storage=paths.storage,
        mlflow_run_id="id",
        base="b",
    )
    monkeypatch.setattr(export_module, "find_run", lambda folder: run)
    monkeypatch.setattr(export_module, "find_weights", lambda run, which: Weights("model", paths.model))
    monkeypatch.setattr("raytrain_nlp.modeling.tokenizer.load_tokenizer", lambda folder: Words())
    return run


def test_an_export_is_a_whole_folder_with_a_card(tmp_path: Path, exported: Any, model: Any) -> None:
    result = export("run", tmp_path / "out", dtype="bf16")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (
        result.dtype == "bfloat16" and not result.adapter and result.source == "model" and result.model_version is None
    )
    assert result.size_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert (
        all(
            torch.equal(weights[name], value.bfloat16())
            for name, value in model.state_dict().items()
            if name in weights
        )
        and len(weights) > 10
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "| eval_accuracy | 0.75 |" in card
        and "train_loss" not in card
        and "- torch 2.0" in card
        and card.startswith("---\nlibrary_name: transformers\n")
    )


def test_a_run_without_an_adapter_says_so_where_one_is_to_be_merged(
    tmp_path: Path, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, told = Observer(), []
    monkeypatch.setattr(observer, "warn", told.append)
    assert not export("run", tmp_path / "out", merge_lora=True, observer=observer).adapter
    assert told == ["the run has no adapter to merge: its model is written as it is."]


def test_an_export_that_fails_leaves_what_was_there(
    tmp_path: Path, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(InputError, match=r"--output: is not empty .* add --overwrite"):
        export("run", target)
    with pytest.raises(InputError, match="--output: would replace the run itself"):
        export("run", exported.paths.run, overwrite=True)
    with pytest.raises(InputError, match=r"--dtype: is unknown \(int8\)"):
        export("run", tmp_path / "new", dtype="int8")

    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(export_module, "write_weights", fails)
    with pytest.raises(OSError, match="no space left"):
        export("run", target, overwrite=True)
    assert [path.name for path in target.iterdir()] == ["mine"] and not list(tmp_path.glob(".out-*"))


def test_a_loaded_export_is_the_model(tmp_path: Path, model: Any) -> None:
    """To the bit, also where it holds other types than floats; a cast says so in its config."""
    write_model(model, model.state_dict(), Words(), tmp_path / "m")
    job = load_job(plain_job(tmp_path, "x"))
    loaded = load_trained(
        tmp_path / "m", ModelConfig(name_or_path="base", tokenizer="t"), build_task(job.task), ["no", "yes"], Words()
    ).eval()
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded(ids).logits, model(ids).logits) and loaded.config.id2label == {0: "no", 1: "yes"}
    save_file({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int64)}, tmp_path / "m" / "more.safetensors")
    cast_folder(tmp_path / "m", torch.float16)
    assert {name: str(value.dtype) for name, value in load_file(tmp_path / "m" / "more.safetensors").items()} == {
        "a": "torch.float16",
        "b": "torch.int64",
    }
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "float16" and not list(
        (tmp_path / "m").glob(".*")
    )


def test_the_first_rank_writes_the_model_and_generation_may_use_its_cache(tmp_path: Path, model: Any) -> None:
    trainer = SimpleNamespace(
        is_deepspeed_enabled=False,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        model=model,
        processing_class=Words(),
        first=False,
    )
    trainer.is_world_process_zero = lambda: trainer.first
    model.config.use_cache = False
    assert gather_weights(trainer) is None
    export_model(trainer, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    trainer.first = True
    export_model(trainer, tmp_path / "m")
    assert (
        json.loads((tmp_path / "m" / "config.json").read_text()).get("use_cache", True) is True
        and (tmp_path / "m" / "tokenizer.json").exists()
    )


# history, curves, the page


def history_of(paths: RunPaths, *events: tuple[str, dict[str, Any]]) -> History:
    log = EventLog(paths.events)
    for second, (kind, fields) in enumerate(events):
        log.append({"kind": kind, "time": 1_000 * (second + 1), **fields})
    run: Any = SimpleNamespace(paths=paths)
    return read_history(run)


def figure(step: int, **metrics: Any) -> tuple[str, dict[str, Any]]:
    return "log", {"step": step, "metrics": metrics}


def test_a_step_that_was_repeated_after_a_restart_counts_once_as_it_went_the_last_time(paths: RunPaths) -> None:
    """A curve would run back, and the figure of a lost step would stand beside that of the step that counts."""
    found = history_of(
        paths,
        ("start", {"step": 0}),
        figure(1, loss=4.0),
        figure(2, loss=3.0),
        ("checkpoint", {"step": 2}),
        figure(3, loss=9.0, grad_norm=1.0),
        ("resume", {"step": 2}),
        figure(3, loss=2.0),
        figure(4, loss=1.0, eval_loss=5.0, eval_accuracy=0.5, eval_runtime=3.0),
        ("notice", {"text": "slow"}),
    )
    assert found.line("loss") == ([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0]) and found.line("grad_norm") == (
        [],
        [],
    ) == found.line("unknown")
    assert (found.resumed, found.notices, found.checkpoints, found.seconds) == (
        [2],
        ["slow"],
        1,
        8.0,
    ) and found.evaluated == ["eval_loss", "eval_accuracy"]


def test_a_run_started_again_from_nothing_has_a_new_history(paths: RunPaths) -> None:
    assert history_of(
        paths, figure(1, loss=4.0), figure(2, loss=3.0), ("start", {"step": 0}), figure(1, loss=5.0)
    ).line("loss") == ([1], [5.0])


def test_panels_are_those_there_are_figures_for(paths: RunPaths) -> None:
    found = history_of(
        paths, *(figure(step, loss=1 / step, eval_loss=1.0, tokens_per_second=9.0) for step in range(1, 40))
    )
    made = run_panels(["x"], [found])
    assert [panel.name for panel in made] == ["loss", "evaluation", "throughput"] and all(panel.says for panel in made)
    assert run_panels(["x"], [History()]) == []
    (chart,) = made[0].charts
    assert isinstance(chart, Chart)
    (logged, smooth) = chart.lines
    assert logged.y == [1 / step for step in range(1, 40)] and logged.alpha < 1 and len(smooth.y) == 39
    assert smooth.y[0] == 1.0 and min(logged.y) < smooth.y[-1] < 0.1, (
        "a mean that starts at the first value and follows"
    )
    assert draw_panel(made[1]).startswith(b"\x89PNG\r\n")


def test_a_picture_is_a_png_of_its_size() -> None:
    content = draw(lambda figure: figure.add_subplot().plot([1, 2]), width=2, height=1)
    assert content.startswith(b"\x89PNG\r\n") and [
        int.from_bytes(content[start : start + 4], "big") for start in (16, 20)
    ] == [200, 100]


def test_the_page_needs_nothing_else_and_runs_no_code_of_a_run(
    tmp_path: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notice or a name comes from wherever the run does; it is text on the page."""
    monkeypatch.setattr(drawings, "draw_panel", lambda panel: b"png")
    history_of(paths, figure(1, loss=1.0), ("notice", {"text": "<script>alert(1)</script>"}))
    job = load_job(plain_job(tmp_path, "x"))
    record = {"status": "finished", "versions": {"torch": "<b>2</b>"}, "result": {"metrics": {"eval_accuracy": 0.75}}}
    run = SimpleNamespace(
        paths=paths, job=job, record=record, result=record["result"], labels=["a", "b"], mlflow_run_id=None
    )
    monkeypatch.setattr(report_module, "find_run", lambda folder: run)
    result = report(paths.run)
    page = Path(result.page).read_text()
    assert (
        Path(result.page) == paths.run / "report.html"
        and "<script>alert" not in page
        and "&lt;script&gt;alert(1)" in page
        and "&lt;b&gt;2" in page
    )
    assert (
        "0.75" in page
        and "finished" in page
        and 'src="http' not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
        and all(Path(picture).read_bytes() == b"png" for picture in result.pictures)
    )


# trackers


class Sink:
    """A tracker that keeps what it is given."""

    def __init__(self, fails: bool = False):
        self.written: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []
        self.fails, self.heard = fails, threading.Event()

    def write(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        if self.fails:
            raise ConnectionError("away\nand more")
        self.written.append((step, dict(metrics)))
        self.heard.set()

    def flush(self) -> None:
        pass

    def close(self, failed: bool) -> None:
        self.closed.append(failed)


def mirror(paths: RunPaths, sink: Sink, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setattr(mirrors, "_POLL_S", 0.001)
    monkeypatch.setitem(mirrors.SINKS, "tensorboard", lambda *_: sink)
    return Mirror("tensorboard", paths, {}, "experiment", warned.append).start()


def test_each_figure_is_mirrored_once_through_restarts(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, log, warned = Sink(), EventLog(paths.events), []
    log.write("log", step=1, metrics={"loss": 3.0})
    one = mirror(paths, sink, warned, monkeypatch)
    assert sink.heard.wait(20)
    log.write("log", step=2, metrics={"loss": 2.0})
    one.close("FAILED")
    log.write("log", step=2, metrics={"loss": 9.0, "eval_loss": 5.0})  # repeated after a restart
    log.write("log", step=3, metrics={"loss": 1.0})
    mirror(paths, sink, warned, monkeypatch).close("FINISHED")
    assert (
        sink.written == [(1, {"loss": 3.0}), (2, {"loss": 2.0}), (2, {"eval_loss": 5.0}), (3, {"loss": 1.0})]
        and sink.closed == [True, False]
        and not warned
    )


def test_a_mirror_that_fails_stops_nothing_and_sends_the_rest_the_next_time(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    EventLog(paths.events).write("log", step=1, metrics={"loss": 3.0})
    mirror(paths, Sink(fails=True), warned, monkeypatch).close("FINISHED")
    assert warned == [f"tensorboard fails: away. Training goes on; its figures are in {paths.events} and in MLflow."]
    sink = Sink()
    mirror(paths, sink, warned, monkeypatch).close("FINISHED")
    assert sink.written == [(1, {"loss": 3.0})]
    assert read_json(paths.run / "tensorboard.json")["last_step"] == {"loss": 1}


def test_only_whole_models_with_a_pipeline_are_registered(tmp_path: Path) -> None:
    check_registrable("text-classification", tmp_path)
    with pytest.raises(InputError, match="is not possible for translation"):
        check_registrable("translation", tmp_path)
    write_json(tmp_path / "adapter_config.json", {})
    with pytest.raises(InputError, match="takes a whole model, and this is an adapter. Add --merge-lora"):
        check_registrable("causal-lm", tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_logged_to_its_run_and_registered_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """By an MLflow that has no logged models yet."""
    asked: list[Any] = []

    class Client:
        def __init__(self, tracking_uri: str):
            self.uri = tracking_uri

        def log_artifacts(self, run: str, folder: str, where: str) -> None:
            asked.append((run, sorted(path.name for path in Path(folder).iterdir()), where))

        def create_registered_model(self, name: str) -> None:
            raise RuntimeError("it is there already")

        def get_run(self, run: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(artifact_uri="s3://a"))

        def create_model_version(self, name: str, source: str, run_id: str) -> Any:
            if fails:
                raise ConnectionError(f"{self.uri} refuses\nmore")
            asked.append((name, source, run_id))
            return SimpleNamespace(version=3)

    def save(folder: Path, target: Path, task: str, run_id: str, model_id: str | None) -> None:
        assert (run_id, model_id) == ("id", None)
        target.mkdir()
        (target / "MLmodel").write_text(task)

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setattr(registry, "save_flavour", save)
    config = TrackingConfig(tracking_uri="http://user:secret@host")
    if fails:
        with pytest.raises(RunError) as caught:
            register_model(config, tmp_path, "id", tmp_path, "causal-lm", "mine")
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value) and "refuses" in str(caught.value)
    else:
        assert register_model(config, tmp_path, "id", tmp_path, "causal-lm", "mine") == "3"
        assert asked == [("id", ["MLmodel"], "model"), ("mine", "s3://a/model", "id")]
