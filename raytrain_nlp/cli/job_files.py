"""The job files that `init` writes: examples, the line that names their schema to editors, what is there already."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from raytrain_nlp.config.reference.job_schema import FILE, MODELINE
from raytrain_nlp.errors import InputError, Problem

FILE_NAMES = {"text-classification": "quickstart"}
"""Task -> its job file, where that has another name."""


def target_of(path: str | None, name: str) -> Path:
    """The job file to write: in a folder under its own name. A folder need not be there yet where it ends with `/`."""
    target = Path(path or f"{name}.yaml")
    return target / f"{name}.yaml" if target.is_dir() or (path or "").endswith("/") else target


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
    return {**{task: jobs.pop(FILE_NAMES.get(task, task)) for task in TASK_TYPES}, **jobs}


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


def write_texts(texts: dict[Path, str], force: bool) -> None:
    job, *others = texts
    # a second job may share the code of the first
    refuse_taken(
        [job, *(path for path in others if path.exists() and path.read_bytes() != texts[path].encode())], force
    )
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(
                Problem(str(path), f"cannot be written ({error.strerror})", "Name another PATH.")
            ) from None


def refuse_taken(paths: list[Path], force: bool) -> None:
    taken = [path for path in paths if path.exists() and not force]
    if taken:
        raise InputError(
            [Problem(str(path), "is there already", "Name another PATH, or add --force.") for path in taken]
        )


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
