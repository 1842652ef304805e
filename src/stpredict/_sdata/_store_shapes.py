"""New shapes in an object and, where it is backed, in its store: both or neither."""

from __future__ import annotations

from contextlib import nullcontext
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
    with nullcontext() if store is None else store.locked(), Journal(store) as journal:
        if store is not None and journal.folder is not None:
            check_element_key(sdata, key, kind="shapes", overwrite=False)  # another process may have been faster
            write_aside(journal.folder / "built", shapes={key: element})
            plan = journal.plan()
            plan.put("shapes", key, journal.folder / "built")
            plan.describe(store.meta()["attributes"])
            journal.carry_out(plan)
        sdata.shapes[key] = element
