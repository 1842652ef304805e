"""New shapes in an object and, where it is backed, in its store: both or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpredict._sdata._store import Journal, check_element_key, open_store
from stpredict._sdata._store_element import write_aside

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData


def add_shapes(sdata: SpatialData, key: str, element: GeoDataFrame) -> None:
    """Put a shapes element, parsed by ShapesModel, under a name that is free.

    Raises ValueError for a name that is taken or cannot be kept apart. Where anything raises, nothing has changed.
    """
    check_element_key(sdata, key, kind="shapes", overwrite=False)
    store = open_store(sdata)
    with Journal(store) as journal:
        if store is not None and journal.folder is not None:
            built, group = journal.folder / "built", store.path / "shapes"
            write_aside(built, shapes={key: element})
            if store.has("shapes"):
                journal.move(built / "shapes" / key, group / key)
            else:  # a group is only seen with its own zarr.json
                journal.move_out(group)
                journal.move(built / "shapes", group)
            journal.rewrite(store.path / "zarr.json", sdata.write_consolidated_metadata)
        sdata.shapes[key] = element
