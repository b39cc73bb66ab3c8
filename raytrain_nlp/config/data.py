"""`data:`: where rows come from, how they are batched."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section

Source = str | list[str]
_SET = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)


class DataConfig(Section):
    """Rows in, batches out. Formats follow the file suffix: .jsonl .json .csv .tsv .parquet .arrow .txt (also .gz)."""

    train: Source
    """File, glob, folder (of `datasets.save_to_disk`, too), FOLDER:SPLIT, list of them, s3://..., gs://...,
    hf://dataset/config:split; or data made on the spot: builtin:docstrings (text, label), builtin:docstrings/summaries
    (text, summary), builtin:docstrings/endings (context, ending0 to ending3, label), builtin:numbers (translation: en,
    de), builtin:python-docs (text)."""
    validation: Source | dict[str, Source] | None = None
    """Same forms as `train`; without it nothing is evaluated. Several sets as {name: source}: each is scored apart, and
    its figures are eval_NAME_loss and so on."""
    max_length: int = Field(128, ge=2, le=1_000_000)
    """Tokens a row is truncated to, special tokens included."""
    streaming: bool = False
    """Prepare training data in windows while training goes on, for data too large to wait for: shuffled within windows
    of up to 256 MB; needs training.max_steps, as a `datasets` stream does."""
    max_train_rows: int | None = Field(None, ge=1)
    """Use only the first so many good training rows."""
    max_validation_rows: int | None = Field(None, ge=1)
    """Use only the first so many good validation rows."""
    max_bad_rows: float = Field(0.01, ge=0.0)
    """Rows that may go to quarantine before the run ends: below 1 a share of all rows, from 1 on a number."""
    global_batch_size: int | None = Field(None, ge=1)
    """Rows of one optimizer update on all workers together. Default: per_device_train_batch_size x
    gradient_accumulation_steps x num_workers. Set it to see the same batches at any number of workers."""
    batch_tokens: int | None = Field(None, ge=8)
    """Instead of a number of rows: padded tokens (rows x longest row) one optimizer update may have."""
    feed_cpus_per_worker: float = Field(0.5, gt=0, le=64)
    """Logical CPUs Ray Data may use for each worker's feed (fetching and padding)."""

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, dict):
            if not value or not all(isinstance(name, str) and _SET.fullmatch(name) for name in value):
                raise ValueError(
                    "needs a name of letters, digits and _ for each set || Write e.g. {matched: a.jsonl, mismatched: "
                    "b.jsonl}."
                )
            return {name: cls._named(source) for name, source in value.items()}
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("should be a name or a list of names || Name files, folders, globs or hub datasets.")
        if value is not None and not (names and all(names)):
            raise ValueError("is empty || Name a file, folder, glob or hub dataset.")
        return value

    def validation_sets(self) -> dict[str, Source]:
        """The validation sets by name; one without a name has the name ""."""
        return (
            self.validation
            if isinstance(self.validation, dict)
            else {}
            if self.validation is None
            else {"": self.validation}
        )

    def source_of(self, split: str) -> Source | None:
        """Of `train`, `validation`, or a set named `validation.NAME`."""
        name = split.partition(".")[2]
        return self.validation_sets()[name] if name else getattr(self, split)

    @model_validator(mode="after")
    def _one_batch_policy(self) -> DataConfig:
        if self.global_batch_size and self.batch_tokens:
            raise ValueError("global_batch_size and batch_tokens exclude each other || Keep one.")
        return self


def sources_of(value: Source | dict[str, Source] | None) -> list[str]:
    """A `train:` or `validation:` value as a list; of several sets those of all."""
    if isinstance(value, dict):
        return [source for part in value.values() for source in sources_of(part)]
    return [] if value is None else [value] if isinstance(value, str) else list(value)
