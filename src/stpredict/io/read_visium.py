"""10x Visium: a Space Ranger folder with the full-resolution image beside it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict.io._assemble import assemble, check_on_image
from stpredict.io._counts import read_counts
from stpredict.io._files import reading
from stpredict.io._grid import pitch_px
from stpredict.io._matrix import with_h5
from stpredict.io._pixels import open_pixels
from stpredict.io._space_ranger import SpaceRanger, check_image, check_scale, find

SPOT_UM, PITCH_UM = 55.0, 100.0
STEP = (0.5, float(np.sqrt(3) / 2))  # a hexagonal array: neighbours in a row are two columns apart


def read_visium(path: str | Path, *, name: str | None = None, image: str | Path | None = None) -> SpatialData:
    """A Visium section from its Space Ranger folder: full-resolution H&E image, spots, raw counts.

    Parameters
    ----------
    path : str | Path
        Folder with `filtered_feature_bc_matrix.h5` (file names may have a prefix, as those published by 10x have; where
        it is missing, the folder of that name with `matrix.mtx`, `barcodes.tsv` and `features.tsv`), `spatial/` and
        the full-resolution image that Space Ranger was given; or the folder whose `outs/` holds them.
    name : str, optional
        Name of the section, kept in `sdata.attrs["name"]`; None is the folder's name.
    image : str | Path, optional
        The full-resolution image, where it lies elsewhere; None looks for it in the folder and in its `image/`. See
        `read_image` for the formats.

    Returns
    -------
    SpatialData
        The layout of `read_st`: images["image"], shapes["spots"] (circles of 55 um), tables["table"] (spots under
        tissue, index = barcodes; in_tissue, array_row, array_col), coordinate systems "global" (pixels) and
        "micrometers".

    Raises
    ------
    FileNotFoundError
        Where files are missing; it names every one.
    ImportError
        Without the extra.
    ValueError
        Where several images could be meant or the image is not the one that Space Ranger was given.

    Notes
    -----
    Counts and positions are read by `spatialdata_io.visium` (the `io` extra).

    The scale is 100 um over the pitch of the spots. It is not taken from `spot_diameter_fullres`, which Space Ranger
    draws for 65 um while the spots are 55: it is only checked against it.
    """
    check_arguments(read_visium, locals())
    folder = find(Path(path), None if image is None else Path(image))
    source = _read(folder)
    table = _raw_counts(source)
    spot_table = _spot_table(source, folder.positions)
    pixels = open_pixels(folder.image)
    check_image(folder.image, pixels.shape, hires=folder.hires, scales=folder.scales)
    check_on_image(spot_table, pixels.shape, str(folder.positions))
    grid = spot_table[["array_col", "array_row"]].to_numpy()
    mpp = PITCH_UM / pitch_px(spot_table[["x_px", "y_px"]].to_numpy(), grid, step=STEP)
    check_scale(folder, mpp)
    label = Path(path).resolve().name if name is None else name
    return assemble(table, spot_table, pixels, mpp=mpp, spot_diameter_um=SPOT_UM, name=label)


def _read(folder: SpaceRanger) -> AnnData:
    try:
        from spatialdata_io import visium
    except ImportError as error:
        raise ImportError("read_visium needs spatialdata-io: pip install 'stpredict[io]'.") from error
    with warnings.catch_warnings(), reading(folder.root):
        # some symbols occur twice in every 10x reference; spatialdata-io makes them unique right after the first
        for message in ("Variable names are not unique", "Converting `region_key"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        if folder.counts.is_file():
            return visium(folder.root, dataset_id=folder.prefix or "visium").tables["table"]
        with with_h5(folder.root, folder.counts, folder.counts.with_name(f"{folder.counts.name}.h5")) as root:
            return visium(root, dataset_id=folder.prefix or "visium").tables["table"]


def _raw_counts(source: AnnData) -> AnnData:
    table = read_counts(source)
    table.var = source.var.copy()
    if "in_tissue" in source.obs:
        table.obs["in_tissue"] = source.obs["in_tissue"].to_numpy()
    return table


def _spot_table(source: AnnData, positions: Path) -> pd.DataFrame:
    obs: pd.DataFrame = source.obs
    spot_table = pd.DataFrame(
        source.obsm["spatial"], index=source.obs_names, columns=["x_px", "y_px"], dtype=np.float64
    )
    lost = spot_table.index[~np.isfinite(spot_table).all(axis=1)].tolist()
    if lost:
        raise ValueError(
            f"barcodes of the counts without a position: {lost[:5]} ({len(lost)} of {len(spot_table)}). "
            f"{positions} is damaged, or belongs to another section."
        )
    for column in ("array_row", "array_col"):
        spot_table[column] = obs[column].to_numpy(dtype=np.int64)
    return spot_table
