"""What users are told beside results: warnings that point at their own line, and log lines that do not repeat."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stpredict import _caches

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

_OWN = (f"{Path(__file__).parent}{os.sep}", str(contextlib.__file__))

_objects: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_stores: dict[str, set[str]] = {}


class UnreadableFile(OSError, ValueError):
    """A file that cannot be read as what its name says; the message names it and says what to do."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the package, however deep inside it the cause was found."""
    warnings.warn(message, category, skip_file_prefixes=_OWN)


def say_once(sdata: SpatialData, text: str, *values: object) -> None:
    """Log at level INFO what was not said of this object (or its store) before, else at DEBUG."""
    said = _stores.setdefault(str(sdata.path), set()) if sdata.path is not None else _objects.setdefault(sdata, set())
    line = text % values
    logger.log(logging.DEBUG if line in said else logging.INFO, "%s", line)
    said.add(line)


def _forget() -> None:
    _objects.clear()
    _stores.clear()


_caches.register("what was said of sections", _forget)
