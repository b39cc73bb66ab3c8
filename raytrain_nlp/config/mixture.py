"""Mixtures: `data.train` as several sources, `data.mixture`, and the checks of both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import Field, field_validator

from raytrain_nlp.config.base import Section
from raytrain_nlp.errors import Problem, nearest

_AMOUNTS = ("weight", "rows", "epochs")
_STORED = re.compile(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather|txt|text|conll|bio|gz))+$", re.IGNORECASE)


class DataSource(Section):
    """One source of a mixture. `weight`, `rows` or `epochs` says how much of it is seen; all sources use the same one
    of these. Without any, and without `data.mixture`, each row of every source is seen once an epoch.
    """

    path: str | list[str]
    """A file, a list of files, or any other form of a `train` that is one source."""
    name: str | None = None
    """Name of the source in `data.mixture` and in messages. Default: the name of its file, or of the folder of a glob.
    """
    weight: float | None = Field(None, gt=0)
    """Its share of each global batch, relative to the weights of the other sources. An epoch then has as many rows as
    all sources have together."""
    rows: int | None = Field(None, ge=1)
    """Number of its rows in each epoch. The next epoch takes other rows, until all have been seen."""
    epochs: float | None = Field(None, gt=0, le=10_000)
    """How often each of its rows is seen in one epoch, e.g. 3; 0.5: every other row."""

    @field_validator("path")
    @classmethod
    def _names_something(cls, value: str | list[str]) -> str | list[str]:
        if not value or not all(value):
            raise ValueError("is empty || Name a file, folder, glob or hub dataset.")
        return value

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def label(self) -> str:
        """`name`, or where it is not set, the name of the first file or folder."""
        parts = (re.sub(r"\W+", "_", _STORED.sub("", part)).strip("_") for part in re.split(r"[/\\]", self.paths[0]))
        return self.name or [*filter(None, ["source", *parts])][-1]


class Stage(Section):
    """One stage of a curriculum, with shares of its own."""

    until_step: int | None = Field(None, ge=1)
    """The stage ends when training has done this many optimizer updates, counted from its beginning. The last stage has
    none: it lasts until training ends."""
    weights: dict[str, float]
    """Name of a source -> its share. A source that is not named is not seen in this stage."""


class MixtureConfig(Section):
    """The shares of the sources in `data.train`, where the sources do not give them themselves."""

    temperature: float | None = Field(None, gt=0)
    """Shares in proportion to rows ** (1 / temperature): 1 keeps the proportions of the rows, a larger value makes the
    shares more equal."""
    weights: dict[str, float] = {}
    """Name of a source -> its share, as the source's own `weight`. These keys can be set by `--set` and searched by a
    sweep."""
    curriculum: list[Stage] = []
    """Stages with different shares, one after another. Needs training.max_steps; the whole training is then one epoch
    of the plan."""


def check_mixture(
    sources: list[DataSource], mixture: MixtureConfig, others: Mapping[str, tuple[object, str]]
) -> Iterator[Problem]:
    """The contradictions in a mixture.

    Args:
        others: the keys of `data` that a mixture excludes -> their values, and what to do instead.
    """
    names = [source.label for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield Problem("data.train", f"has two sources named {', '.join(twice)}", "Give each a `name` of its own.")
    given = [key for key in _AMOUNTS if any(getattr(source, key) is not None for source in sources)]
    given += [f"data.mixture.{key}" for key in mixture.model_fields_set if getattr(mixture, key)]
    if len(given) > 1:
        yield Problem("data.train", f"has {' and '.join(given)}, each of which says how much is seen", "Keep one.")
    elif given and given[0] in _AMOUNTS:
        without = [source.label for source in sources if getattr(source, given[0]) is None]
        if without:
            what = f"has no {given[0]} for {', '.join(without)}"
            yield Problem("data.train", what, f"Give each source its {given[0]}.")
    for key, (value, todo) in others.items():
        if value:
            yield Problem(f"data.{key}", "is not for several sources with shares", todo)
    yield from _check_weights("data.mixture.weights", mixture.weights, names, whole=True)
    yield from _check_curriculum(mixture.curriculum, names)


def check_steps(mixture: MixtureConfig, max_steps: int) -> list[Problem]:
    """A problem where training would end before the last stage of the curriculum begins.

    Args:
        max_steps: of `TrainingArguments`; not positive where the number of epochs decides.
    """
    last = max((stage.until_step or 0 for stage in mixture.curriculum), default=0)
    if not mixture.curriculum or max_steps > last:
        return []
    what = f"has no step left for its last stage (max_steps {max_steps})" if max_steps > 0 else "needs max_steps"
    return [Problem("data.mixture.curriculum", what, f"Set training.max_steps above {last}.")]


def _check_weights(where: str, weights: dict[str, float], names: list[str], whole: bool = False) -> Iterator[Problem]:
    for name, weight in weights.items():
        if name not in names:
            yield Problem(where, f"no source is named '{name}'", nearest(name, names) or f"Names: {', '.join(names)}.")
        if weight < 0:
            yield Problem(f"{where}.{name}", f"is negative ({weight:g})", "Use 0 or more.")
    if weights and not sum(max(weight, 0) for weight in weights.values()):
        yield Problem(where, "are all 0", "Give one source a share.")
    without = [name for name in names if weights.get(name, 0) <= 0]
    if whole and weights and without:
        yield Problem(where, f"has no share for {', '.join(without)}", "Give it one, or remove it from data.train.")


def _check_curriculum(stages: list[Stage], names: list[str]) -> Iterator[Problem]:
    last = 0
    for number, stage in enumerate(stages):
        where = f"data.mixture.curriculum.{number}"
        if not stage.weights:
            yield Problem(f"{where}.weights", "is empty", f"Give shares to some of {', '.join(names)}.")
        yield from _check_weights(f"{where}.weights", stage.weights, names)
        if (stage.until_step is None) != (number == len(stages) - 1):
            what = "is missing" if stage.until_step is None else "is not for the last stage"
            yield Problem(f"{where}.until_step", what, "Each stage but the last ends at a step.")
        elif stage.until_step is not None and stage.until_step <= last:
            yield Problem(f"{where}.until_step", f"is not after the one before ({stage.until_step})", "Raise it.")
        last = stage.until_step or last
