"""What a program holds in a dry run where a real run has generated text or a tool's result."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NoReturn

_MARK = re.compile("\ue000(.*?)\ue001")
_SAME = (  # what these return is as unknown; a list that they would give can be passed on and not be looked into
    "strip", "lstrip", "rstrip", "lower", "upper", "casefold", "title", "capitalize", "expandtabs", "split", "rsplit",
    "splitlines", "removeprefix", "removesuffix", "replace", "translate", "zfill")
_ASKS = (
    "__bool__", "__len__", "__iter__", "__contains__", "__getitem__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__",
    "__ge__", "__hash__", "__int__", "__float__", "__index__", "__bytes__", "startswith", "endswith", "partition",
    "rpartition", "find", "rfind", "index", "rindex", "count", "encode", "isdigit", "isnumeric", "isdecimal", "isalpha",
    "isalnum", "isspace", "isupper", "islower", "keys", "values", "items", "get")


class Undecided(BaseException):
    """The program asked what an unknown value is. Not an Exception, so that no `except` of the program hides it."""

    def __init__(self, unknown: Any, how: str):
        super().__init__(f"{unknown.what} was asked with {how}")
        self.unknown, self.how = unknown, how


class Unknown:
    """A value that only a real run has. `what` describes it, `steps` are the nodes that it comes from."""

    what: str
    steps: tuple[str, ...]

    def __format__(self, _spec: str) -> str:
        return marked(self.steps)

    def __str__(self) -> str:
        return UnknownText(self.what, self.steps)

    def __repr__(self) -> str:
        return f"<{self.what}>"


class UnknownText(str):
    """`str(unknown)`: may be put into other texts, as a plain str that still shows where it comes from."""

    what: str
    steps: tuple[str, ...]

    def __new__(cls, what: str, steps: tuple[str, ...]) -> UnknownText:
        text = super().__new__(cls, marked(steps))
        text.what, text.steps = what, steps
        return text

    def __str__(self) -> str:
        return self

    def __format__(self, _spec: str) -> str:
        return marked(self.steps)


def marked(steps: Iterable[str]) -> str:
    return "".join(f"\ue000{step}\ue001" for step in steps)


def steps_in(value: Any) -> list[str]:
    """The nodes that a value comes from: of an unknown, of a text that contains some, of the items of a container."""
    if isinstance(value, Unknown):
        return list(value.steps)
    if isinstance(value, str):
        return _MARK.findall(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [step for item in value for step in steps_in(item)]
    return []


def _ask(name: str) -> Any:
    def asked(self: Any, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise Undecided(self, name)

    return asked


def _same(self: Any, *_args: Any, **_kwargs: Any) -> Any:
    return self


for _class in (Unknown, UnknownText):
    for _name in _ASKS:
        setattr(_class, _name, _ask(_name))
    for _name in _SAME:
        setattr(_class, _name, _same)
