"""`search_space:`: what may be tried for each dotted key of the job, and how a point of the space becomes a job."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section

Point = dict[str, Any]
"""Dotted key -> value of the keys that are searched and active."""
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_FORMS = ("choice", "grid", "uniform", "loguniform", "quniform", "integer", "randint", "multiply")


class SearchKey(Section):
    """What is tried for one key: exactly one form, and perhaps the condition under which the key is searched at all."""

    choice: list[Any] | None = Field(None, min_length=1)
    """One of these."""
    grid: list[Any] | None = Field(None, min_length=1)
    """Each of these with each value of the other keys; for searcher `grid`."""
    uniform: tuple[float, float] | None = None
    """[low, high]."""
    loguniform: tuple[float, float] | None = None
    """[low, high], evenly over the orders of magnitude."""
    quniform: tuple[float, float, float] | None = None
    """[low, high, q]: multiples of q above low."""
    integer: tuple[int, int] | None = Field(None, alias="int")
    """[low, high]: whole numbers, both ends included."""
    randint: tuple[int, int] | None = None
    """[low, high]: whole numbers, high excluded, as in Ray Tune."""
    multiply: tuple[str, float] | None = None
    """[other key, factor]: a tie, not searched: the other key's value times the factor."""
    when: dict[str, Any] = {}
    """Searched only where the other searched keys have one of these values; else the job's own value stays."""

    @field_validator("choice", "grid")
    @classmethod
    def _numbers(cls, values: list[Any] | None) -> list[Any] | None:
        """YAML reads `1e-5` as text."""
        return values and [
            float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value for value in values
        ]

    @model_validator(mode="after")
    def _one_form(self) -> SearchKey:
        given = [_written(name) for name in _FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {' and '.join(given) or 'no form'} || Give one of {', '.join(map(_written, _FORMS))}."
            )
        if bounds := self.bounds:
            low, high = bounds
            if low >= high:
                raise ValueError(
                    f"the lower end is not below the upper one ({low:g} and {high:g}) || Swap or correct them."
                )
            if self.loguniform and low <= 0:
                raise ValueError(f"loguniform needs a lower end above 0 ({low:g}) || Correct it.")
        if self.quniform and self.quniform[2] <= 0:
            raise ValueError("quniform needs a step above 0 || Correct it.")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of a range, both included."""
        if self.randint:
            return self.randint[0], self.randint[1] - 1
        ends = self.uniform or self.loguniform or self.quniform or self.integer
        return (ends[0], ends[1]) if ends else None

    @property
    def choices(self) -> list[Any] | None:
        return self.choice or self.grid

    @property
    def searched(self) -> bool:
        """False for a tie."""
        return self.multiply is None

    def ends(self) -> list[Any]:
        """Each choice, or both ends of the range: what the job's types are checked with."""
        return list(self.choices or self.bounds or ())

    def steps(self) -> list[Any] | None:
        """All values, where they are finite in number."""
        if self.choices:
            return list(self.choices)
        if self.bounds and (self.integer or self.randint):
            low, high = self.bounds
            return list(range(int(low), int(high) + 1))
        if self.quniform:
            low, high, step = self.quniform
            return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
        return None


SearchSpace = dict[str, SearchKey]


def ordered(space: SearchSpace) -> list[str]:
    """Searched keys, each after those its condition names. Raises `ValueError` with what is wrong with a condition."""
    order: list[str] = []
    waiting = [key for key, entry in space.items() if entry.searched]
    for key in waiting:
        for other in space[key].when:
            if other not in waiting or other == key:
                raise ValueError(f"{key}: `when` names {other}, which is not another searched key")
    while waiting:
        ready = [key for key in waiting if all(other in order for other in space[key].when)]
        if not ready:
            raise ValueError(f"{waiting[0]}: its conditions go round in a circle")
        order += ready
        waiting = [key for key in waiting if key not in ready]
    return order


def is_active(entry: SearchKey, point: Mapping[str, Any]) -> bool:
    """Is the key searched at this point?"""
    return all(
        other in point and point[other] in (wanted if isinstance(wanted, list) else [wanted])
        for other, wanted in entry.when.items()
    )


def grid_points(space: SearchSpace) -> Iterator[Point]:
    """Every point of a finite space once, in the order of its keys."""
    seen = []
    keys = ordered(space)
    for values in itertools.product(*(space[key].steps() or [] for key in keys)):
        point: Point = {}
        for key, value in zip(keys, values, strict=True):
            if is_active(space[key], point):
                point[key] = value
        if point not in seen:
            seen.append(point)
            yield point


def probe_points(space: SearchSpace) -> Iterator[tuple[str, Any, Point]]:
    """For each key and each of its ends a point that has it, and else only what its condition needs: key, value,
    point.
    """
    for key in ordered(space):
        for value in space[key].ends():
            yield key, value, {key: value, **_conditions(space, key)}


def apply_point(values: Mapping[str, Any], space: SearchSpace, point: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a job with a point of the space put in, ties included."""
    job = copy.deepcopy(dict(values))
    for key, value in point.items():
        _put(job, key, value)
    for key, entry in space.items():
        if entry.multiply:
            _put(job, key, tie(job, point, entry.multiply))
    return job


def tie(job: Mapping[str, Any], point: Mapping[str, Any], multiply: tuple[str, float]) -> float | int | None:
    """The tied value; None where the other key has no number."""
    other, factor = multiply
    value = point.get(other, _get(job, other))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    product = value * factor
    return int(product) if isinstance(value, int) and product == int(product) else product


def _conditions(space: SearchSpace, key: str) -> Point:
    """Values of other keys under which `key` is active."""
    found: Point = {}
    for other, wanted in space[key].when.items():
        found |= {other: wanted[0] if isinstance(wanted, list) else wanted, **_conditions(space, other)}
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[last] = value


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _written(name: str) -> str:
    return "int" if name == "integer" else name
