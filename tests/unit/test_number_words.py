"""Number words against pairs written by hand, and the rows made of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from raytrain_nlp.data.builtin.number_words import LARGEST, english, german, number_rows

PAIRS = [
    (0, "zero", "null"),
    (1, "one", "eins"),
    (7, "seven", "sieben"),
    (11, "eleven", "elf"),
    (12, "twelve", "zwölf"),
    (16, "sixteen", "sechzehn"),
    (17, "seventeen", "siebzehn"),
    (20, "twenty", "zwanzig"),
    (21, "twenty-one", "einundzwanzig"),
    (30, "thirty", "dreißig"),
    (34, "thirty-four", "vierunddreißig"),
    (67, "sixty-seven", "siebenundsechzig"),
    (70, "seventy", "siebzig"),
    (99, "ninety-nine", "neunundneunzig"),
    (100, "one hundred", "einhundert"),
    (101, "one hundred and one", "einhunderteins"),
    (110, "one hundred and ten", "einhundertzehn"),
    (111, "one hundred and eleven", "einhundertelf"),
    (200, "two hundred", "zweihundert"),
    (212, "two hundred and twelve", "zweihundertzwölf"),
    (221, "two hundred and twenty-one", "zweihunderteinundzwanzig"),
    (312, "three hundred and twelve", "dreihundertzwölf"),
    (616, "six hundred and sixteen", "sechshundertsechzehn"),
    (999, "nine hundred and ninety-nine", "neunhundertneunundneunzig"),
    (1000, "one thousand", "eintausend"),
    (1001, "one thousand and one", "eintausendeins"),
    (1100, "one thousand one hundred", "eintausendeinhundert"),
    (1101, "one thousand one hundred and one", "eintausendeinhunderteins"),
    (2345, "two thousand three hundred and forty-five", "zweitausenddreihundertfünfundvierzig"),
    (10_000, "ten thousand", "zehntausend"),
    (17_070, "seventeen thousand and seventy", "siebzehntausendsiebzig"),
    (21_000, "twenty-one thousand", "einundzwanzigtausend"),
    (100_000, "one hundred thousand", "einhunderttausend"),
    (100_100, "one hundred thousand one hundred", "einhunderttausendeinhundert"),
    (101_101, "one hundred and one thousand one hundred and one", "einhunderteintausendeinhunderteins"),
    (
        999_999,
        "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
    ),
    (1_000_000, "one million", "eine Million"),
    (1_000_001, "one million and one", "eine Million eins"),
    (2_000_000, "two million", "zwei Millionen"),
    (2_012_000, "two million twelve thousand", "zwei Millionen zwölftausend"),
    (21_000_312, "twenty-one million three hundred and twelve", "einundzwanzig Millionen dreihundertzwölf"),
    (31_001_100, "thirty-one million one thousand one hundred", "einunddreißig Millionen eintausendeinhundert"),
]


Splits = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return number_rows()


@pytest.mark.parametrize(("number", "in_english", "in_german"), PAIRS)
def test_number_words(number: int, in_english: str, in_german: str) -> None:
    assert (english(number), german(number)) == (in_english, in_german)


def test_no_two_numbers_have_the_same_words() -> None:
    numbers = [*range(12_000), *range(99_900, 101_200), *range(999_000, 1_002_000), LARGEST]
    assert (
        len({english(number) for number in numbers}) == len({german(number) for number in numbers}) == len(set(numbers))
    )


def test_rows_are_lists_of_all_sizes(splits: Splits) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 12_000, "validation": 400}
    numbers = {english(number): number for number in range(10_000)}
    words = {german(number): number for number in range(10_000)}
    digits: dict[str, Counter[int]] = {}
    for split, rows in splits.items():
        lists = [[numbers[word] for word in row["translation"]["en"].split(", ")] for row in rows]
        assert [[words[word] for word in row["translation"]["de"].split(", ")] for row in rows] == lists
        assert {len(found) for found in lists} == {1, 2, 3, 4} and len(set(map(tuple, lists))) == len(lists)
        digits[split] = Counter(len(str(number)) for found in lists for number in found)
        assert all(0.2 < digits[split][count] / digits[split].total() < 0.3 for count in (1, 2, 3, 4))


def test_validation_numbers_are_new(splits: Splits) -> None:
    short = {german(number) for number in range(100)}
    seen = {
        split: {word for row in rows for word in row["translation"]["de"].split(", ")} - short
        for split, rows in splits.items()
    }
    assert len(seen["validation"]) > 300 and not seen["train"] & seen["validation"]


def test_rows_are_the_same_every_time(splits: Splits) -> None:
    assert number_rows() == splits
    assert splits["train"][0] == {
        "translation": {
            "en": "three thousand and ten, eight thousand and seven",
            "de": "dreitausendzehn, achttausendsieben",
        }
    }
