"""`raytrain-nlp init [NAME | DATA] [PATH]`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raytrain_nlp.cli.job_files import FILE_NAMES, example_texts, find_examples, target_of, write_texts
from raytrain_nlp.cli.propose.options import Options
from raytrain_nlp.config.reference.job_schema import MODELINE
from raytrain_nlp.errors import InputError, Problem, nearest

HELP = (
    "Write a commented job file to start from: that of an example (NAME), or one proposed for your own rows (DATA). "
    "Without either, list the examples."
)

_DATA = re.compile(r"[/\\*?:]|\.\w+$")
"""Matches sources of rows, but no name of an example."""


def complete_name(incomplete: str) -> list[str]:
    """Completes names of examples in the shell, which adds names of files itself."""
    return [name for name in (*find_examples(), *FILE_NAMES.values()) if name.startswith(incomplete)]


def run(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|DATA",
            help="An example, a task or technique; or a file, folder, glob, s3:// or hf:// with rows.",
            autocompletion=complete_name,
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="File or folder to write; - for standard output. Default: NAME.yaml."),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TYPE", help="For DATA: the task. Default: the first that fits.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="For DATA: hub name or folder. Default: one that fits."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", metavar="DATA", help="For DATA: validation rows. Default: a file beside it."),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option("--split", metavar="SHARE", help="For DATA: set a share of its rows aside for validation."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Write the job file of an example, or a proposed one, or list the examples."""
    examples, own = find_examples(), Options(task, model, validation, split)
    if path == "-" and as_json:
        what = "does not go with -, which gives standard output to the job file"
        raise InputError(Problem("--json", what, "Leave one of them out."))
    known = {**examples, **{file.stem: file for file in examples.values()}}
    if name is not None and name not in known and _is_data(name):
        from raytrain_nlp.cli.propose.verb import propose

        return propose(name, path, own, force, as_json)
    if given := own.given():
        raise InputError(Problem(given[0], "is for a file of your own", "Name one: raytrain-nlp init my-data.jsonl."))
    if name is None:
        titles = {each: _title(file) for each, file in examples.items()}
        print("\n".join(f"{each:<28}{title}" for each, title in titles.items()))
        print("\nFor your own rows: raytrain-nlp init FILE")
        result: dict[str, Any] = {"examples": titles}
    elif name not in known:
        todo = nearest(name, known) or f"The names are {', '.join(examples)}; or name a file with rows."
        raise InputError(Problem("NAME", f"no example has this name ({name!r})", todo))
    elif path == "-":
        (_, text), *others = example_texts(known[name], Path(f"{name}.yaml")).items()
        for file, _ in others:
            print(f"note: it needs {file}, which `raytrain-nlp init {name}` writes too", file=sys.stderr)
        return print(text, end="")
    else:
        texts = example_texts(known[name], target_of(path, name))
        write_texts(texts, force)
        (job, text), *_ = texts.items()
        beside = list(texts)[1:]
        following = [f"raytrain-nlp train {file}" for file in beside if file.suffix == ".yaml"]
        following.append(f"raytrain-nlp {'sweep' if 'kind: sweep' in text else 'check'} {job}")
        print(f"Written: {', '.join(map(str, texts))}. Next: {', then '.join(following)}")
        result = {"files": [str(file) for file in texts]}
    if as_json:
        print(json.dumps(result))


def _is_data(name: str) -> bool:
    return Path(name).expanduser().exists() or _DATA.search(name) is not None


def _title(example: Path) -> str:
    """The first sentence of the comment at the beginning of an example."""
    lines = example.read_text(encoding="utf-8").partition("#\n")[0].splitlines()
    comment = " ".join(line[1:].strip() for line in lines if not line.startswith(MODELINE))
    sentence = re.match(r".*?[.?!](?= |$)", comment)
    assert sentence is not None, "each example begins with a sentence"
    return sentence[0].rstrip(".")
