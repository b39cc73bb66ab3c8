"""`certify` without its runs: what it compares, what it signs, what it refuses; and the notes of rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import plain_job, write_job

from raytrain_nlp.certificate.checks import (
    DIFFERS,
    NOT_SHOWN,
    SHOWN,
    check_epochs,
    check_figures,
    check_figures_at_size,
    checks_of_rows,
    checks_of_states,
)
from raytrain_nlp.certificate.evidence import Evidence
from raytrain_nlp.certificate.jobs import LEAST_STEPS, Shape, at_workers, first_steps
from raytrain_nlp.certificate.kills import planned_kills
from raytrain_nlp.certificate.page import check_certificate, page_of, write_certificate
from raytrain_nlp.certificate.runs import Driver
from raytrain_nlp.certificate.states import weights_apart
from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.state import save_state
from raytrain_nlp.cli import certify as verb
from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError, RunError
from raytrain_nlp.run.row_notes import Batch, RowNotes, batches_of, read_notes
from raytrain_nlp.verbs.certify import certify


def checkpoint(folder: Path, step: int = 4, **changed: float) -> store.Checkpoint:
    """Of a model of one parameter and its AdamW; `changed` values stand in the first place of their tensor."""
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "exp_avg": torch.ones(6), "rng": torch.arange(8).byte()}
    for name, value in changed.items():
        tensors[name].view(-1)[0] = value
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_state(path / "model.state", {"weight": tensors["weight"], "tied": tensors["weight"]})
    save_state(
        path / "optimizer.state", {"state": {0: {"step": step, "exp_avg": tensors["exp_avg"]}}, "param_groups": []}
    )
    random = np.random.RandomState(int(tensors["rng"][0]) // 100).get_state()
    save_state(path / "rng-0.state", {"torch": tensors["rng"], "numpy": random})
    files = store.describe_files(path, sorted(path.iterdir()))
    return store.Checkpoint(path, store.Manifest(step, 1, 0, "", {}, files))


def evidence(name: str = "run", **values: Any) -> Evidence:
    """Of two epochs of two updates, six rows."""
    batches = [[0, 1, 2, 3], [4, 5], [5, 4, 3, 2], [1, 0]]
    base = Evidence(
        name,
        2,
        {"step 1: loss": 2.0, "step 2: loss": 1.5, "step 2: eval_loss": 1.6},
        {step: Batch(rows, {row: row * 7 for row in rows}) for step, rows in enumerate(batches, 1)},
        0,
        {"rows": {"train": 6}, "features": {}, "dropped_rows": 0},
        2,
        False,
        {},
        {},
        "",
    )
    return replace(base, **values)


def one(checks: Any, what: str) -> Any:
    return next(check for check in checks if check.what.startswith(what))


@pytest.mark.parametrize(
    ("changed", "what", "where"),
    [
        ({"exp_avg": 0.0}, "optimizer state", "step 4: optimizer.state: state.0.exp_avg (1 of 2)"),
        ({"weight": 1e-30}, "weights", "step 4: weight (1 of 1)"),
        ({"rng": 9}, "learning rate", "step 4: rng-0.state: torch (1 of 6)"),
        ({"rng": 100}, "learning rate", "step 4: rng-0.state: torch (2 of 6)"),
    ],
)
def test_one_value_of_one_tensor_is_found_and_named(
    tmp_path: Path, changed: dict[str, float], what: str, where: str
) -> None:
    truth = evidence(checkpoints={4: checkpoint(tmp_path / "truth")})
    same = list(checks_of_states("killed", evidence(checkpoints={4: checkpoint(tmp_path / "same")}), truth, 0))
    assert {check.verdict for check in same} == {SHOWN} and all(check.figure == 0 for check in same) and len(same) == 3
    ours = evidence(checkpoints={4: checkpoint(tmp_path / "ours", **changed)})
    checks = list(checks_of_states("killed", ours, truth, 0))
    assert [check.verdict for check in checks].count(DIFFERS) == 1
    assert one(checks, what).note == where and one(checks, what).line().startswith(f"killed, {what}")


def test_zero_with_another_sign_is_another_bit_and_a_tolerance_is_of_the_largest(tmp_path: Path) -> None:
    truth = checkpoint(tmp_path / "truth")
    assert weights_apart(checkpoint(tmp_path / "minus", weight=-0.0), truth, 0).different == 1
    near = checkpoint(tmp_path / "near", weight=0.04)
    assert weights_apart(near, truth, 0.01).different == 0 and weights_apart(near, truth, 0.001).different == 1
    assert weights_apart(near, truth, 0.01).largest == pytest.approx(0.04)


def test_a_checkpoint_that_is_missing_or_damaged_differs(tmp_path: Path) -> None:
    truth = evidence(checkpoints={4: checkpoint(tmp_path)})
    (missing,) = checks_of_states("killed", evidence(), truth, 0)
    assert missing.verdict == DIFFERS and missing.note == "it is missing"
    (damaged,) = checks_of_states("killed", evidence(damaged={4: "x has 3 bytes"}), truth, 0)
    assert damaged.note == "x has 3 bytes"


def test_rows_of_each_batch() -> None:
    truth = evidence()
    other = {**truth.batches, 1: Batch([3, 2, 1, 0], truth.batches[1].content)}
    assert {check.verdict for check in checks_of_rows("x", evidence(batches=other), truth)} == {SHOWN}
    wrong = {**truth.batches, 3: Batch([5, 4, 3, 0], {5: 35, 4: 28, 3: 22, 0: 0})}
    checks = list(checks_of_rows("x", evidence(batches=wrong, counts={**truth.counts, "dropped_rows": 1}), truth))
    assert one(checks, "rows of each").note == "step 3: without rows 2; with rows 0"
    assert one(checks, "tokens").note == "step 3: row 3"
    assert one(checks, "rows counted").note == "dropped_rows is 1, was 0"
    lost = {step: batch for step, batch in truth.batches.items() if step != 4}
    assert one(checks_of_rows("x", evidence(batches=lost), truth), "rows of").note == "step 4: without rows 0, 1"
    bare = {step: Batch(batch.rows, {}) for step, batch in truth.batches.items()}
    assert one(checks_of_rows("x", evidence(batches=bare), evidence(batches=bare)), "tokens").verdict == NOT_SHOWN


def test_each_row_once_an_epoch() -> None:
    truth = evidence()
    assert check_epochs("x", truth).verdict == SHOWN
    twice = check_epochs("x", evidence(batches={**truth.batches, 2: Batch([4, 3], {})}))
    assert twice.verdict == DIFFERS and twice.note == "row 3 came twice in epoch 1"
    short = check_epochs("x", evidence(batches={**truth.batches, 4: Batch([1], {})}))
    assert short.note == "epoch 2 had 5 of 6 rows"
    assert check_epochs("x", evidence(draws_rows=True)).verdict == NOT_SHOWN


def test_figures() -> None:
    truth = evidence()
    near = evidence(figures={**truth.figures, "step 2: eval_loss": 1.6001})
    assert check_figures("x", evidence(), truth, 0).verdict == SHOWN
    assert check_figures("x", near, truth, 0).note == "step 2: eval_loss is 1.6001, was 1.6"
    assert check_figures("x", near, truth, 0.01).verdict == SHOWN
    less = evidence(figures={"step 1: loss": 2.0})
    assert check_figures("x", less, truth, 0.01).note == "step 2: loss is None, was 1.5"
    assert check_figures("x", truth, less, 0.01).verdict == DIFFERS
    assert check_figures_at_size("x", near, truth).verdict == SHOWN
    far = evidence(figures={**truth.figures, "step 1: loss": 2.1})
    assert check_figures_at_size("x", far, truth).verdict == DIFFERS
    drawn = check_figures_at_size("x", far, evidence(draws="hidden_dropout_prob 0.1"))
    assert drawn.verdict == NOT_SHOWN and "hidden_dropout_prob 0.1" in drawn.note
    assert drawn.figure == pytest.approx(0.1)


SIGNED = {
    "name": "täglich", "verdict": "nothing differs, 1 shown", "date": "2026-01-02T03:04:05Z", "steps": 12, "seed": 0,
    "seconds": 61.5, "changed": "nothing", "runs": {}, "versions": {"torch": "2"}, "machine": {"GPUs": "none"},
    "kills": [{"what": "worker", "rank": 1, "planned": 6, "step": 6, "resumed": 4, "why_not": ""}],
    "checks": [{"run": "killed", "what": "a|b", "verdict": "shown", "figure": 0.0, "compared": 3, "note": ""}],
    "job": {"name": "x"},
}  # fmt: skip


def test_a_certificate_is_signed_and_any_change_is_found(tmp_path: Path) -> None:
    signed = write_certificate(tmp_path, SIGNED)
    file = tmp_path / "certificate.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    claimed = values.pop("sha256")
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == claimed == signed["sha256"]
    assert check_certificate(file) == signed
    page = (tmp_path / "certificate.md").read_text(encoding="utf-8")
    assert page == page_of(signed) and claimed in page and "| worker 1 | 6 | 6 | 4 |" in page and r"a\|b" in page
    file.write_text(file.read_text(encoding="utf-8").replace('"shown"', '"Shown"'), encoding="utf-8")
    with pytest.raises(RunError, match="was changed after it was signed"):
        check_certificate(file)
    for text in ("", "[]", "{}", '{"format": 1}'):
        file.write_text(text)
        with pytest.raises(InputError):
            check_certificate(file)
    with pytest.raises(InputError, match="cannot be read"):
        check_certificate(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "sections", "message"),
    [
        ({"steps": 5}, {}, "--steps: is too few"),
        ({"workers": 0}, {}, "--workers: is no number of workers"),
        ({"workers": 2}, {}, "--workers: is the job's own number"),
        ({"output": "s3://bucket/x"}, {}, "--output: is no folder"),
        ({}, {"workers": {"num_workers": [1, 2]}}, "workers.num_workers: is a range"),
        ({}, {"storage_path": "s3://bucket/x"}, "storage_path: is no folder"),
    ],
)
def test_wrong_input_starts_nothing(
    arguments: dict[str, Any], sections: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "__enter__", lambda self: pytest.fail("something was started"))
    with pytest.raises(InputError) as caught:
        certify(plain_job(tmp_path, "x", **sections), **arguments)
    assert message in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_certificate_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(InputError, match="holds a certificate.json already"):
        certify(plain_job(tmp_path, "x"), output=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["certificate.json"]


def test_a_child_that_refuses_is_wrong_input_and_one_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    driver = Driver(tmp_path, plain_job(tmp_path, "x"))
    log = tmp_path / "x.log"
    for code, error in ((2, InputError), (1, RunError)):
        log.write_text("warning: w\nerror: data.train: there is no such file. Check it.\n")
        driver._process = SimpleNamespace(wait=lambda code=code: code)  # type: ignore[assignment,misc]
        with pytest.raises(error, match=r"data\.train: there is no such file"):
            driver.finish()


def test_the_jobs_of_a_certificate(tmp_path: Path) -> None:
    training = {"num_train_epochs": 3, "save_steps": 100, "per_device_train_batch_size": 8, "warmup_steps": 2}
    training |= {"gradient_accumulation_steps": 2}
    job = load_job(
        plain_job(
            tmp_path,
            "mine",
            training=training,
            data={"validation": "v.jsonl"},
            tracking={"tracking_uri": "http://me:hidden@server"},
        )
    )
    first = load_job(first_steps(job, "undisturbed", "elsewhere", Shape(12)))
    assert (first.name, first.storage_path, first.tracking.tracking_uri) == ("undisturbed", "elsewhere", None)
    arguments = first.arguments()
    assert (arguments["max_steps"], arguments["save_steps"], arguments["eval_steps"]) == (12, 4, 6)
    assert arguments["warmup_steps"] == 2 and first.global_batch_size == job.global_batch_size == 32
    for count in (1, 3):
        other = load_job(at_workers(first_steps(job, "x", "y", Shape(12)), "other", count))
        assert (other.workers.num_workers, other.global_batch_size) == (count, 32)
        assert other.gradient_accumulation_steps * count >= 4


@pytest.mark.parametrize("steps", [LEAST_STEPS, 7, 12, 100])
def test_kills_lie_where_there_is_something_to_lose(steps: int) -> None:
    shape = Shape(steps)
    for seed in range(20):
        worker, driver = planned_kills(shape, seed)
        assert shape.save < worker.planned <= 2 * shape.save < driver.planned < steps
        assert [worker, driver] == planned_kills(shape, seed)


def test_the_batch_that_counts_is_that_of_the_group_that_made_it_last(tmp_path: Path) -> None:
    def batch(step: int, rows: list[int]) -> Any:
        ids = torch.tensor([[row, row + 1, 0] for row in rows])
        tensors = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(rows)}
        return SimpleNamespace(step=step, micro=0, rows=np.array(rows), tensors=tensors)

    for rank, rows in ((0, [1, 2]), (1, [3])):
        RowNotes(tmp_path, rank)(batch(0, rows))
    notes = read_notes(tmp_path)
    with next(tmp_path.iterdir()).open("a") as file:
        file.write('{"host": "left unfinished')
    assert read_notes(tmp_path) == notes and [note.step for note in notes] == [1, 1]
    before, after = (
        [replace(note, pid=pid + note.rank, rows=rows[note.rank]) for note in notes]
        for pid, rows in ((10, ([1, 2], [3])), (20, ([5, 6], [7])))
    )
    groups = [[10, 11], [20, 21]]
    assert batches_of([*after, *before], groups)[1].rows == [5, 6, 7]
    assert batches_of(before, groups)[1].rows == [1, 2, 3]
    sums = batches_of(notes, [])[1].content
    assert len({*sums.values()}) == 3 and sums.keys() == {1, 2, 3}
    longer = batch(0, [3])
    longer.tensors["input_ids"] = torch.tensor([[3, 4, 0, 0, 0]])
    longer.tensors["attention_mask"] = torch.tensor([[1, 1, 0, 0, 0]])
    RowNotes(tmp_path / "padded", 0)(longer)
    assert read_notes(tmp_path / "padded")[0].content == [sums[3]]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from raytrain_nlp.cli.main import main

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["raytrain-nlp", "certify", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    code, shown = run("--help")
    assert code == 0 and verb.HELP.partition(":")[0] in " ".join(shown.split())
    write_certificate(tmp_path, SIGNED)
    file = tmp_path / "certificate.json"
    code, shown = run("--check", str(file))
    assert code == 0 and "nothing differs, 1 shown" in shown
    file.write_text(file.read_text().replace("61.5", "1.5"))
    code, shown = run("--check", str(file))
    assert code == 1 and shown.startswith("error: ") and shown.count("\n") == 1
    job = write_job(plain_job(tmp_path, "x"), tmp_path / "job.yaml")
    for wrong in ((), (job, "--check", str(file)), (job, "--steps", "1")):
        code, shown = run(*wrong)
        assert code == 2 and shown.startswith("error: ") and shown.count("\n") == 1
