"""Objects and stores: what a verb is given, as SpatialData objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict._spatialdata._store._checkpoint import recover

if TYPE_CHECKING:
    from spatialdata import SpatialData


def opened(sdata: SpatialData | str | Path) -> SpatialData:
    """The object, read from its store where a path is given.

    Raises FileNotFoundError for a path where nothing is, ValueError for what is no store.
    """
    if not isinstance(sdata, str | Path):
        return sdata
    from spatialdata import read_zarr

    if not Path(sdata).exists():
        raise FileNotFoundError(f"there is no store {str(sdata)!r}.")
    recover(Path(sdata))
    try:
        return read_zarr(sdata)
    except MemoryError:
        raise
    except Exception as error:  # zarr, anndata and spatialdata each have their own
        raise ValueError(f"{str(sdata)!r} cannot be read as a SpatialData store: {error}") from error


def all_opened(
    sdatas: SpatialData | str | Path | Sequence[SpatialData | str | Path], argument: str = "sdatas"
) -> list[SpatialData]:
    """One or several objects or paths of stores as a list of objects. Raises as `opened`, and ValueError for none."""
    if isinstance(sdatas, str) or not isinstance(sdatas, Sequence):
        return [opened(sdatas)]
    if not sdatas:
        raise ValueError(f"{argument} is an empty list: give at least one section.")
    return [opened(each) for each in sdatas]
