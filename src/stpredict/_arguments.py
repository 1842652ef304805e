"""Validation of the arguments of public functions: types, ranges, and what to do about a wrong one.

The annotations of a function say the types. The name of an argument says its range and the way out of a mistake, for a
name means the same wherever it occurs.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from stpredict._schema import Named, Range, fits, shown, spelled, with_article

_SIZE, _UM, _ANY, _SOME, _SHARE = (1e-3, 1e3), (1e-3, 1e9), (0, 2**40), (1, 2**40), (0.0, 1.0)
FAR = 1e9  # an upper limit that no one means
LIMITS: Mapping[str, Range] = {
    "mpp": _SIZE, "encoder_mpp": _SIZE, "patch_px": (1, 8192),
    "raster_mpp": (1e-3, 1e5), "diameter_um": _UM, "pitch_um": _UM, "spot_diameter_um": _UM,
    "margin_um": (0.0, 1e7), "batch_size": (1, 10**9), "max_epochs": (1, 10**9), "lr": (1e-30, 1e6),
    "devices": (1, 10**6), "num_nodes": (1, 10**6), "seed": (0, 2**32 - 1), "n_genes": _SOME, "n_top": _SOME,
    "n_splits": (1, 10**6), "n_draws": (1, 10**9), "min_counts": (0.0, 1e12),
    "area_um2": (0.0, 1e12), "min_spots": _ANY, "alpha": _SHARE,
    "resolution": (1e-6, 1e6), "n_neighbors": (2, 10**6), "digits": (0, 20), "timeout_s": (1e-3, 1e6),
    "max_retries": (0, 1000), "temperature": (0.0, 100.0), "level": _SHARE, "max_tokens": (1, 10**6), "val": _SHARE,
}  # fmt: skip
WAYS: Mapping[str, str] = {
    "sdata": "Open a store with spatialdata.read_zarr(path).",
    "sdatas": "Open stores with spatialdata.read_zarr(path), and pass a list of sections.",
    "model": "stp.models.list_models() names the shipped ones; stp.models.load reads a folder.",
    "genes": "Pass a list of gene names, such as ['GNAS', 'FASN'].",
    "mpp": "It is the micrometres of a pixel: .25 at 40x, .5 at 20x.",
    "result": "Pass the frame that stp.tl.benchmark returned.",
    "members": "It is a list of models, such as [PixNet(panel, seed=k) for k in range(3)].",
    "models": "It is {name: function of the panel}, such as {'Ridge': stp.models.Ridge}.",
    "seeds": "It is a list of seeds, such as [0, 1].",
    "config": "There are 'small' and 'published', and configurations of the class that the model names.",
    "client": "Make one with dask.distributed.Client(...).",
    "embeddings": "Pass what stp.tl.embed_genes returned, or the file it wrote.",
}
# texts that must not be empty, beside those whose names end with _key, _added or _name
KEYS = ("key", "path", "layer", "gene", "name", "measured", "metric", "section", "name_or_path", "model", "encoder")
_FREE = {"Any", "ArrayLike", "NDArray", "Target", "Explicit", "Matching"}  # what the function itself looks at


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError for the first argument that is not what the function declares, by its name.

    Parameters
    ----------
    given : Mapping[str, Any]
        The arguments by name: `locals()` in the first line of the function.
    """
    for name, hint in _hints(function).items():
        if name in given:
            _check(name, given[name], hint)


def _check(name: str, value: Any, hint: Any) -> None:
    way = f" {WAYS[name]}" if name in WAYS else ""
    if not fits(value, hint):
        if isinstance(value, str) and fits([value], hint):
            way = f" Pass [{shown(value)}]."
        raise ValueError(f"{name}={_said(value)} must be {spelled(hint)}.{way}")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"{name} is a masked array of which {np.ma.count_masked(value)} values are masked, and masks are not read "
            f"here. Drop these rows, or pass {name}.filled(np.nan) where NaN is allowed."
        )
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{name}={_said(value)} holds a null character.{way}")
    if isinstance(value, str) and not value and (name in KEYS or name.endswith(("_key", "_added", "_name"))):
        raise ValueError(f"{name} is an empty text; it must be {spelled(hint)}.{way}")
    limit = LIMITS.get(name)
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if limit is not None and number and not limit[0] <= float(value) <= limit[1]:
        rule = f"be at least {limit[0]:g}" if limit[1] >= FAR else f"lie in [{limit[0]:g}, {limit[1]:g}]"
        raise ValueError(f"{name}={_said(value)} must {rule}.{way}")


class _Names(Mapping[str, Any]):
    """The names of a module, and a `Named` for each that is there for type checkers alone."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        self.module = module

    def __getitem__(self, name: str) -> Any:
        if name in self.module:
            return self.module[name]
        return getattr(builtins, name, None) or getattr(collections.abc, name, None) or Named(name, free=name in _FREE)

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


def _said(value: Any) -> str:
    """A value for a message: numbers, texts and short lists as they are, of anything else its class."""
    if value is None or isinstance(value, bool | int | float | str | np.number | Path):
        return shown(value)
    if isinstance(value, list | tuple | set | dict):
        if all(each is None or isinstance(each, bool | int | float | str) for each in value):
            return shown(value)
        return f"{with_article(type(value).__name__)} of {', '.join(sorted({type(each).__name__ for each in value}))}"
    return with_article(type(value).__name__)
