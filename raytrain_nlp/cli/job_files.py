"""The job files that `init` writes: the examples, the line that names the JSON schema for editors, and not overwriting
files that exist.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from raytrain_nlp.config.reference.job_schema import FILE, MODELINE
from raytrain_nlp.errors import InputError, Problem

FILE_NAMES = {"text-classification": "quickstart"}
"""Task -> name of its example, if that is not the task's."""


def target_of(path: str | None, name: str) -> Path:
    """The job file to write.

    Args:
        path: a file, or a folder, in which the file is called `NAME.yaml`. A folder that does not exist yet must end
            with `/`. Default: `NAME.yaml` in the current directory.
    """
    target = Path(path or f"{name}.yaml")
    return target / f"{name}.yaml" if target.is_dir() or (path or "").endswith("/") else target


def schema_line(target: Path) -> str:
    """The first line of the job file `target`, a comment from which editors take the JSON schema that is installed with
    this package. The path is relative if file and schema are both below the current directory.
    """
    schema, folder, here = examples_folder() / FILE, target.absolute().parent, Path.cwd()
    if schema.is_relative_to(here) and folder.is_relative_to(here):
        return f"{MODELINE}{os.path.relpath(schema, folder)}\n"
    return f"{MODELINE}{schema.as_uri() if ' ' in str(schema) else schema}\n"  # editors read up to the first space


def find_examples() -> dict[str, Path]:
    """The job files of the examples by name; those of tasks come first."""
    from raytrain_nlp.config.tasks import TASK_TYPES

    jobs = {file.stem: file for file in sorted(examples_folder().glob("*.yaml"))}
    return {**{task: jobs.pop(FILE_NAMES.get(task, task)) for task in TASK_TYPES}, **jobs}


def examples_folder() -> Path:
    """The folder of the examples and the schema: `jobs` in the installed package, or in the repository if the
    installation is editable.
    """
    package = Path(str(files("raytrain_nlp")))
    return package / "jobs" if (package / "jobs").is_dir() else package.parent / "jobs"


def example_texts(example: Path, target: Path) -> dict[Path, str]:
    """The files to write for an example and their texts: the job file `target` first, and the files that it names, in
    the same folder. Their paths in the texts are changed accordingly. A job file that it names, of the run it starts
    from, is left as it is where there is one.
    """
    sources = {target: example, **{target.parent / file.name: file for file in _companions(example)}}
    texts = {path: file.read_text(encoding="utf-8") for path, file in sources.items()}
    for path in [path for path, file in sources.items() if file.suffix == ".yaml"]:
        texts[path] = schema_line(path) + texts[path].partition("\n")[2]
    for path, file in sources.items():
        texts = {key: text.replace(f"jobs/{file.name}", str(path)) for key, text in texts.items()}
        if file.suffix == ".py":
            texts = {key: text.replace(f"jobs.{file.stem}:", f"{_module_of(path)}:") for key, text in texts.items()}
    return {path: text for path, text in texts.items() if path == target or path.suffix != ".yaml" or not path.exists()}


def write_texts(texts: dict[Path, str], force: bool) -> None:
    """Write files, of which the first is the job file. Raises `InputError` if one exists (unless `force`) or cannot be
    written.
    """
    job, *others = texts
    # other files may exist with the same content, as two examples may share them
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
    """Raises `InputError` for each file that exists, unless `force`."""
    taken = [path for path in paths if path.exists() and not force]
    if taken:
        raise InputError(
            [Problem(str(path), "is there already", "Name another PATH, or add --force.") for path in taken]
        )


def _companions(example: Path) -> list[Path]:
    """The files that a job file names: of DeepSpeed, with code, the job of a run it starts from."""
    text = example.read_text(encoding="utf-8")
    others = sorted(file for file in example.parent.iterdir() if file.suffix in (".json", ".py", ".yaml"))
    others.remove(example)
    return [file for file in others if f"jobs/{file.name}" in text or f"jobs.{file.stem}:" in text]


def _module_of(path: Path) -> str:
    """The name of the module in a Python file, as `trainer:` needs it: relative to the current directory. Raises
    `InputError` if the file could not be imported from there.
    """
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
