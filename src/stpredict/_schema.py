"""Strict reading of untrusted JSON, and checks of values against declared types and ranges.

Everything here raises ValueError that names the field, and nothing else, whatever it is given.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

LARGEST_JSON = 2**25  # bytes; the card of 20,000 genes has 2 MB
DEEPEST_JSON = 50  # levels: a card of an ensemble has seven, and Python follows some hundreds when it copies one
LONGEST_TEXT = 2**20  # characters of one string

Range = tuple[float, float]  # smallest and largest value


def parse_json(text: str | bytes, what: str) -> Any:
    """What a JSON text says; ValueError naming `what` for broken, deep or ambiguous ones and numbers without a value.

    Refused beside broken syntax: keys that occur twice, NaN and infinite numbers, and nesting beyond `DEEPEST_JSON`.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{what} has {len(text)} bytes, more than the {LARGEST_JSON} that JSON may have here.")
    try:
        found = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{what} is not JSON that can be read: it is nested too deep.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of its kind
        raise ValueError(f"{what} is not JSON: {error}.") from error
    level = [found]
    for _ in range(DEEPEST_JSON):
        level = [each for held in level if isinstance(held, dict | list) for each in _inside(held)]
    if level:
        raise ValueError(f"{what} is not JSON that can be read: it is nested too deep.")
    return found


def _inside(held: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return held.values() if isinstance(held, dict) else held


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is beyond what a float can hold")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(duplicate)} occurs twice")
    return found


def check_fields(values: Mapping[str, Any], kind: type, limits: Mapping[str, Range]) -> None:
    """Raise ValueError for the first field of `values` that is not what the dataclass `kind` declares.

    Parameters
    ----------
    limits : Mapping[str, Range]
        Smallest and largest value by the name of a field; of a field that holds several, for each of them. Floats must
        be finite, whatever the limits.
    """
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in values:
            check_value(field.name, values[field.name], hints[field.name], limits.get(field.name))


def check_value(name: str, value: Any, hint: Any, limit: Range | None = None) -> None:
    """Raise ValueError where `value` is not of the type `hint`, or lies outside `limit`."""
    if not fits(value, hint):
        raise ValueError(f"{name}={shown(value)} must be {spelled(hint)}.")
    numbers: Any = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for number in numbers:
        if limit is not None and isinstance(number, Real) and not limit[0] <= float(number) <= limit[1]:
            each = "" if number is value else "each value of it "
            raise ValueError(f"{name}={shown(value)}: {each}must lie in [{limit[0]:g}, {limit[1]:g}].")


class Named:
    """A class that is known by its name alone, so that nothing is imported to look at a value."""

    def __init__(self, name: str, *, free: bool = False) -> None:
        self.name, self.free = name, free

    def __getattr__(self, name: str) -> Named:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name)

    def __getitem__(self, _: Any) -> Named:
        return self

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - of objects that are no types

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def __call__(self) -> None:
        """Typing takes what can be called for a type."""

    def holds(self, value: Any) -> bool:
        """Whether the value is of a class of this name, or of one made from it; anything is where it is `free`."""
        return self.free or any(each.__name__ == self.name for each in type(value).__mro__)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: plain kinds, classes and names of them, and what typing makes of these."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, Named):
        return hint.holds(value)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(_is_a(value, type(each)) and value == each for each in inner)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(kinds) == len(value) and all(map(fits, value, kinds))
    if origin is Callable:
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is not None and issubclass(origin, Iterable):
        return _is_list(value, ordered=issubclass(origin, Sequence)) and (
            not isinstance(value, Collection) or all(fits(each, inner[0]) for each in value)
        )
    return hint is Any or _is_a(value, hint)


def _is_list(value: Any, *, ordered: bool) -> bool:
    """Whether the value holds several; `ordered`: in an order of their own, as arrays and columns of pandas do."""
    if isinstance(value, str | bytes | Mapping):
        return False
    if isinstance(value, Sequence) or Named("Index").holds(value) or Named("Series").holds(value):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return not ordered and isinstance(value, Iterable) and not Named("DataFrame").holds(value)


def _is_a(value: Any, kind: Any) -> bool:
    if kind in (None, type(None)):
        return value is None
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT and not _is_broken(value)
    if isinstance(value, bool):
        return kind is object
    if kind is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if kind is float:
        return isinstance(value, Real) and _is_finite(value)
    return isinstance(value, kind)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _is_broken(text: str) -> bool:
    """Whether a text holds half a character (a lone surrogate), which no file can keep."""
    return any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else False


def spelled(hint: Any) -> str:
    """A type in words: "an integer or None"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spelled(each) for each in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner)) if len(inner) > 1 else repr(inner[0])
    if origin is tuple and inner[1:] != (...,):
        return f"a list of {len(inner)}: {', '.join(spelled(each) for each in inner)}"
    if origin is Callable:
        return "a function"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping of names" if inner[1] is Any else f"a mapping of names, each to {spelled(inner[1])}"
    if origin is not None:
        return f"a list, each of it {spelled(inner[0])}"
    words = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false", type(None): "None"}
    name = hint.name if isinstance(hint, Named) else getattr(hint, "__name__", str(hint))
    return words.get(hint, "a path" if hint is Path else with_article(name))


def with_article(name: str) -> str:
    """A name after "a" or "an"."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, cut where it is long or deep."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
