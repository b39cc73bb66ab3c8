"""README and guides: every command is one that is taken, every job file loads, every program names what there is, every
link leads somewhere.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documents import ROOT, anchors, blocks, commands, documents, links

import raytrain_nlp
from raytrain_nlp.cli.job_files import find_examples
from raytrain_nlp.cli.main import GROUPS, app
from raytrain_nlp.config import load_job
from raytrain_nlp.config.load import read_values
from raytrain_nlp.config.sweep import load_sweep

CLI: Any = typer.main.get_command(app)
OTHERS = {
    "python3",
    ".venv/bin/pip",
    ".venv/bin/raytrain-nlp",
    ".venv-test/bin/pip",
    ".venv-test/bin/python",
    ".",
    "pip",
}
OTHERS |= {"mlflow", "ray", "kubectl"}
"""Programs besides ours; those of clouds and clusters are run by nobody here."""
OURS = [(document, words) for document, words in commands() if words[0].endswith("raytrain-nlp")]
BASE = {
    "task": {"type": "text-classification"},
    "model": {"name_or_path": "some-model"},
    "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its parameters, as the command line takes them; raises where it does not."""
    return words[1], CLI.commands[words[1]].make_context(words[1], words[2:]).params


@pytest.mark.parametrize(
    ("document", "words"), OURS, ids=lambda value: " ".join(value)[:60] if type(value) is list else ""
)
def test_each_command_of_ours_is_taken(document: str, words: list[str]) -> None:
    if words[1:] == ["--install-completion"]:
        return
    verb, given = parsed(words)
    job = given.get("job")
    if job and (ROOT / job).exists():
        load = load_sweep if read_values(ROOT / job).get("kind") == "sweep" else load_job
        load(ROOT / job, given.get("set_") or ())
    elif job:  # a placeholder, or what a command above it has written
        assert job in ("JOB", "my-data.yaml", "summarization.yaml"), (document, job)
        load_job(find_examples()["summarization"], given.get("set_") or ())
    if verb == "init" and given["name"] and "." not in given["name"]:
        assert given["name"] in find_examples()


def test_each_program_is_known() -> None:
    assert {words[0] for _, words in commands()} <= OTHERS | {"raytrain-nlp"}
    shown = {parsed(words)[0] for _, words in OURS if not words[1].startswith("--")}
    assert shown == {verb for verbs in GROUPS.values() for verb in verbs}, "each verb is shown once at least"


def test_what_other_programs_are_given_is_there() -> None:
    for document, words in commands():
        if words[0] == "ray" and words[1] in ("up", "down"):
            assert (ROOT / words[2]).exists(), document
        for word in words:
            if word.endswith(".py") and words[0] != "raytrain-nlp":
                assert (ROOT / word).exists(), (document, word)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"{block.document}: {block.text[:20]!r}")
def test_each_job_file_loads(block: Any) -> None:
    values = yaml.safe_load(block.text)
    if values.get("kind") == "sweep":
        load_sweep({**values, "job": BASE})
        return
    load_job({**BASE, **values})


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.document)
def test_each_program_names_what_there_is(block: Any) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "raytrain_nlp":
            assert node.attr in raytrain_nlp.__all__


def test_links_lead_somewhere() -> None:
    for path, link in links():
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), (path.name, link)
        assert not anchor or anchor in anchors(target), (path.name, link)


def test_no_guide_is_long_and_the_first_screen_is_short() -> None:
    lines = {
        path.name: len(path.read_text().splitlines())
        for path in documents()
        if path.name not in ("keys.md", "support.md")
    }
    assert [name for name, count in lines.items() if count > 150] == []


def test_ci_runs_what_the_readme_says() -> None:
    """The second headline command, a line each in `.ci/run`."""
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert (
        "python3 -m venv .venv-test && .venv-test/bin/pip install -e '.[test]' && .venv-test/bin/python -m pytest\n"
        in readme
    )
    assert "python3 -m venv .venv-test && .venv-test/bin/pip install -q -e '.[test]'\n.venv-test/bin/python -m" in ci
    assert Path(".venv/bin/raytrain-nlp train jobs/quickstart.yaml").as_posix() in readme


def test_the_picture_of_the_first_screen_is_small_and_its_command_is_beside_it() -> None:
    picture = ROOT / "tests" / "benchmarks" / "kills.png"
    assert picture.stat().st_size < 100_000 and (picture.parent / "kills_plot.py").exists()
    assert "(tests/benchmarks/kills.png)" in (ROOT / "README.md").read_text()
