"""The programming tasks: functions with a description, fixed acceptance tests and a small grammar of possible bodies.

The grammar is what lets dummy weights take part: a body is one alternative of every slot, joined, so that every
choice is valid Python and the tests alone decide whether it is right. With a real model (`--free`) it is not used.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    name: str
    parameters: str
    description: str
    tests: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...]

    def bodies(self) -> list[str]:
        """Every body that the grammar spells, each one line of Python without indentation."""
        return ["".join(parts) for parts in itertools.product(*self.slots)]

    @property
    def signature(self) -> str:
        return f"def {self.name}({self.parameters}):"

    def source(self, body: str) -> str:
        return f'{self.signature}\n    """{self.description}"""\n    {body}\n'

    def test_source(self) -> str:
        lines = "\n".join(f"    assert {test}" for test in self.tests)
        return f"from {self.name} import {self.name}\n\n\ndef test_{self.name}():\n{lines}\n"


@dataclass(frozen=True)
class Task:
    title: str
    functions: tuple[Function, ...]


CLAMP = Function(
    "clamp", "value, low, high", "Limit value to the range from low to high, both included.",
    ("clamp(5, 0, 3) == 3", "clamp(-1, 0, 3) == 0", "clamp(2, 0, 3) == 2"),
    (("return ",), ("min", "max"), ("(low, ",), ("min", "max"), ("(value, high))",)))
MEAN = Function(
    "mean", "values", "The arithmetic mean of the numbers in values; 0 for an empty list.",
    ("mean([2, 4]) == 3", "mean([]) == 0", "mean([1, 2]) == 1.5"),
    (("return sum(values) ",), ("* ", "/ ", "// "), ("max(1, len(values))",)))
LAST_WORD = Function(
    "last_word", "text", "The last word of text, in lower case.",
    ('last_word("Hello New World") == "world"', 'last_word("One") == "one"'),
    (("return text.split()[",), ("0", "-1"), ("].",), ("upper", "lower"), ("()",)))
PRICE = Function(
    "price_with_tax", "price, percent", "The price increased by a tax of the given percent.",
    ("price_with_tax(200, 10) == 220", "price_with_tax(50, 0) == 50"),
    (("return price ",), ("+", "-", "*"), (" price * percent / 100",)))
IS_LEAP = Function(
    "is_leap", "year", "Whether year is a leap year of the Gregorian calendar.",
    ("is_leap(2024)", "not is_leap(1900)", "is_leap(2000)", "not is_leap(2023)"),
    (("return year % 4 == 0 ",), ("and", "or"), (" (year % 100 ",), ("==", "!="), (" 0 or year % 400 == 0)",)))
OVERLAP = Function(
    "overlap", "a, b", "The length that the closed ranges a and b, pairs of numbers, have in common.",
    ("overlap((0, 4), (2, 9)) == 2", "overlap((0, 1), (5, 6)) == 0"),
    (("return max(0, ",), ("min", "max"), ("(a[1], b[1]) - ",), ("min", "max"), ("(a[0], b[0]))",)))
INITIALS = Function(
    "initials", "name", "The first letters of the words of name, joined by points.",
    ('initials("ada lovelace") == "a.l"',),
    (("return ",), ("''", "'.'"), (".join(word[",), ("0", "-1"), ("] for word in name.split())",)))
MEDIAN = Function(
    "median_of_three", "a, b, c", "The middle one of three numbers.",
    ("median_of_three(3, 1, 2) == 2", "median_of_three(5, 5, 1) == 5"),
    (("return sorted([a, b, c])[",), ("0", "1", "2"), ("]",)))

TASKS = (
    Task("a small number library", (CLAMP, MEAN, MEDIAN)),
    Task("helpers for an invoice", (PRICE, LAST_WORD, INITIALS)),
    Task("helpers for a calendar", (IS_LEAP, OVERLAP, CLAMP)),
    Task("helpers for a report", (MEAN, INITIALS, OVERLAP)),
    Task("helpers for a price list", (MEDIAN, PRICE, LAST_WORD)),
)


def task(seed: int, number: int) -> Task:
    """The task of application `number` in a run with this seed."""
    return TASKS[(seed * 2 + number) % len(TASKS)]


def one_of(alternatives: list[str]) -> str:
    """A regular expression that spells exactly these texts."""
    return "(" + "|".join(re.escape(text).replace(r"\ ", " ") for text in alternatives) + ")"


def wanted(job: Task) -> str:
    return "\n".join(f"- {f.signature} {f.description} Examples: {'; '.join(f.tests)}" for f in job.functions)
