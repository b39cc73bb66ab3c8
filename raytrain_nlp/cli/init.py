"""`raytrain-nlp init [TASK] [PATH]`."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from raytrain_nlp.config.job_schema import FILE, MODELINE
from raytrain_nlp.errors import InputError, Problem, nearest

HELP = "Write a commented job file to start from. Without TASK, list them."

_FILE_NAMES = {"text-classification": "quickstart"}
"""Task -> its job file, where that has another name."""


def run(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="A task or technique.")] = None,
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="File or folder to write; - for standard output. Default: TASK.yaml."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Write an example, or list them."""
    examples = find_examples()
    if task is None:
        titles = {name: _title(file) for name, file in examples.items()}
        print("\n".join(f"{name:<22}{title}" for name, title in titles.items()))
        result: dict[str, Any] = {"examples": titles}
    elif task not in examples:
        raise InputError(
            Problem(
                "TASK",
                f"no example has this name ({task!r})",
                nearest(task, examples) or f"The names are {', '.join(examples)}.",
            )
        )
    elif path == "-":
        if as_json:
            raise InputError(
                Problem(
                    "--json",
                    "does not go with -, which gives standard output to the job file",
                    "Leave one of them out.",
                )
            )
        (_, text), *others = example_texts(examples[task], Path(f"{task}.yaml")).items()
        for file, _ in others:
            print(f"note: it needs {file}, which `raytrain-nlp init {task}` writes too", file=sys.stderr)
        return print(text, end="")
    else:
        target = Path(path or f"{task}.yaml")
        texts = example_texts(examples[task], target / f"{task}.yaml" if target.is_dir() else target)
        _write(texts, force)
        job, text = next(iter(texts.items()))
        print(
            f"Written: {', '.join(map(str, texts))}. Next: raytrain-nlp "
            f"{'sweep' if 'kind: sweep' in text else 'check'} {job}"
        )
        result = {"files": [str(file) for file in texts]}
    if as_json:
        print(json.dumps(result))


def schema_line(target: Path) -> str:
    """The first line of a job file that is to lie at `target`: it names to editors the schema that is installed with
    this package, relative to the file where both lie below the current directory.
    """
    schema, folder, here = examples_folder() / FILE, target.absolute().parent, Path.cwd()
    if schema.is_relative_to(here) and folder.is_relative_to(here):
        return f"{MODELINE}{os.path.relpath(schema, folder)}\n"
    return f"{MODELINE}{schema.as_uri() if ' ' in str(schema) else schema}\n"  # a line ends at its first space


def find_examples() -> dict[str, Path]:
    """The job files by name, tasks first."""
    from raytrain_nlp.config.tasks import TASK_TYPES

    jobs = {file.stem: file for file in sorted(examples_folder().glob("*.yaml"))}
    return {**{task: jobs.pop(_FILE_NAMES.get(task, task)) for task in TASK_TYPES}, **jobs}


def examples_folder() -> Path:
    """Of the job files and their schema: in the installed package, or the repository's in an editable installation."""
    package = Path(str(files("raytrain_nlp")))
    return package / "jobs" if (package / "jobs").is_dir() else package.parent / "jobs"


def example_texts(example: Path, target: Path) -> dict[Path, str]:
    """What to write: the job file as `target`, beside it the files it names; `jobs/` in them becomes the folder they
    come to lie in.
    """
    sources = {target: example, **{target.parent / file.name: file for file in _companions(example)}}
    texts = {path: file.read_text(encoding="utf-8") for path, file in sources.items()}
    texts[target] = schema_line(target) + texts[target].partition("\n")[2]
    for path, file in sources.items():
        texts = {key: text.replace(f"jobs/{file.name}", str(path)) for key, text in texts.items()}
        if file.suffix == ".py":
            texts = {key: text.replace(f"jobs.{file.stem}:", f"{_module_of(path)}:") for key, text in texts.items()}
    return texts


def _write(texts: dict[Path, str], force: bool) -> None:
    job, *others = texts
    taken = [job] if job.exists() else []
    taken += [
        path for path in others if path.exists() and path.read_bytes() != texts[path].encode()
    ]  # a second job may share the code of the first
    if taken and not force:
        raise InputError(
            [Problem(str(path), "is there already", "Name another PATH, or add --force.") for path in taken]
        )
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(
                Problem(str(path), f"cannot be written ({error.strerror})", "Name another PATH.")
            ) from None


def _companions(example: Path) -> list[Path]:
    """The files other than job files that a job file names."""
    text = example.read_text(encoding="utf-8")
    others = sorted(file for file in example.parent.iterdir() if file.suffix in (".json", ".py"))
    return [file for file in others if f"jobs/{file.name}" in text or f"jobs.{file.stem}:" in text]


def _module_of(path: Path) -> str:
    """A Python file as `trainer:` names it: seen from the current directory."""
    try:
        parts = path.resolve().relative_to(Path.cwd().resolve()).with_suffix("").parts
    except ValueError:
        parts = ("",)
    if not all(part.isidentifier() for part in parts):
        raise InputError(
            Problem(
                str(path),
                "could not be imported from here",
                "Name a PATH in this folder, or below it in folders with names as Python's.",
            )
        )
    return ".".join(parts)


def _title(example: Path) -> str:
    """The first sentence of a job file."""
    lines = example.read_text(encoding="utf-8").partition("#\n")[0].splitlines()
    comment = " ".join(line[1:].strip() for line in lines if not line.startswith(MODELINE))
    sentence = re.match(r".*?[.?!](?= |$)", comment)
    assert sentence is not None, "each of them begins with one"
    return sentence[0].rstrip(".")
