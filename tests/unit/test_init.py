"""`raytrain-nlp init`: each example is a job that loads where it was written, and its code is where the job imports it
from.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_cli
from typer.testing import CliRunner, Result

from raytrain_nlp.cli.init import complete_name
from raytrain_nlp.cli.job_files import find_examples
from raytrain_nlp.cli.main import app
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.data import sources_of
from raytrain_nlp.config.sweep import load_sweep
from raytrain_nlp.config.tasks import TASK_TYPES
from raytrain_nlp.data.builtin import BUILTINS
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.tokenizer import check_local_model

SWEEPS = {"sweep"}
EXAMPLES = sorted(find_examples())
TECHNIQUES = {"mixture", "lora", "neftune", "deepspeed-json", "custom-trainer"}
NEED_THE_HUB = {"mrpc", "stsb"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the command is given in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def load_example(name: str) -> TrainJob:
    """The job of an example; of a sweep the one its trials are made of."""
    return load_sweep(f"{name}.yaml").job if name in SWEEPS else load_job(f"{name}.yaml")


def test_there_is_an_example_of_each_task_and_technique() -> None:
    assert set(EXAMPLES) == {*TASK_TYPES, *TECHNIQUES, *NEED_THE_HUB, *SWEEPS}
    for task in TASK_TYPES:
        assert load_job(find_examples()[task]).task.type == task


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_name_writes_a_job_that_loads(name: str) -> None:
    assert init(name).exit_code == 0
    job = load_example(name)
    assert f"raytrain-nlp {'sweep' if name in SWEEPS else 'train'} {name}.yaml" in Path(f"{name}.yaml").read_text()
    assert "jobs" not in Path(f"{name}.yaml").read_text().partition("\n")[2]
    assert job.workers.num_workers == 2 and job.deepspeed.zero_stage == 3
    assert job.arguments()["eval_strategy"] == "epoch"


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - NEED_THE_HUB))
def test_what_is_written_needs_no_download(name: str) -> None:
    init(name)
    job = load_example(name)
    if name in SWEEPS:  # from the model of a run that needs none either
        base = load_job("masked-lm.yaml")
        assert job.model.name_or_path == f"{base.storage_path}/{base.name}/model"
    else:
        assert job.model.name_or_path is None and job.model.tokenizer == "train"
    train, validation = sources_of(job.data.train), sources_of(job.data.validation)
    assert train == validation and {name.removeprefix("builtin:") for name in train} <= set(BUILTINS)


def test_the_techniques_are_in_their_examples() -> None:
    jobs = {name: load_job(find_examples()[name]) for name in ("lora", "neftune")}
    assert jobs["lora"].lora["r"] == 16
    assert jobs["neftune"].arguments()["neftune_noise_alpha"] == 5


def test_a_deepspeed_file_is_written_beside_the_job_that_names_it() -> None:
    assert json.loads(init("deepspeed-json", "deep/down/job.yaml", "--json").stdout.splitlines()[-1]) == {
        "files": ["deep/down/job.yaml", "deep/down/ds_zero3.json"]
    }
    job = load_job("deep/down/job.yaml")
    assert job.deepspeed.config_file == "deep/down/ds_zero3.json"
    assert job.deepspeed.config["train_batch_size"] == "auto"


def test_the_job_of_the_run_that_a_sweep_starts_from_is_written_too_and_never_over_ones_own() -> None:
    done = init("sweep", "mine/")
    assert done.stdout.splitlines() == [
        "Written: mine/sweep.yaml, mine/masked-lm.yaml. Next: raytrain-nlp train mine/masked-lm.yaml, then "
        "raytrain-nlp sweep mine/sweep.yaml"
    ]
    assert "raytrain-nlp train mine/masked-lm.yaml" in Path("mine/sweep.yaml").read_text()
    first = Path("mine/masked-lm.yaml").read_text().splitlines()[0]
    assert first == Path("mine/sweep.yaml").read_text().splitlines()[0]  # the schema, seen from there
    Path("mine/masked-lm.yaml").write_text("changed")
    assert init("sweep", "mine/", "--force").exit_code == 0
    assert Path("mine/masked-lm.yaml").read_text() == "changed"


@pytest.mark.parametrize(
    ("there", "todo"),
    [([], "Train that one first: raytrain-nlp train JOB, whose name is masked-lm."), (["run.json"], "--resume.")],
)
def test_a_model_that_is_not_trained_yet_is_told_with_what_to_train(there: list[str], todo: str) -> None:
    for name in there:
        Path("runs/masked-lm").mkdir(parents=True)
        Path("runs/masked-lm", name).write_text("{}")
    init("sweep")
    job = load_sweep("sweep.yaml").job
    with pytest.raises(InputError) as found:
        check_local_model(str(job.model.name_or_path), "model.name_or_path", tokenizer=True)
    assert [problem.what for problem in found.value.problems] == ["there is no such folder (runs/masked-lm/model)"]
    assert str(found.value.problems[0].todo).endswith(todo)


@pytest.mark.parametrize("target", ["job.yaml", "my/jobs/job.yaml"])
def test_code_is_written_where_the_job_imports_it_from(target: str, folder: Path) -> None:
    init("custom-trainer", target)
    trainer = load_job(target).trainer
    assert [trainer.class_.partition(":")[2], *(name.partition(":")[2] for name in trainer.callbacks)] == [
        "WeightedTrainer",
        "StopWhenGoodEnough",
    ]
    for name in (trainer.class_, *trainer.callbacks):
        module, _, attribute = name.partition(":")
        assert f"class {attribute}(" in (folder / module.replace(".", "/")).with_suffix(".py").read_text()


@pytest.mark.parametrize("target", ["../job.yaml", "my-jobs/job.yaml"])
def test_code_that_could_not_be_imported_is_not_written(target: str, folder: Path) -> None:
    assert "could not be imported from here" in str(init("custom-trainer", target).exception)
    assert list(folder.iterdir()) == []


def test_a_file_is_not_overwritten_unless_asked() -> None:
    Path("lora.yaml").write_text("mine")
    assert str(init("lora").exception) == "lora.yaml: is there already. Name another PATH, or add --force."
    assert Path("lora.yaml").read_text() == "mine"
    assert init("lora", "--force").exit_code == 0
    assert load_job("lora.yaml").name == "lora"


def test_a_second_job_shares_the_code_of_the_first_but_does_not_overwrite_it() -> None:
    assert init("custom-trainer", "first.yaml").exit_code == init("custom-trainer", "second.yaml").exit_code == 0
    Path("custom_trainer.py").write_text("mine")
    assert str(init("custom-trainer", "third.yaml").exception).startswith("custom_trainer.py: is there already.")
    assert not Path("third.yaml").exists() and Path("custom_trainer.py").read_text() == "mine"


def test_a_folder_gets_the_default_name(folder: Path) -> None:
    (folder / "here").mkdir()
    assert init("lora", "here").stdout == "Written: here/lora.yaml. Next: raytrain-nlp check here/lora.yaml\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_standard_output_is_what_the_file_would_be(name: str, folder: Path) -> None:
    shown = init(name, "-")
    assert list(folder.iterdir()) == []
    init(name)
    assert shown.stdout == Path(f"{name}.yaml").read_text()
    assert ("note: it needs" in shown.stderr) == (name in ("deepspeed-json", "custom-trainer", "sweep"))


def test_without_a_task_all_are_listed_tasks_first() -> None:
    *lines, _, last = init().stdout.splitlines()
    assert last == "For your own rows: raytrain-nlp init FILE"
    assert [line.split()[0] for line in lines[: len(TASK_TYPES)]] == list(TASK_TYPES)
    assert sorted(line.split()[0] for line in lines) == EXAMPLES
    assert next(line for line in lines if line.startswith("lora")).endswith(
        "LoRA: train small matrices beside frozen weights"
    )
    assert sorted(json.loads(init("--json").stdout.splitlines()[-1])["examples"]) == EXAMPLES
    assert sorted(complete_name("")) == sorted([*EXAMPLES, "quickstart"])


def test_a_misspelt_name_is_a_wrong_input_told_with_the_nearest(folder: Path) -> None:
    done = run_cli("init", "sumarization")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: NAME: no example has this name ('sumarization'). Did you mean 'summarization'?\n"
    assert str(init("xyz").exception).endswith(f"The names are {', '.join(find_examples())}; or name a file with rows.")
    assert list(folder.iterdir()) == []


def test_no_ml_library_is_imported() -> None:
    program = "import sys; from raytrain_nlp.cli.main import app; app(['init', 'lora'], standalone_mode=False)\n"
    program += "print([name for name in ('torch', 'transformers', 'ray', 'mlflow', 'peft') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
