"""`raytrain-nlp keys [SECTION | KEY]`."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable
from typing import Annotated

import typer

from raytrain_nlp.config.reference.job_schema import MODELINE, build_job_schema, library_remark
from raytrain_nlp.config.reference.keys import LIBRARY_SECTIONS, Key, find_keys, list_keys, sweep_keys
from raytrain_nlp.config.training import RENAMED
from raytrain_nlp.errors import InputError, Problem, nearest

HELP = "Explain keys of a job file: type, default, meaning. Without NAME the sections; `keys sweep`: keys of a sweep."
_NARROWEST, _WIDEST, _UNKNOWN_WIDTH = 60, 120, 100
_INDENT = "    "


def complete_name(incomplete: str) -> list[str]:
    """Completes names of keys in the shell, one section at a time."""
    names = {key.name for key in (*list_keys(), *sweep_keys())} | {"sweep"}
    return sorted(name for name in names if name.startswith(incomplete) and "." not in name[len(incomplete) :])


def run(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A section (data), a key (data.max_length, max_length), a task, or sweep.",
            autocompletion=complete_name,
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help=f"Print the JSON schema; `{MODELINE}FILE` names it to editors.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all keys as a page.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Print the keys that NAME names, or the sections."""
    if schema or markdown:
        return print(render_schema() if schema else render_page(), end="")
    keys = [key for key in list_keys() if "." not in key.name] if name is None else _found(name)
    lone = len(keys) == 1
    width = min(max(shutil.get_terminal_size((_UNKNOWN_WIDTH, 24)).columns, _NARROWEST), _WIDEST)
    told = [render_key(key, width, lone) for key in keys if lone or not key.refused]
    print("\n".join(told))
    if not lone and (refused := [key for key in keys if key.refused]):
        print("\n" + _wrapped(f"Not set in a job, although {_libraries(refused)} has it:", width, ""))
        print("\n".join(_wrapped(f"{key.name}: {key.text}", width, _INDENT) for key in refused))
    if name is None:
        print("\nKeys of a section:  raytrain-nlp keys NAME\nKeys of a sweep:    raytrain-nlp keys sweep")
    if as_json:
        print(json.dumps({"keys": [key.to_dict() for key in keys]}))


def render_key(key: Key, width: int, whole: bool = True) -> str:
    """The text about a key.

    Args:
        width: characters of a line at most.
        whole: if not set, only the first sentence of a library's own text is shown, and long lists of values are
            shortened.
    """
    default = " (required)" if key.default is None else f", default {key.default}" if key.default else ""
    beside = f" [{key.of}]" if key.of else ""
    text = key.text if whole or key.section not in LIBRARY_SECTIONS else _first_sentence(key.text)
    head = f"{key.name}{beside}: {key.type if whole else key.brief}{default}"
    return "\n".join([_wrapped(head, width, ""), *([_wrapped(text, width, _INDENT)] if text else [])])


def render_schema() -> str:
    """The JSON schema of job files, as in `jobs/job.schema.json`."""
    return json.dumps(build_job_schema(), indent=1, ensure_ascii=False) + "\n"


def render_page() -> str:
    """All keys as a Markdown page with a table for each section, without the texts of keys that are a library's own."""
    lines = [
        "# Every key of a job file",
        "",
        "Made by `raytrain-nlp keys --markdown`; `raytrain-nlp keys NAME` tells the same in a terminal, and what the",
        "libraries say of their own keys. For editors: `raytrain-nlp keys --schema > job.schema.json`, and",
        f"`{MODELINE}job.schema.json` as the first line of a job file (VS Code's YAML",
        "extension and others read it); the files that `raytrain-nlp init` writes have such a line.",
    ]
    top = [key for key in list_keys() if "." not in key.name]
    lines += ["", "## A run", "", *_table(top)]
    for section in top:
        below = [key for key in list_keys() if key.name.startswith(f"{section.name}.")]
        lines += _section(section, below) if below else []
    sweep = sweep_keys()
    lines += ["", "## A sweep", "", *_table([key for key in sweep if "." not in key.name])]
    for section in sweep:
        below = [key for key in sweep if key.name.startswith(f"{section.name}.")]
        lines += _section(section, below) if "." not in section.name and below else []
    return "\n".join(lines) + "\n"


def _section(section: Key, keys: list[Key]) -> list[str]:
    lines = ["", f"### `{section.name}`", "", section.text]
    alone = [key for key in keys if not key.of and not key.refused]
    library = LIBRARY_SECTIONS.get(section.name)
    lines += ["", *_table(alone, library)] if alone else []
    for kind in dict.fromkeys(key.of for key in keys if key.of):
        lines += ["", f"With `type: {kind}`:", "", *_table([key for key in keys if key.of == kind])]
    if refused := [key for key in keys if key.refused]:
        lines += ["", f"Not set here, although `{library}` has it:", ""]
        lines += ["| key | instead |", "|---|---|", *(f"| `{_last(key)}` | {key.text} |" for key in refused)]
    return lines


def _table(keys: list[Key], library: str | None = None) -> list[str]:
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key in keys:
        default = "required" if key.default is None else f"`{key.default}`" if key.default else ""
        text = key.text if not library or _is_ours(key) else ""
        lines.append(f"| `{_last(key)}` | {_cell(key.brief)} | {default} | {_cell(text)} |")
    return lines


def _is_ours(key: Key) -> bool:
    """Is a key's text written by this package, and not by a library?"""
    return library_remark(key.section, _last(key)) is None


def _last(key: Key) -> str:
    """The name of a key within its section."""
    return key.name.partition(".")[2] or key.name


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _found(name: str) -> list[Key]:
    """The keys of a name. Raises `InputError` if there are none."""
    keys, last = find_keys(name.strip().rstrip(".:")), name.rpartition(".")[2]
    if keys:
        return keys
    if last in RENAMED:
        raise InputError(Problem("NAME", f"was removed from transformers ({last})", f"Use {RENAMED[last]}."))
    known = [*list_keys(), *sweep_keys()]
    names = {key.name for key in known} | {key.name.rpartition(".")[2] for key in known} | {key.of for key in known}
    todo = nearest(name, names - {""}) or "`raytrain-nlp keys` lists the sections."
    raise InputError(Problem("NAME", f"no key of a job file has this name ({name!r})", todo))


def _libraries(keys: Iterable[Key]) -> str:
    return " or ".join(dict.fromkeys(LIBRARY_SECTIONS[key.section] for key in keys))


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "." if text else ""


def _wrapped(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}{'' if indent else _INDENT}",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
