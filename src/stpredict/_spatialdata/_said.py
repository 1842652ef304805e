"""Log each message about an object or store once at level INFO; repeats go to DEBUG."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stpredict import _caches

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

_objects: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_stores: dict[str, set[str]] = {}


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
