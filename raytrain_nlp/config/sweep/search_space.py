"""`search_space:`: the values that may be tried for each dotted key of a job, and how a point of the space becomes a
job.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section

Point = dict[str, Any]
"""Dotted key -> value, for each key that is searched and active."""
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_FORMS = ("choice", "grid", "uniform", "loguniform", "quniform", "integer", "randint", "multiply")


class SearchKey(Section):
    """The values that are tried for one key, in exactly one of the forms below; `when` may restrict the key to some
    points.
    """

    choice: list[Any] | None = Field(None, min_length=1)
    """One of these values."""
    grid: list[Any] | None = Field(None, min_length=1)
    """Each of these values, with each value of the other keys; for searcher `grid`."""
    uniform: tuple[float, float] | None = None
    """[low, high]: a number between both."""
    loguniform: tuple[float, float] | None = None
    """[low, high]: a number between both whose logarithm is evenly distributed."""
    quniform: tuple[float, float, float] | None = None
    """[low, high, q]: low plus a multiple of q, up to high."""
    integer: tuple[int, int] | None = Field(None, alias="int")
    """[low, high]: a whole number, both ends included."""
    randint: tuple[int, int] | None = None
    """[low, high]: a whole number, high excluded, as in Ray Tune."""
    multiply: tuple[str, float] | None = None
    """[other key, factor]: the other key's value times the factor. Such a key is not searched by itself."""
    when: dict[str, Any] = {}
    """Other searched key -> one value or a list of values. Where the other key has none of these, this key is not
    searched and keeps the job's own value."""

    @field_validator("choice", "grid")
    @classmethod
    def _numbers(cls, values: list[Any] | None) -> list[Any] | None:
        """Convert texts such as `1e-5`, which YAML does not read as numbers."""
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
        """Both ends of a range, included; None for a list of values or a tie."""
        if self.randint:
            return self.randint[0], self.randint[1] - 1
        ends = self.uniform or self.loguniform or self.quniform or self.integer
        return (ends[0], ends[1]) if ends else None

    @property
    def choices(self) -> list[Any] | None:
        """The values of `choice` or `grid`; None for a range or a tie."""
        return self.choice or self.grid

    @property
    def searched(self) -> bool:
        """False where `multiply` ties the key to another."""
        return self.multiply is None

    def ends(self) -> list[Any]:
        """All values of a list, or both ends of a range: the values with which the job's sections are validated."""
        return list(self.choices or self.bounds or ())

    def steps(self) -> list[Any] | None:
        """All values, where their number is finite; otherwise None."""
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
    """The searched keys, each after the keys that its condition names. Raises `ValueError`, `KEY: what is wrong`, for a
    condition that names another key or itself.
    """
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
    """Does the condition of a key hold at this point, so that the key is searched?"""
    return all(
        other in point and point[other] in (wanted if isinstance(wanted, list) else [wanted])
        for other, wanted in entry.when.items()
    )


def grid_points(space: SearchSpace) -> Iterator[Point]:
    """Every point of a finite space once; the last key varies fastest."""
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
    """For each key and each of its ends: the key, that value, and a point with that value and whatever the key's
    condition needs.
    """
    for key in ordered(space):
        for value in space[key].ends():
            yield key, value, {key: value, **_conditions(space, key)}


def apply_point(values: Mapping[str, Any], space: SearchSpace, point: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job's sections with the values of a point, and those tied to them."""
    job = copy.deepcopy(dict(values))
    for key, value in point.items():
        _put(job, key, value)
    for key, entry in space.items():
        if entry.multiply:
            _put(job, key, tie(job, point, entry.multiply))
    return job


def tie(job: Mapping[str, Any], point: Mapping[str, Any], multiply: tuple[str, float]) -> float | int | None:
    """The value of a key that `multiply` ties to another: the other key's value times the factor. None where that is no
    number.
    """
    other, factor = multiply
    value = point.get(other, _get(job, other))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    product = value * factor
    return int(product) if isinstance(value, int) and product == int(product) else product


def _conditions(space: SearchSpace, key: str) -> Point:
    """Values of other keys with which `key` is active."""
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
