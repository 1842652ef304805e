"""Build a section of a public data set from its counts, spot positions and image."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from stpredict.io import assemble, check_on_image, open_pixels, pitch_px

logger = logging.getLogger("stpredict")


def section(
    table: AnnData,
    spot_table: pd.DataFrame,
    image: Path,
    *,
    name: str,
    spot_diameter_um: float,
    pitch_um: float,
    step: tuple[float, float] = (1.0, 1.0),
) -> SpatialData:
    """The spots that are in both `table` and `spot_table`, in the order of `spot_table`, on `image`.

    Parameters
    ----------
    table : AnnData
        Raw counts as `read_counts` gives them, obs_names = spot ids.
    places : DataFrame
        Index = spot ids; x_px, y_px, array_row, array_col.
    spot_diameter_um, pitch_um, step
        As in `stpredict.io.read_st` and `pitch_px`: the scale of the image is pitch_um over the pitch in pixels.
    """
    common = spot_table.index[spot_table.index.isin(table.obs_names)]
    if not len(common):
        raise ValueError(
            f"section {name!r}: no spot has both counts and a position; the counts name "
            f"{table.obs_names[:3].tolist()}, the positions {spot_table.index[:3].tolist()}."
        )
    logger.info("%s: %d spots; left out: %d with counts alone", name, len(common), table.n_obs - len(common))
    spot_table = spot_table.loc[common]
    pixels = open_pixels(image)
    check_on_image(spot_table, pixels.shape, f"section {name!r}")
    grid = spot_table[["array_col", "array_row"]].to_numpy()
    mpp = pitch_um / pitch_px(spot_table[["x_px", "y_px"]].to_numpy(), grid, step=step)
    return assemble(table[common].copy(), spot_table, pixels, mpp=mpp, spot_diameter_um=spot_diameter_um, name=name)
