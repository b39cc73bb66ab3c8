"""`data:`: the files that rows come from, how rows are shortened and filtered, and how they are batched."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from raytrain_nlp.config.base import HIDDEN, Contradictions, Section
from raytrain_nlp.config.mixture import DataSource, MixtureConfig, check_mixture
from raytrain_nlp.errors import Problem

Source = str | list[str]
_PLAIN, _SOURCES = f"{HIDDEN}source", f"{HIDDEN}sources"
_SET = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)


def _kind(value: Any) -> str:
    mixed = isinstance(value, list) and any(isinstance(part, (dict, DataSource)) for part in value)
    return _SOURCES if mixed else _PLAIN


class DataConfig(Section):
    """The rows, and how they are batched. A file's suffix tells its format: .jsonl .json .csv .tsv .parquet .arrow .txt
    .conll .conllu .bio (also with .gz).
    """

    train: Annotated[Annotated[Source, Tag(_PLAIN)] | Annotated[list[DataSource], Tag(_SOURCES)], Discriminator(_kind)]
    """Training rows: a file, a glob, a folder (also one of `datasets.save_to_disk`), FOLDER:SPLIT, s3://..., gs://...,
    hf://dataset/config:split, or a list of these. Built-in data, made without a download: builtin:docstrings (text,
    label), builtin:docstrings/modules (text, label), builtin:docstrings/summaries (text, summary),
    builtin:docstrings/endings (context, ending0 to ending3, label), builtin:facts (question, context, answers),
    builtin:names (tokens, ner_tags), builtin:numbers (translation: en, de), builtin:numbers/preferences (prompt,
    chosen, rejected), builtin:python-docs (text). For a mixture of several sources: a list of mappings with `path` and
    how much of it is seen (`weight`, `rows` or `epochs`)."""
    mixture: MixtureConfig = MixtureConfig()
    validation: Source | dict[str, Source] | None = None
    """Validation rows, in the same forms as `train`, except for a mixture; without them nothing is evaluated. Several
    sets are written as {name: source}: each is evaluated by itself, and its figures are called eval_NAME_loss and so
    on."""
    max_length: int = Field(128, ge=2, le=1_000_000)
    """Tokens that a row is truncated to, special tokens included. Default for question answering: 384."""
    streaming: bool = False
    """Prepare the training rows in windows of up to 256 MB while training goes on, for data that take too long to
    prepare first. Rows are shuffled within a window. Needs training.max_steps, as a `datasets` stream does."""
    max_train_rows: int | None = Field(None, ge=1)
    """Use only the first so many training rows, not counting bad ones."""
    max_validation_rows: int | None = Field(None, ge=1)
    """Use only the first so many validation rows, not counting bad ones."""
    drop_duplicates: bool = False
    """Leave out training rows that are copies of earlier ones, and those whose text is in a validation row. They are
    counted, and listed in quarantine.jsonl. `check` counts them in any case."""
    max_bad_rows: float = Field(0.01, ge=0.0)
    """The run ends with an error where more rows than this are bad; below 1 a share of all rows, from 1 on a number of
    rows. Bad rows are listed in quarantine.jsonl and not trained on."""
    global_batch_size: int | None = Field(None, ge=1)
    """Rows of one optimizer update, over all workers. Default: per_device_train_batch_size x
    gradient_accumulation_steps x num_workers. Where it is set, batches are the same with any number of workers."""
    batch_tokens: int | None = Field(None, ge=8)
    """Padded tokens (rows x longest row) that one optimizer update may have at most, over all workers; takes the place
    of a number of rows."""
    feed_cpus_per_worker: float = Field(0.5, gt=0, le=64)
    """Logical CPUs that Ray Data may use to fetch and pad the batches of each worker."""

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _named(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, dict) and info.field_name == "train":
            raise ValueError("is a mapping || Write several sources as a list: - {path: a.jsonl, weight: 3}.")
        if isinstance(value, dict):
            if not value or not all(isinstance(name, str) and _SET.fullmatch(name) for name in value):
                raise ValueError(
                    "needs a name of letters, digits and _ for each set || Write e.g. {matched: a.jsonl, mismatched: "
                    "b.jsonl}."
                )
            return {name: cls._named(source, info) for name, source in value.items()}
        if _kind(value) == _SOURCES and isinstance(value, list):
            if info.field_name == "validation":
                raise ValueError("has sources with keys || Write several sets as {name: file}.")
            if wrong := [part for part in value if not isinstance(part, (dict, DataSource))]:
                raise ValueError(f"has a source without its keys ({wrong[0]!r}) || Write - {{path: {wrong[0]}}}.")
            return value
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("should be a name or a list of names || Name files, folders, globs or hub datasets.")
        if value is not None and not (names and all(names)):
            raise ValueError("is empty || Name a file, folder, glob or hub dataset.")
        return value

    def train_sources(self) -> list[DataSource]:
        """The sources of a mixture; empty where `train` is one source."""
        return [part for part in self.train if isinstance(part, DataSource)]

    def validation_sets(self) -> dict[str, Source]:
        """The validation sets by name. A single set, which has no name, has the key ""."""
        return (
            self.validation
            if isinstance(self.validation, dict)
            else {}
            if self.validation is None
            else {"": self.validation}
        )

    def source_of(self, split: str) -> Source | list[DataSource] | None:
        """The source of a split: `train`, `validation`, or a validation set as `validation.NAME`."""
        name = split.partition(".")[2]
        return self.validation_sets()[name] if name else getattr(self, split)

    @model_validator(mode="after")
    def _one_batch_policy(self) -> DataConfig:
        if self.global_batch_size and self.batch_tokens:
            raise ValueError("global_batch_size and batch_tokens exclude each other || Keep one.")
        return self

    @model_validator(mode="after")
    def _mixture_agrees(self) -> DataConfig:
        sources = self.train_sources()
        excluded: dict[str, tuple[object, str]] = {
            "streaming": (self.streaming, "Remove it: all rows are then prepared first."),
            "batch_tokens": (self.batch_tokens, "Use data.global_batch_size."),
            "max_train_rows": (self.max_train_rows, "Give each source its `rows`."),
        }
        if sources and (problems := list(check_mixture(sources, self.mixture, excluded))):
            raise Contradictions(problems)
        if not sources and self.mixture != MixtureConfig():
            what = "is for several sources"
            todo = "Write data.train as a list of {path: ..., name: ...}."
            raise Contradictions([Problem("data.mixture", what, todo)])
        return self


def sources_of(value: Source | list[DataSource] | dict[str, Source] | None) -> list[str]:
    """All files and names in a value of `train:` or `validation:`, as one flat list."""
    if isinstance(value, dict):
        return [source for part in value.values() for source in sources_of(part)]
    if isinstance(value, list):
        return [path for part in value for path in (part.paths if isinstance(part, DataSource) else [part])]
    return [] if value is None else [value]
