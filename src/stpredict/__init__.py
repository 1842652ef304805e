"""Spatially resolved gene expression from H&E images, inside the scverse ecosystem.

Everything is reached through namespaces (``stp.tl``, ``stp.models``, ...) that are imported when they are first used:
``import stpredict`` itself loads neither torch nor SpatialData.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from stpredict._caches import clear_all

if TYPE_CHECKING:
    from stpredict import datasets as datasets
    from stpredict import io as io
    from stpredict import metrics as metrics
    from stpredict import models as models
    from stpredict import nn as nn
    from stpredict import pl as pl
    from stpredict import pp as pp
    from stpredict import tables as tables
    from stpredict import tl as tl
    from stpredict._section import Section as Section

    __version__: str

__all__ = [
    "Section", "__version__", "clear_caches", "datasets", "io", "metrics", "models", "nn", "pl", "pp", "tables", "tl",
]  # fmt: skip

logging.getLogger("stpredict").addHandler(logging.NullHandler())


def clear_caches() -> dict[str, int | None]:
    """Let go of what this process keeps from one call to the next, such as features of frozen encoders.

    Results stay the same, and the next calls take longer. What lies on disk is not touched.

    Returns
    -------
    dict of str to int or None
        The bytes that each cache held by its name; None where they are not known. Caches of modules that were not used
        are not among them.

    Examples
    --------
    >>> held = stp.clear_caches()
    >>> isinstance(held, dict)
    True
    """
    return clear_all()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("stpredict")
    if name == "Section":
        return importlib.import_module("stpredict._section").Section
    if name in __all__:
        return importlib.import_module(f"stpredict.{name}")
    raise AttributeError(f"module 'stpredict' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
