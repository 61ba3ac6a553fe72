"""Frozen dataclasses that cost little to make, for values that are made in every step.

A frozen dataclass sets each of its fields through `object.__setattr__`, which is most of what it costs to make one
with many fields. Here `__init__` gives the new object all of them at once, as its dictionary.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, dataclass_transform

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True)
def value(cls: Class) -> Class:
    """`dataclass(frozen=True)` for a class whose fields have plain defaults, without `__post_init__`."""
    made: Any = dataclass(frozen=True)(cls)
    defaults = {}
    for field in fields(made):
        assert field.init and field.default_factory is MISSING and not hasattr(made, "__post_init__"), field
        if field.default is not MISSING:
            defaults[field.name] = field.default
    names = [field.name for field in fields(made)]
    parameters = ", ".join(f"{name}=defaults[{name!r}]" if name in defaults else name for name in names)
    text = f"def __init__(self, {parameters}): fill(self, '__dict__', {{{', '.join(f'{n!r}: {n}' for n in names)}}})"
    space: dict[str, Any] = {}
    exec(text, {"defaults": defaults, "fill": object.__setattr__}, space)  # as dataclass itself does
    space["__init__"].__qualname__ = f"{made.__qualname__}.__init__"
    space["__init__"].__annotations__ = made.__init__.__annotations__
    made.__init__ = space["__init__"]
    return made
