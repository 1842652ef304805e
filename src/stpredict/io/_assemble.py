"""Build the SpatialData object that all readers return: image, circles, table, coordinate systems."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from stpredict.io._image import coordinate_systems, image_element
from stpredict.io._pixels import Pixels

ARRAY_COLUMNS = ("array_row", "array_col")


def assemble(
    table: AnnData, spot_table: pd.DataFrame, pixels: Pixels, *, mpp: float, spot_diameter_um: float, name: str
) -> SpatialData:
    """One section as SpatialData: images["image"], shapes["spots"], tables["table"], attrs["name"].

    Parameters
    ----------
    table : AnnData
        Raw counts, rows as in `spot_table`.
    spot_table : DataFrame
        Index = spot ids; x_px, y_px (pixels of the finest level); array_row and array_col where there is a grid.
    mpp, spot_diameter_um : float
        Scale of the finest level and diameter of a spot.
    """
    return SpatialData(
        images={"image": image_element(pixels.levels, mpp=mpp)},
        shapes={"spots": _circles(spot_table, mpp=mpp, radius=spot_diameter_um / mpp / 2)},
        tables={"table": _annotate(table, spot_table)},
        attrs={"name": name},
    )


def check_on_image(spot_table: pd.DataFrame, shape: tuple[int, int], source: str) -> None:
    """Raise ValueError where no spot's centre lies on an image of `shape` (height, width)."""
    height, width = shape
    x, y = spot_table["x_px"], spot_table["y_px"]
    if not ((x >= 0) & (y >= 0) & (x < width) & (y < height)).any():
        raise ValueError(
            f"all {len(spot_table)} spots of {source} lie off the image of {width} x {height} px: x {x.min():.0f} to "
            f"{x.max():.0f}, y {y.min():.0f} to {y.max():.0f}. Positions must be in pixels of this image."
        )


def _circles(spot_table: pd.DataFrame, *, mpp: float, radius: float) -> GeoDataFrame:
    xy = spot_table[["x_px", "y_px"]].to_numpy()
    systems = coordinate_systems(mpp)
    return ShapesModel.parse(xy, geometry=0, radius=radius, index=spot_table.index, transformations=systems)


def _annotate(table: AnnData, spot_table: pd.DataFrame) -> AnnData:
    table.obs["region"] = pd.Categorical(["spots"] * len(spot_table))
    table.obs["instance_id"] = spot_table.index.to_numpy(dtype=object)
    for column in spot_table.columns.intersection(ARRAY_COLUMNS):
        table.obs[column] = spot_table[column].to_numpy()
    table.obsm["spatial"] = spot_table[["x_px", "y_px"]].to_numpy(dtype=np.float64)
    return TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
