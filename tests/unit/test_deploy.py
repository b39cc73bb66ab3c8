"""An export on its way to others: the card, the files that serve it, GGUF by a stand-in converter, names on the hub,
results of the harness.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import peft
import pytest
import transformers
import yaml
from support import plain_job

from raytrain_nlp.cli.main import main
from raytrain_nlp.config import load_job
from raytrain_nlp.deploy import gguf, harness
from raytrain_nlp.deploy.card import model_card
from raytrain_nlp.deploy.gguf import check_gguf, write_gguf
from raytrain_nlp.deploy.harness import check_harness, read_results, run_harness
from raytrain_nlp.deploy.hub import check_push
from raytrain_nlp.deploy.recipe import read_recipe, write_recipe
from raytrain_nlp.deploy.serve import build_app
from raytrain_nlp.errors import InputError, RunError
from raytrain_nlp.prediction.plan import generation_of, weights_dtype
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import Run, Weights
from raytrain_nlp.tasks import build_task
from raytrain_nlp.verbs import harness as harness_verb
from raytrain_nlp.verbs.export import is_whole
from raytrain_nlp.verbs.predict_rows import predict_stream, rows_of_input

TASKS: dict[str, dict[str, Any]] = {
    "text-classification": {"text_columns": ["text"]},
    "token-classification": {},
    "multiple-choice": {},
    "sentence-similarity": {},
    "question-answering": {},
    "causal-lm": {},
    "masked-lm": {},
    "permutation-lm": {},
    "summarization": {},
    "translation": {"source_lang": "en", "target_lang": "de"},
    "seq2seq-question-answering": {},
    "preference": {},
    "reward-modeling": {},
}


def run_of(folder: Path, **sections: Any) -> Any:
    """What `find_run` finds, as far as card and recipe read it."""
    job = load_job(plain_job(folder, "mine", **sections))
    result = {"metrics": {"eval_accuracy": 0.75, "train_loss": 1.0}, "rows": {"train": 9}}
    record = {"result": result, "versions": {"torch": "2.0"}}
    return SimpleNamespace(job=job, labels=["no", "yes"], record=record, result=result, base="base", code_folder="code")


def task_job(folder: Path, task: str) -> Any:
    type_ = {"type": task, **TASKS[task]}
    values = plain_job(folder, "mine")
    return SimpleNamespace(**{**vars(run_of(folder)), "job": load_job({**values, "task": type_})})


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_the_classes_a_card_names_are_there(tmp_path: Path, task: str, adapter: bool) -> None:
    if adapter:
        (tmp_path / "adapter_config.json").write_text("{}")
    card = model_card(task_job(tmp_path, task), Weights("model", tmp_path), tmp_path)
    program = card.split("```python\n")[1].split("```")[0]
    names = {"peft": peft, "transformers": transformers}
    for line in program.splitlines():
        if line.startswith("from transformers import "):
            assert all(hasattr(transformers, name.strip()) for name in line.split("import ")[1].split(","))
        if "peft." in line and "=" in line:
            assert hasattr(names["peft"], line.split("peft.")[1].split("(")[0].split(".")[0])
    compile(program, "card", "exec")
    library = front_of(card)["library_name"]
    if "sentence_transformers" in program:
        assert library == "sentence-transformers"
    else:
        assert ("peft" in program) == adapter and library == ("peft" if adapter else "transformers")


def test_the_licence_is_the_one_given_else_the_base_models(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# Base\n")
    run = run_of(tmp_path, model={"name_or_path": str(base), "config": None, "tokenizer": None})
    weights = Weights("model", tmp_path)
    assert front_of(model_card(run, weights, tmp_path))["license"] == "mit"
    assert front_of(model_card(run, weights, tmp_path, "apache-2.0"))["license"] == "apache-2.0"
    for text in ("no front matter", "---\nlicense: [a\n---\n", "---\njust text\n---\n", "---\nlicense: mit"):
        (base / "README.md").write_text(text)
        assert "license" not in front_of(model_card(run, weights, tmp_path))
    assert "| eval_accuracy | 0.75 |" in model_card(run, weights, tmp_path)
    assert "Weights of checkpoint-5." in model_card(run, Weights("checkpoint-5", tmp_path, object()), tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_files_that_serve_a_model(tmp_path: Path, task: str) -> None:
    run, target = task_job(tmp_path, task), tmp_path / 'it\'s "here"'
    write_recipe(run, tmp_path, target)
    served = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    application = served["applications"][0]
    assert application["args"]["model"] == str(target) and served["http_options"]["host"] == "127.0.0.1"
    module, _, name = application["import_path"].partition(":")
    assert getattr(sys.modules[module], name) is build_app
    assert (tmp_path / "vllm.yaml").exists() == (task in ("causal-lm", "preference"))
    recipe = json.loads((tmp_path / "raytrain_nlp.json").read_text())
    assert recipe["job"]["task"]["type"] == task and recipe["labels"] == ["no", "yes"] and recipe["code_folder"] == ""
    assert "password" not in json.dumps(recipe) and set(recipe["job"]) <= {"task", "model", "data", "training"}


def test_an_adapter_is_served_by_vllm_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    write_recipe(task_job(tmp_path, "causal-lm"), tmp_path, tmp_path / "out")
    values = yaml.safe_load((tmp_path / "vllm.yaml").read_text())
    assert (values["model"], values["enable-lora"], values["lora-modules"]) == ("base", True, [f"mine={tmp_path}/out"])


def test_a_folder_that_cannot_be_served_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .* Write the folder with `export RUN --output FOLDER"):
        read_recipe(tmp_path, use_gpu=False)
    (tmp_path / "raytrain_nlp.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="is of another release .*format 2"):
        read_recipe(tmp_path, use_gpu=False)


def converter(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "convert_hf_to_gguf.py").write_text(program)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(folder))


def test_gguf_is_made_by_the_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import pathlib, sys; pathlib.Path(sys.argv[3]).write_text(' '.join(sys.argv[1:]))"
    converter(tmp_path, program, monkeypatch)
    assert check_gguf("f16", decoder=True, adapter=False) == []
    made = write_gguf(tmp_path, "f16")
    assert made == tmp_path / "model-f16.gguf"
    assert made.read_text() == f"{tmp_path} --outfile {made} --outtype f16"
    converter(tmp_path, "raise NotImplementedError('BPE pre-tokenizer was not recognized')", monkeypatch)
    with pytest.raises(RunError, match="failed: NotImplementedError: BPE pre-tokenizer was not recognized"):
        write_gguf(tmp_path, "q8_0")


def test_what_cannot_become_gguf_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [problem.what for problem in check_gguf("f16", decoder=True, adapter=False)] == [
        "needs llama.cpp's converter, and convert_hf_to_gguf.py is not on PATH"
    ]
    whats = [problem.what for problem in check_gguf("q4", decoder=False, adapter=True)]
    assert whats == [
        "is unknown (q4)",
        "is for causal language models",
        "takes a whole model, and this is an adapter",
    ]
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert gguf.find_converter() == str(script)


def test_what_an_export_of_an_adapter_holds(tmp_path: Path) -> None:
    """`model/` may be merged; its checkpoints are not."""
    model = tmp_path / "model"
    run = cast(Run, SimpleNamespace(job=SimpleNamespace(lora=None), paths=SimpleNamespace(model=model)))
    assert is_whole(run, None, merge_lora=False) and is_whole(run, "best", merge_lora=False)
    run.job.lora = {"r": 8}
    assert not is_whole(run, None, merge_lora=False)  # a checkpoint, as there is no `model/`
    model.mkdir()
    assert is_whole(run, None, merge_lora=False) and not is_whole(run, "best", merge_lora=False)
    assert is_whole(run, "best", merge_lora=True)
    (model / "adapter_config.json").write_text("{}")
    assert not is_whole(run, None, merge_lora=False)


@pytest.mark.parametrize("name", ["me/model", "model", "me/my-model.v2"])
def test_names_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    assert check_push(name) == []
    assert [problem.where for problem in check_push(f"{name}/x/y")] == ["--push"]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "needs a token" in str(check_push(name)[0])


RESULTS = {
    "results": {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 1},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5, "sample_len": 9},
    }
}


def test_figures_of_the_harness() -> None:
    assert read_results(RESULTS) == {
        "harness/arc_easy/acc": 0.5,
        "harness/arc_easy/acc_stderr": 0.01,
        "harness/arc_easy/acc_norm": 1.0,
        "harness/gsm8k/exact_match/strict-match": 0.25,
        "harness/gsm8k/exact_match/flexible-extract": 0.5,
    }


def test_the_harness_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in named as the real one keeps its arguments, and writes results where the real one does."""
    (tmp_path / "lm_eval.py").write_text(
        "import json, pathlib, sys\n"
        "pathlib.Path('asked').write_text(json.dumps(sys.argv[1:]))\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--output_path') + 1]) / 'model'\n"
        "out.mkdir(parents=True)\n"
        f"(out / 'results_2026.json').write_text({json.dumps(json.dumps(RESULTS))})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    found = run_harness(tmp_path / "model", "base", "arc_easy,gsm8k", ["--limit", "5"], False, "bfloat16")
    assert found["harness/arc_easy/acc"] == 0.5
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked[asked.index("--model_args") + 1] == f"pretrained={tmp_path / 'model'},dtype=bfloat16"
    assert asked[-2:] == ["--limit", "5"] and asked[asked.index("--device") + 1] == "cpu"
    (tmp_path / "lm_eval.py").write_text("raise KeyError('Task not found')")
    with pytest.raises(RunError, match="failed: KeyError: 'Task not found'"):
        run_harness(tmp_path / "model", "base", "nothing", [], False, None)
    assert [problem.where for problem in check_harness(decoder=False)] == ["--harness"]
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert "raytrain-nlp[harness]" in str(check_harness(decoder=True)[0])


def test_rows_through_a_pipe_keep_their_order_and_names() -> None:
    """Chunk by chunk; a stand-in predicts the length of a text."""
    sizes: list[int] = []

    def predictor(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sizes.append(len(rows))
        return [{"prediction": len(row["text"])} if row["text"] else {"error": "empty"} for row in rows]

    texts = ["x" * (number % 7) for number in range(600)]
    lines = io.BytesIO(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))
    output = io.BytesIO()
    rows = rows_of_input(["-"], lines, "unused", "")
    result = predict_stream(predictor, rows, output, "my_", Observer())
    assert sizes == [256, 256, 88] and (result.rows, result.errors, result.bad_rows) == (600, texts.count(""), 0)
    written = [json.loads(line) for line in output.getvalue().splitlines()]
    assert written == [
        {"text": text, "my_prediction": len(text)} if text else {"text": "", "my_error": "empty"} for text in texts
    ]


def test_a_pipe_is_both_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ["-i", "-", "-o", "x.jsonl"],
        ["-i", "-", "-i", "a.jsonl", "-o", "-"],
        ["-i", "-", "-o", "-", "--json"],
    ):
        with pytest.raises(SystemExit) as ended:
            monkeypatch.setattr(sys, "argv", ["raytrain-nlp", "predict", "run", *arguments])
            main()
        assert ended.value.code == 2
        assert "error: -: stands for standard input and output, which go together" in capsys.readouterr().err


def test_what_is_generated_where_evaluation_does_not(tmp_path: Path) -> None:
    jobs = {task: task_job(tmp_path, task).job for task in TASKS}
    assert {task for task, job in jobs.items() if "max_new_tokens" in generation_of(job)} == {"causal-lm", "preference"}
    assert {task for task, job in jobs.items() if "max_length" in generation_of(job)} == {
        task
        for task, job in jobs.items()
        if build_task(job.task).generates and "generation_max_length" in job.arguments()
    }
    half = load_job(
        {**plain_job(tmp_path, "x"), "training": {"bf16": True}, "workers": {"num_workers": 1, "use_gpu": True}}
    )
    assert weights_dtype(half) == "bfloat16" and weights_dtype(jobs["causal-lm"]) is None


def test_a_classifier_has_no_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        harness_verb,
        "find_run",
        lambda run: SimpleNamespace(job=task_job(tmp_path, "text-classification").job, chosen=[]),
    )
    with pytest.raises(InputError, match="--harness: is for causal language models"):
        harness_verb.score_on_harness("run", "arc_easy", [], None, (), Observer())
