"""A user's first hour, as the README tells it: its commands on rows of one's own, one after the other, and the examples
in the docstrings.
"""

from __future__ import annotations

import doctest
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, commands
from object_store import free_port
from own_rows import KINDS, write
from support import wait_until, write_rows

import raytrain_nlp
from raytrain_nlp.cli.job_files import find_examples, schema_line
from raytrain_nlp.cli.propose.job import Draft
from raytrain_nlp.cli.propose.options import Options

STEPS = 12
STORY = [words for document, words in commands() if document == "README.md" and words[0] in ("raytrain-nlp", "mlflow")]
IN_ORDER = ("train", "check", "evaluate", "predict", "export", "report", "sweep")


class _Wanted(doctest.OutputChecker):
    """Looks at what an example says it returns; Ray may say something beside one that returns nothing."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def run(words: list[str], folder: Path) -> str:
    """A command as a user gives it; its standard output."""
    program = [sys.executable, "-m", "raytrain_nlp.cli.main"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run([*program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    print(done.stdout)
    return done.stdout


def answers(words: list[str], folder: Path) -> None:
    """A server that the words start serves its page."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", *words[1:], "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL)

    def is_up() -> bool:
        assert server.poll() is None, words
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_until(is_up, 600, "an answer of MLflow")
    finally:
        os.killpg(server.pid, 9)
        server.wait(60)


@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    assert [words[1] for words in STORY] == ["init", "check", "train", "evaluate", "predict", "export", "report", "ui"]
    for name, seed in (("my-data", 0), ("more", 1), ("new", 2)):
        write_rows(tmp_path / f"{name}.jsonl", 200 if name == "my-data" else 30, seed=seed)
    for words in STORY:
        if words[0] == "mlflow":
            answers([word.replace("$PWD", str(tmp_path)) for word in words], tmp_path)
            continue
        more = ["--set", f"training.max_steps={STEPS}"] if words[1] == "train" else []
        shown = run([*words, *more], tmp_path)
        if words[1] == "init":
            assert shown.splitlines()[-1].endswith("Next: raytrain-nlp check my-data.yaml")
        if words[1] == "check":
            assert shown.splitlines()[-1].split() == ["next:", "raytrain-nlp", "train", "my-data.yaml"]
        if words[1] == "train":
            page = next(line for line in shown.splitlines() if line.startswith("MLflow page"))
            told = shlex.split(page.removeprefix("MLflow page"))
            assert told == [word.replace("$PWD", str(tmp_path)) for word in STORY[-1]]
    predicted = [json.loads(line) for line in (tmp_path / "predicted.jsonl").read_text().splitlines()]
    assert len(predicted) == 30 and all(row["prediction"] in ("0", "1") for row in predicted)
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "model").iterdir()}
    assert (tmp_path / "runs" / "my-data" / "report.html").exists()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"chats"}))
def test_a_proposal_passes_check(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write("my.train.jsonl", kind, 120)
    write("my.validation.jsonl", kind, 30)
    draft = Draft("my.train.jsonl", find_examples(), Options())
    Path("my.yaml").write_text(draft.render(schema_line(Path("my.yaml")), Path("my.yaml")))
    plan = raytrain_nlp.check("my.yaml")
    assert plan.total_steps > 0 and plan.rows["validation"] > 0 and sum(plan.bad_rows.values()) == 0
    assert sum(plan.cut_rows.values()) <= 0.2 * sum(plan.rows.values())


@pytest.mark.timeout(1800)
def test_the_examples_in_the_docstrings(shared_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    write_rows(tmp_path / "new.jsonl", 3)
    monkeypatch.chdir(tmp_path)
    for name in IN_ORDER:
        (found,) = doctest.DocTestFinder(recurse=False).find(getattr(raytrain_nlp, name), name, globs={})
        for example in found.examples:
            example.options.pop(doctest.SKIP, None)
        runner = doctest.DocTestRunner(_Wanted(), optionflags=doctest.ELLIPSIS)
        assert runner.run(found).failed == 0, name
