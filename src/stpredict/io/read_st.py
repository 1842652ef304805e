"""Legacy Spatial Transcriptomics: a table of counts, an image, and where the spots lie on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict.io._assemble import assemble, check_on_image
from stpredict.io._counts import read_counts
from stpredict.io._grid import pitch_px
from stpredict.io._pixels import open_pixels
from stpredict.io._spots import read_spots

logger = logging.getLogger("stpredict")


def read_st(
    counts: str | Path | AnnData,
    image: str | Path,
    spots: str | Path,
    *,
    name: str = "section",
    spot_diameter_um: float = 100.0,
    pitch_um: float | tuple[float, float] = 200.0,
) -> SpatialData:
    """A section measured by spots on an array: H&E image, circles, raw counts.

    Parameters
    ----------
    counts : str | Path | AnnData
        Spots x genes, raw: a text table (.tsv, .csv, .txt, each also .gz; rows are spots named `XxY`, columns genes),
        an .h5ad file, or an AnnData (obs_names = spot ids, var_names = genes) built from any other format.
    image : str | Path
        JPG, PNG, TIFF or OME-TIFF, 8-bit RGB, read lazily (see `read_image`). A JPG or PNG has no tiles: it is decoded
        whole when a pixel is first needed, and kept; write the object and read it back to read it in chunks.
    spots : str | Path
        Table of the spots, .tsv or .csv. Position of the centre in pixels of the image: `pixel_x` (column), `pixel_y`
        (row), or `x_px`, `y_px`. Id: `spot`, `barcode`, or `XxY` from the array coordinates `x` (column), `y` (row).
        Where there is a column `selected`, only rows with 1 are used.
    name : str, default "section"
        Name of the section, kept in `sdata.attrs["name"]`.
    spot_diameter_um : float, default 100.0
        Diameter of a spot in micrometres: 100 for legacy arrays, 55 for Visium.
    pitch_um : float or tuple[float, float], default 200.0
        Distance of neighbouring centres in micrometres: 200 for legacy arrays, 100 for Visium; of an array that is not
        square (x, y): that of neighbouring columns and that of neighbouring rows, for which the spot file must have the
        array coordinates `x` and `y`. The scale of the image is pitch_um over the pitch in pixels.

    Returns
    -------
    SpatialData
        A SpatialData with images["image"], shapes["spots"] (circles, radius in pixels), tables["table"] (CSR float32;
        spots that are in both files, in the order of the spot file), and the coordinate systems "global" (pixels) and
        "micrometers".

    Raises
    ------
    ValueError
        For duplicate ids or genes, values that are not counts, no common spot, spots all off the image, a pitch that
        cannot be measured, and an image that is not 8-bit RGB.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "pink").save("section.png")
    >>> names = ["1x1", "2x1", "1x2", "2x2"]
    >>> pd.DataFrame({"GNAS": [3, 0, 2, 9], "SCD": [1, 1, 0, 4]}, index=names).to_csv("counts.csv")
    >>> places = {
    ...     "x": [1, 2, 1, 2],
    ...     "y": [1, 1, 2, 2],
    ...     "pixel_x": [200, 400, 200, 400],
    ...     "pixel_y": [150, 150, 350, 350],
    ... }
    >>> pd.DataFrame(places).to_csv("spots.csv", index=False)
    >>> section = stp.io.read_st("counts.csv", "section.png", "spots.csv")
    >>> section.tables["table"].shape
    (4, 2)
    """
    check_arguments(read_st, locals())
    pitch = pitch_um if isinstance(pitch_um, tuple | list) else (pitch_um, pitch_um)
    _check_sizes(spot_diameter_um, pitch)
    table, spot_table = _join(read_counts(counts), read_spots(Path(spots)), name)
    pixels = open_pixels(Path(image))
    check_on_image(spot_table, pixels.shape, str(spots))
    grid = spot_table[["array_col", "array_row"]].to_numpy() if "array_col" in spot_table else None
    if grid is None and pitch[0] != pitch[1]:
        raise ValueError(
            f"pitch_um={tuple(pitch)} is not square, and {spots} has no array coordinates x (column) and y (row) to "
            "tell the two apart. Add them to the file."
        )
    step = (1.0, pitch[1] / pitch[0])  # in pitches of the columns
    mpp = pitch[0] / pitch_px(spot_table[["x_px", "y_px"]].to_numpy(), grid, step=step)
    return assemble(table, spot_table, pixels, mpp=mpp, spot_diameter_um=spot_diameter_um, name=name)


def _join(table: AnnData, spot_table: pd.DataFrame, name: str) -> tuple[AnnData, pd.DataFrame]:
    common = spot_table.index[spot_table.index.isin(table.obs_names)]
    if not len(common):
        hint = (
            " The table holds spots as columns: transpose it." if spot_table.index.isin(table.var_names).any() else ""
        )
        raise ValueError(
            f"no spot is in both files: the counts name {table.obs_names[:3].tolist()}, the spot file "
            f"{spot_table.index[:3].tolist()}.{hint}"
        )
    logger.info(
        "%s: %d spots; left out: %d of the counts without a selected position, %d selected without counts",
        *(name, len(common), table.n_obs - len(common), len(spot_table) - len(common)),
    )
    return table[common].copy(), spot_table.loc[common]


def _check_sizes(spot_diameter_um: float, pitch_um: Sequence[float]) -> None:
    if not 0 < spot_diameter_um <= min(pitch_um) <= max(pitch_um) < np.inf:
        raise ValueError(
            f"spot_diameter_um must be positive and at most pitch_um, got {spot_diameter_um} and {tuple(pitch_um)} "
            "(100 and 200 for legacy arrays, 55 and 100 for Visium)."
        )
