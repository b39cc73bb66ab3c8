"""The reference of a job file's keys for people: name, type, default and meaning of each, read from the JSON schema."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from raytrain_nlp.config.reference.job_schema import build_job_schema, library_remark, refused_fields

LIBRARY_SECTIONS = {"training": "transformers.TrainingArguments", "lora": "peft.LoraConfig"}
"""Section -> the library's class whose fields are its keys."""
_FEW = 6
"""Number of values up to which a short type lists them."""
_TAG = re.compile(r"<[^<>]+>")
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class Key:
    """A key of a job file, or a field of a library that a job may not set."""

    name: str
    """Dotted key, as `--set` takes it."""
    type: str
    """The type in words, with every value of a choice; "section" where there are keys below this one."""
    brief: str
    """The type in words, with the number of values where a choice has many."""
    default: str | None
    """The default as YAML; "" where there is none or the text describes it; None where the key is required."""
    text: str
    of: str = ""
    """The value of `type:` that the key belongs to; "" where it belongs to all."""
    refused: bool = False
    """Is this a field of the library that a job may not set? `text` then says what to do instead."""

    @property
    def section(self) -> str:
        """The part of the name before the last dot; the name itself for a top-level key."""
        return self.name.rpartition(".")[0] or self.name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@functools.cache
def list_keys(kind: str = "train") -> tuple[Key, ...]:
    """All keys of a job file of `train` or `sweep`, in the order of the models; refused ones come last in their
    section.
    """
    return tuple(_Walk(build_job_schema()["$defs"]).keys("SweepJob" if kind == "sweep" else "TrainJob"))


def sweep_keys() -> list[Key]:
    """The keys of a sweep's job file, without those of sections that a run's job file has too."""
    names = {key.name for key in list_keys()}
    return [key for key in list_keys("sweep") if key.name not in names or "." not in key.name]


def find_keys(name: str) -> list[Key]:
    """The keys that a name stands for; empty where there are none.

    Args:
        name: a key or section, found with the keys below it; a key without its section; a value of `type:`, found with
            the keys that belong to it; or `sweep`.
    """
    if name == "sweep":
        return sweep_keys()
    names = {key.name for key in list_keys()}
    known = [*list_keys(), *(key for key in sweep_keys() if key.name not in names)]
    below = [key for key in known if key.name == name or key.name.startswith(f"{name}.")]
    return (
        below
        or [key for key in known if key.of == name]
        or [key for key in known if key.name.endswith((f".{name}", f"[].{name}"))]
    )


def type_words(node: dict[str, Any], few: int = _FEW) -> str:
    """The type that a JSON schema describes, in words.

    Args:
        few: number of values up to which a choice lists them instead of counting them.
    """
    if "const" in node:
        return _plain(node["const"])
    if "enum" in node:
        values = [_plain(value) for value in node["enum"]]
        return " | ".join(values) if len(values) <= few else f"one of {len(values)} names"
    if options := node.get("anyOf") or node.get("oneOf"):
        return " or ".join(dict.fromkeys(type_words(option, few) for option in options if option.get("type") != "null"))
    if "$ref" in node:
        return "section"
    kind = node.get("type")
    if kind == "array":
        if "prefixItems" in node:
            return f"[{', '.join(type_words(item, few) for item in node['prefixItems'])}]"
        return f"list of {type_words(node['items'], few)}" if node.get("items") else "list"
    if kind == "object":
        values_of = node.get("additionalProperties")
        return f"mapping to {type_words(values_of, few)}" if isinstance(values_of, dict) and values_of else "mapping"
    if isinstance(kind, list):
        return " or ".join(_TYPES[name] for name in kind)
    return f"{_TYPES[kind]}{_range_words(node)}" if kind else "any value"


def _range_words(node: dict[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    parts = [f"from {low:,}" if low is not None else "", f"above {above:,}" if above is not None else ""]
    parts += [f"to {high:,}" if high is not None else "", f"below {below:,}" if below is not None else ""]
    return "".join(f" {part}" for part in parts if part)


def _plain(value: Any) -> str:
    """A value as it is written in YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return text.replace("'", "") if isinstance(value, str) else text


class _Walk:
    """Walks through the properties of a schema and the sections within, each section once."""

    def __init__(self, definitions: dict[str, Any]):
        self._definitions = definitions
        self._seen: set[str] = set()

    def keys(self, model: str, before: str = "", of: str = "") -> Iterator[Key]:
        schema = self._definitions[model]
        for name, node in schema["properties"].items():
            if of and name == "type":
                continue
            yield from self._key(f"{before}{name}", node, name in schema.get("required", ()), of)

    def _key(self, name: str, node: dict[str, Any], required: bool, of: str) -> Iterator[Key]:
        inner = list(self._sections(node))
        text = node.get("description") or next((self._definitions[one]["description"] for one in inner), "")
        is_section = any("$ref" in option for option in [node, *node.get("anyOf", node.get("oneOf", []))])
        default = None if required else "" if is_section and inner else _default(node, text)
        if name in LIBRARY_SECTIONS:
            yield Key(name, "section", "section", "", text, of)
            yield from _library_keys(name, node)
            return
        if "discriminator" in node:
            yield Key(name, "section", "section", default, text, of)
            mapping = {kind: ref.rpartition("/")[2] for kind, ref in node["discriminator"]["mapping"].items()}
            described = " ".join(f"{kind}: {self._definitions[one]['description']}" for kind, one in mapping.items())
            start = node.get("default", {}).get("type")
            yield Key(f"{name}.type", kinds := " | ".join(mapping), kinds, start, described)
            for kind, one in mapping.items():
                yield from self.keys(one, f"{name}.", kind)
            return
        yield Key(name, *_types(node), default, text, of)
        for one in inner:
            if one not in self._seen and one not in ("TrainJob",):
                self._seen.add(one)
                yield from self.keys(one, f"{name}{_step_to(node)}.", of)

    def _sections(self, node: dict[str, Any]) -> Iterator[str]:
        """Names of the sections that a key may hold: directly, in a list, or as values of a mapping."""
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for part in ("anyOf", "oneOf"):
            for option in node.get(part, ()):
                yield from self._sections(option)
        for part in ("items", "additionalProperties"):
            if isinstance(node.get(part), dict):
                yield from self._sections(node[part])


def _types(node: dict[str, Any]) -> tuple[str, str]:
    return type_words(node, 10**6), type_words(node)


def _step_to(node: dict[str, Any]) -> str:
    """What stands in a dotted name between a key and the keys of sections in it: "[]" for a list, ".KEY" for a
    mapping.
    """
    if "items" in node:
        return "[]"
    return ".KEY" if isinstance(node.get("additionalProperties"), dict) else ""


def _default(node: dict[str, Any], text: str) -> str:
    value = node.get("default")
    if value is None:
        return "" if "efault" in text else "none"
    if value in ([], {}, ""):
        return "none"
    return _plain(value)


def _library_keys(section: str, node: dict[str, Any]) -> Iterator[Key]:
    parts = next(part for part in [node, *node.get("anyOf", ())] if "properties" in part)["properties"]
    refused = refused_fields(section)
    for name, field in parts.items():
        if name not in refused:
            remark = library_remark(section, name)
            text = field.get("description") or (remark.help if remark else "")
            default = "" if remark and not remark.settled and "default" not in field else _default(field, "")
            yield Key(f"{section}.{name}", *_types(field), default, _TAG.sub("", text))
    for name, todo in refused.items():
        yield Key(f"{section}.{name}", "refused", "refused", "", todo, refused=True)
