"""Facts about a model that need no weights: how many tokens its rows may have, and which inputs its forward reads. They
come from its config and from the source code of its family.

The source is read as text, because importing it would take the driver seconds before the job is known to be valid.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.tasks.base import Lengths

_TABLES = re.compile(
    r"nn\.Embedding\(\s*config\.(?:max_position_embeddings|n_positions|max_encoder_position_embeddings)\b"
    r"|class \w*Position\w*\(nn\.Embedding\)"
    r"|\bcreate_sinusoidal_positions\("
)
"""A table with a row for each position."""
_GROWS = re.compile(r"make_weight")
"""A table that is made anew where a row is longer."""
_OFFSET = re.compile(r"create_position_ids_from_input_ids|padding_idx \+ 1")
"""Positions begin behind the number of the padding token, as in RoBERTa."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts about one model with the head of one task."""

    positions: int | None = None
    """Tokens a row may have at most: the model has a table of positions; None: it has none."""
    target_positions: int | None = None
    """The same of what the decoder of an encoder-decoder reads."""
    token_types: bool = True
    """Does it tell the two texts of a pair apart by `token_type_ids`?"""
    ends: int | None = None
    """Id of the token at whose last position the head reads the hidden state, as BART's classification head does with
    `</s>`: all rows of a batch must have equally many. None: the head reads another position.
    """

    def fitted(self, lengths: Lengths) -> Lengths:
        """`lengths`, limited to what the model's position tables allow."""
        return Lengths(_least(lengths.source, self.positions), _least(lengths.target, self.target_positions), self.ends)


def find_facts(config: Any, head: str | None) -> ModelFacts:
    """Facts of a `transformers` config; `head`: name of the class that does the task, or None where it is unknown."""
    source = family_source(config)
    positions, target = find_positions(config, source)
    counts = head is not None and bool(
        re.search(rf"^class {head}\(.*?\beos_mask\b.*?(?=^class |\Z)", _class_source(source, head), re.S | re.M)
    )
    return ModelFacts(
        positions, target, _reads_token_types(config, source), getattr(config, "eos_token_id", None) if counts else None
    )


def find_positions(config: Any, source: str | None = None) -> tuple[int | None, int | None]:
    """Tokens a row, and a target, may have at most; None where nothing limits them."""
    source = family_source(config) if source is None else source
    if not _TABLES.search(source) or _GROWS.search(source) or getattr(config, "position_biased_input", True) is False:
        return None, None
    rows = _first(config, "max_encoder_position_embeddings", "n_positions", "max_position_embeddings")
    if rows is None:
        return None, None
    if _OFFSET.search(source):
        constant = re.search(r"self\.padding_idx = (\d+)", source)
        rows -= (int(constant[1]) if constant else getattr(config, "pad_token_id", None) or 0) + 1
    return rows, _first(config, "max_decoder_position_embeddings") or rows


def fit_generation(arguments: Any, config: Any) -> None:
    """Let evaluation generate no more tokens than the decoder has positions."""
    _, positions = find_positions(config)
    if positions is not None and (asked := getattr(arguments, "generation_max_length", None)):
        arguments.generation_max_length = min(asked, positions)


def family_source(config: Any) -> str:
    """The text of the modeling files of a config's family; empty for code that came with a model."""
    package = type(config).__module__.rpartition(".")[0]
    return _read_family(package) if package.startswith("transformers.models.") else ""


@functools.cache
def _read_family(package: str) -> str:
    root = importlib.util.find_spec("transformers")
    if root is None or not root.submodule_search_locations:
        return ""
    folder = Path(root.submodule_search_locations[0]).joinpath(*package.split(".")[1:])
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("modeling_*.py")))


def _class_source(source: str, name: str) -> str:
    found = re.search(rf"^class {name}\(.*?(?=^class |\Z)", source, re.S | re.M)
    return found[0] if found else ""


def _reads_token_types(config: Any, source: str) -> bool:
    kinds = getattr(config, "type_vocab_size", None)
    return kinds > 1 if isinstance(kinds, int) else not source or "token_type_ids" in source


def _first(config: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _least(first: int | None, second: int | None) -> int | None:
    return min(first, second) if first is not None and second is not None else first
