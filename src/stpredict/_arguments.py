"""What the arguments of public functions may be, checked in one place before any work.

The annotations of a function say the types. The name of an argument says its range and the way out of a mistake, for a
name means the same wherever it occurs.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from stpredict._schema import Range, is_a, shown, spelled

SEEDS: Range = (0, 2**32 - 1)
_SIZE, _UM, _ANY, _SOME, _SHARE = (1e-3, 1e3), (1e-3, 1e9), (0, 2**40), (1, 2**40), (0.0, 1.0)
FAR = 1e9  # an upper limit that no one means
LIMITS: Mapping[str, Range] = {
    "mpp": _SIZE, "raster_mpp": (1e-3, 1e5), "diameter_um": _UM, "pitch_um": _UM, "spot_diameter_um": _UM,
    "margin_um": (0.0, 1e7), "batch_size": (1, 10**9), "max_epochs": (1, 10**9), "lr": (1e-30, 1e6),
    "devices": (1, 10**6), "num_nodes": (1, 10**6), "seed": SEEDS, "n_genes": _SOME, "n_top": _SOME,
    "n_splits": (1, 10**6), "n_draws": (1, 10**9), "min_counts": (0.0, 1e12), "min_spots": _ANY, "alpha": _SHARE,
    "resolution": (1e-6, 1e6), "n_neighbors": (2, 10**6), "digits": (0, 20), "timeout_s": (1e-3, 1e6),
    "max_retries": (0, 1000), "temperature": (0.0, 100.0), "max_tokens": (1, 10**6), "val": _SHARE,
}  # fmt: skip
WAYS: Mapping[str, str] = {
    "sdata": "Open a store with spatialdata.read_zarr(path).",
    "sdatas": "Open stores with spatialdata.read_zarr(path), and pass a list of sections.",
    "model": "stp.models.list_models() names the shipped ones; stp.models.load reads a folder.",
    "genes": "Pass a list of gene names, such as ['GNAS', 'FASN'].",
    "mpp": "It is the micrometres of a pixel: .25 at 40x, .5 at 20x.",
    "result": "Pass the frame that stp.tl.benchmark returned.",
    "models": "It is {name: function of the panel}, such as {'Ridge': stp.models.Ridge}.",
    "seeds": "It is a list of seeds, such as [0, 1].",
    "config": "There are 'small' and 'published', and configurations of the class that the model names.",
    "client": "Make one with dask.distributed.Client(...).",
    "embeddings": "Pass what stp.tl.embed_genes returned, or the file it wrote.",
}
KEYS = ("key", "layer", "gene", "name", "measured", "metric", "section", "name_or_path", "model", "encoder")
_FREE = {"Any", "ArrayLike", "NDArray", "Target", "Explicit", "Matching"}  # what the function itself looks at


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError for the first argument that is not what the function declares, by its name.

    given
        The arguments by name: `locals()` in the first line of the function.
    """
    for name, hint in _hints(function).items():
        if name in given:
            _check(name, given[name], hint)


def _check(name: str, value: Any, hint: Any) -> None:
    way = f" {WAYS[name]}" if name in WAYS else ""
    if not _fits(value, hint):
        if isinstance(value, str) and _fits([value], hint):
            way = f" Pass [{shown(value)}]."
        raise ValueError(f"{name}={_said(value)} must be {_spelled(hint)}.{way}")
    if isinstance(value, str) and not value and (name in KEYS or name.endswith(("_key", "_added", "_name"))):
        raise ValueError(f"{name} is an empty text; it must be {_spelled(hint)}.{way}")
    limit = LIMITS.get(name)
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if limit is not None and number and not limit[0] <= float(value) <= limit[1]:
        rule = f"be at least {limit[0]:g}" if limit[1] >= FAR else f"lie in [{limit[0]:g}, {limit[1]:g}]"
        raise ValueError(f"{name}={_said(value)} must {rule}.{way}")


class Named:
    """A class that is known by its name alone, so that nothing is imported to look at an argument."""

    def __init__(self, name: str) -> None:
        self.name = name

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
        """Whether the value is of a class of this name, or of one made from it."""
        return self.name in _FREE or any(each.__name__ == self.name for each in type(value).__mro__)


class _Names(Mapping[str, Any]):
    """The names of a module, and a `Named` for each that is there for type checkers alone."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        self.module = module

    def __getitem__(self, name: str) -> Any:
        if name in self.module:
            return self.module[name]
        return getattr(builtins, name, None) or getattr(collections.abc, name, None) or Named(name)

    def __iter__(self) -> Any:
        return iter(self.module)

    def __len__(self) -> int:
        return len(self.module)


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    names = _Names(inspect.unwrap(function).__globals__)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.annotation, str):
            found[name] = eval(parameter.annotation, {}, names)
    return found


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, Named):
        return hint.holds(value)
    if hint is None or hint is type(None):
        return value is None
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, tuple({type(each) for each in inner})) and value in inner
    if hint is Path:
        return isinstance(value, Path)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if origin is tuple:
        kinds = inner[:1] * len(value) if isinstance(value, tuple | list) and inner[1:] == (...,) else inner
        return isinstance(value, tuple | list) and len(kinds) == len(value) and all(map(_fits, value, kinds))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin is collections.abc.Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return _is_list(value, ordered=issubclass(origin, Sequence)) and (
            not isinstance(value, Collection) or all(_fits(each, inner[0]) for each in value)
        )
    return is_a(value, hint)


def _is_list(value: Any, *, ordered: bool) -> bool:
    """Whether the value holds several; `ordered`: in an order of their own, as arrays and columns of pandas do."""
    if isinstance(value, str | bytes | Mapping):
        return False
    if isinstance(value, Sequence) or Named("Index").holds(value) or Named("Series").holds(value):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return not ordered and isinstance(value, Iterable) and not Named("DataFrame").holds(value)


def _spelled(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, Named):
        return f"{'an' if hint.name[0] in 'AEIOU' else 'a'} {hint.name}"
    if origin in (Union, types.UnionType):
        return " or ".join(_spelled(each) for each in inner)
    if hint is Path:
        return "a path"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping, each value of it {_spelled(inner[1])}"
    if origin is collections.abc.Callable:
        return "a function"
    if origin is tuple:
        parts = [_spelled(each) for each in inner if each is not ...]
        return f"a list of {len(parts)}: {', '.join(parts)}" if ... not in inner else f"a list, each of it {parts[0]}"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a list, each of it {_spelled(inner[0])}"
    return spelled(hint)


def _said(value: Any) -> str:
    """A value for a message: numbers, texts and short lists as they are, of anything else its class."""
    if value is None or isinstance(value, bool | int | float | str | np.number | Path):
        return shown(value)
    if isinstance(value, list | tuple | set | dict):
        if all(each is None or isinstance(each, bool | int | float | str) for each in value):
            return shown(value)
        return f"a {type(value).__name__} of {', '.join(sorted({type(each).__name__ for each in value}))}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
