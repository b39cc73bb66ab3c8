"""The JSON schema of a job file: pydantic describes our own sections, the installed libraries those of `training` and
`lora`.

Editors complete and check a job file with it; `config/reference/keys.py` makes the reference for people from it.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import TypeAdapter

from raytrain_nlp.config import lora, training
from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.library_fields import LibraryRemark
from raytrain_nlp.config.sweep import SweepJob

FILE = "job.schema.json"
"""Name of the schema's file, in the folder of the example jobs."""
MODELINE = "# yaml-language-server: $schema="
"""Beginning of the first line of a job file, which tells editors where the schema is; its path follows."""
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_ANY_JOB = {
    "task": {"type": "causal-lm"},
    "model": {"name_or_path": "name"},
    "data": {"train": "rows", "validation": "rows"},
}
_OF_OTHERS = ("seed",)
"""Fields of `TrainingArguments` whose value comes from another section."""


@functools.cache
def build_job_schema() -> dict[str, Any]:
    """The schema of a file of `train` or `sweep`, as plain values."""
    definitions: dict[str, Any] = {}
    for model in (TrainJob, SweepJob):
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[model.__name__] = schema
    definitions["TrainJob"]["properties"]["training"] |= _section_of_training()
    definitions["TrainJob"]["properties"]["lora"]["anyOf"] = [_section_of_lora(), {"type": "null"}]
    job = definitions["TrainJob"]
    inline = {"$ref": "#/$defs/TrainJob"}
    definitions["SweepJob"]["properties"]["job"]["anyOf"] = [inline, {"type": "string"}]
    is_sweep = {"properties": {"kind": {"const": "sweep"}}, "required": ["kind"]}
    whole = {
        "$schema": _DRAFT,
        "title": "A job file of raytrain-nlp",
        "description": job["description"],
        "type": "object",
        "if": is_sweep,
        "then": {"$ref": "#/$defs/SweepJob"},
        "else": inline,
        "$defs": dict(sorted(definitions.items())),
    }
    return _without_titles(whole)


def library_fields(section: str) -> dict[str, dict[str, Any]]:
    """The keys that a job may set under `training` or `lora`: name -> JSON schema, with this package's default."""
    parts = (_section_of_training() if section == "training" else _section_of_lora())["properties"]
    return {name: field for name, field in parts.items() if "not" not in field}


def refused_fields(section: str) -> dict[str, str]:
    """The fields of the library that a job may not set under `training` or `lora`: name -> what to do instead."""
    return training.refusals() if section == "training" else lora.refusals()


def library_remark(section: str, name: str) -> LibraryRemark | None:
    """The library's default and help for a key of `training` or `lora`; None where the key is this package's own."""
    return (training.training_remarks() if section == "training" else lora.lora_remarks()).get(name)


@functools.cache
def _section_of_training() -> dict[str, Any]:
    """The schema of `training:`. Where this package's defaults differ from transformers', they are those of a job that
    evaluates.
    """
    here = {key: value for key, value in TrainJob.model_validate(_ANY_JOB).arguments().items() if key not in _OF_OTHERS}
    fields = _fields(training.training_fields(), training.training_remarks(), training.refusals(), here)
    for name in training.MAY_BE_AUTO:
        fields[name] = {"anyOf": [fields[name], {"const": "auto"}], **_default_of(fields[name])}
    fields[training.PROFILE_STEPS] = {
        "type": "integer",
        "minimum": 0,
        "maximum": training.MOST_PROFILED,
        "default": 0,
        "description": "Number of steps of the first rank that torch's profiler records, from the fourth on.",
    }
    fields[training.VERIFY_EVERY] = {
        "type": "integer",
        "minimum": 0,
        "maximum": training.MOST_BETWEEN,
        "default": 0,
        "description": "Every so many steps gradients are computed twice, weights and moments verified; 0: never.",
    }
    return _section(fields)


@functools.cache
def _section_of_lora() -> dict[str, Any]:
    fields = _fields(lora.lora_fields(), lora.lora_remarks(), lora.refusals(), {})
    fields["init_lora_weights"]["anyOf"].append({"type": "string", "pattern": f"^{lora.PISSA.pattern}$"})
    fields[lora.MERGE] |= {
        "default": False,
        "description": "`model/` becomes the base model with the adapter merged in, not the adapter alone.",
    }
    return _section(fields)


def _fields(
    types: dict[str, TypeAdapter[Any]], remarks: dict[str, LibraryRemark], refused: dict[str, str], here: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    found = {}
    for name, kind in types.items():
        if name in refused:
            found[name] = {"not": {}, "description": f"Not set here. {refused[name]}"}
            continue
        default = here.get(name, remarks[name].default if name in remarks else None)
        found[name] = _in_order(kind.json_schema()) | ({} if default is None else {"default": default})
    return found


_ORDER = ("string", "integer", "number", "boolean", "array", "object", "null")


def _in_order(schema: Any) -> Any:
    """A schema with its alternatives in a fixed order. `typing` caches unions, so that a union has the order of the
    first equal one that was made.
    """
    if isinstance(schema, list):
        return [_in_order(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _in_order(value) for key, value in schema.items()}
    if alternatives := schema.get("anyOf"):
        rank = {name: number for number, name in enumerate(_ORDER)}
        schema["anyOf"] = sorted(alternatives, key=lambda part: rank.get(part.get("type", ""), -1))
    return schema


def _section(fields: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(sorted(fields.items())), "additionalProperties": False}


def _default_of(field: dict[str, Any]) -> dict[str, Any]:
    return {"default": field.pop("default")} if "default" in field else {}


def _without_titles(node: Any) -> Any:
    """The schema without the titles that pydantic derives from names, and without line breaks in descriptions."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str) and "$schema" not in node:
            continue
        found[key] = (
            " ".join(value.split()) if key == "description" and isinstance(value, str) else _without_titles(value)
        )
    return found
