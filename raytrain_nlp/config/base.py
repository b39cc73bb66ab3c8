"""The base class of every section of a job file. Sections are frozen and refuse unknown keys; the docstring under a
field is the help for its key.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from raytrain_nlp.errors import Problem, nearest

HIDDEN = "~"
"""First character of union tags that are not written in a job file. pydantic puts such a tag into the location of an
error, where it is skipped."""


class Section(BaseModel):
    """One section of a job file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=False,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def accepts_also(*forms: dict[str, Any], default: Any = None) -> Callable[[dict[str, Any]], None]:
    """`json_schema_extra` for a field whose validator accepts more forms in a job file than the field's type says.

    Args:
        forms: JSON schemas of the further forms.
        default: the default that the schema shows, where it is not the field's own.
    """

    def extend(schema: dict[str, Any]) -> None:
        own = {
            key: schema.pop(key) for key in list(schema) if key not in ("default", "description", "title", "deprecated")
        }
        schema["anyOf"] = [*own.get("anyOf", [own]), *forms]
        if default is not None:
            schema["default"] = default

    return extend


class Contradictions(ValueError):
    """Sections that are valid one by one contradict each other; raised by a validator of the whole job. `problems` has
    one entry for each contradiction.
    """

    def __init__(self, problems: list[Problem]):
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def problems_of(error: ValidationError, model: type[BaseModel], root: str = "") -> list[Problem]:
    """Each error of a pydantic validation as a `Problem`, with the dotted key that the user wrote.

    Args:
        model: the section that was validated.
        root: dotted key of that section in the job file; "" for the whole file.
    """
    problems = []
    for finding in error.errors(include_url=False):
        cause = finding.get("ctx", {}).get("error")
        problems += cause.problems if isinstance(cause, Contradictions) else [_problem(finding, model, root)]
    return problems


def _problem(finding: Any, model: type[BaseModel], root: str) -> Problem:
    location = [str(part) for part in finding["loc"]]
    written, _ = _follow(model, location)
    where = ".".join(part for part in [root, *written] if part)
    value = finding.get("input")
    shown = _shown(value, finding["type"])
    if finding["type"] == "extra_forbidden":
        valid = {name for section in _follow(model, location[:-1])[1] for name in _names(section)}
        return Problem(where, "unknown key", nearest(location[-1], valid) or f"Valid keys: {', '.join(sorted(valid))}.")
    if finding["type"] == "missing":
        return Problem(where, "is missing", "Add it; `raytrain-nlp init` writes examples.")
    if location[-1:] == ["[key]"] or finding["type"] == "invalid_key":
        return Problem(where.removesuffix(".[key]"), f"a key must be text{shown}", "Quote it.")
    if finding["type"] == "union_tag_invalid":
        context = finding["ctx"]
        return Problem(f"{where}.type", f"unknown type ('{context['tag']}')", f"Use one of {context['expected_tags']}.")
    message = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
    what, _, todo = message.partition(" || ")
    if finding["type"] in ("string_type", "literal_error"):
        todo = todo or _unquoted(value)
    if finding["type"] != "value_error" and not what.startswith(("should", "is")):
        what = f"is wrong: {what}"
    return Problem(where or "job", f"{what}{shown}", todo)


def _shown(value: Any, kind: str) -> str:
    if isinstance(value, date) or (value is None and kind == "string_type"):
        return f" ({'null' if value is None else value})"
    return f" ({value!r})" if isinstance(value, (str, int, float, bool)) else ""


def _unquoted(value: Any) -> str:
    """Advice where text is expected and YAML has read an unquoted word as a truth value, number, date or null; "" where
    that is not the reason.
    """
    if isinstance(value, bool):
        words = "yes, on and true" if value else "no, off and false"
        return (
            f"YAML reads a bare {words} as {value}: quote the word, e.g. {chr(34)}{'yes' if value else 'no'}{chr(34)}."
        )
    if isinstance(value, (int, float, date)):
        return f'YAML reads it as a {"date" if isinstance(value, date) else "number"}: quote it, e.g. "{value}".'
    return 'YAML reads a bare null, ~ or nothing as no value: quote the word, e.g. "null".' if value is None else ""


def _follow(model: type[BaseModel], location: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The location of a pydantic error as the user wrote it, and the sections whose keys may stand there.

    In a union, pydantic puts the tag of the member (the value of `type:`) into the location; the user wrote no such
    key.
    """
    written, candidates, in_mapping = [], [model], False
    for part in location:
        if part.startswith(HIDDEN):
            continue
        if in_mapping:  # a name of the user's, not of a field
            written.append(part)
            in_mapping = False
            continue
        if part.isdigit() and candidates:  # a place in a list
            written.append(part)
            continue
        if tagged := [found for found in candidates if part in _tags_of(found)]:
            candidates = tagged
            continue
        fields = [
            field for found in candidates for name, field in found.model_fields.items() if part in (name, field.alias)
        ]
        candidates = [section for field in fields for section in _sections_in(field.annotation)]
        in_mapping = bool(candidates) and all(get_origin(field.annotation) is dict for field in fields)
        written.append(part)
    return written, candidates


def _names(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _tags_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The values that `type:` may have in a section; empty where the section has no such key."""
    return getattr(getattr(model.model_fields.get("type"), "annotation", None), "__args__", ())


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _sections_in(part)]
