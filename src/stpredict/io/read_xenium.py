"""10x Xenium: cells and their counts, with the H&E image that was aligned to them."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel
from spatialdata.transformations import Affine, set_transformation

from stpredict._arguments import check_arguments
from stpredict.io._files import reading
from stpredict.io._image import add_micrometers, image_element
from stpredict.io._matrix import with_h5
from stpredict.io._pixels import open_pixels
from stpredict.io._xenium import COUNTS, HE, Xenium, find_xenium

CELLS, GLOBAL = "cell_boundaries", "global"  # spatialdata-io's names
NUCLEI = "nucleus_boundaries.parquet"
LARGE = ("*.tif", "*.tiff", "transcripts*", "analysis*", "*.zarr", "morphology*")  # that are not read


def read_xenium(
    path: str | Path, *, name: str | None = None, image: str | Path | None = None, alignment: str | Path | None = None
) -> SpatialData:
    """A Xenium section from its output folder: the aligned H&E image, cells, raw counts of the panel.

    Parameters
    ----------
    path : str | Path
        Folder with `experiment.xenium`, `cells.parquet`, `cells.zarr.zip`, `cell_boundaries.parquet`,
        `cell_feature_matrix.h5` (where it is missing, the folder `cell_feature_matrix/` with `matrix.mtx`,
        `barcodes.tsv` and `features.tsv`), an H&E image `*he_image.ome.tif` and its alignment
        `*he_imagealignment.csv`; or the folder whose `outs/` holds them.
    name : str, optional
        Name of the section, kept in `sdata.attrs["name"]`; None is the folder's name.
    image : str | Path, optional
        The H&E image, where it lies elsewhere; see `read_image` for the formats.
    alignment : str | Path, optional
        Its alignment, where it lies elsewhere: a 3 x 3 affine matrix, pixels of the H&E image to pixels of Xenium, as
        Xenium Explorer exports it.

    Returns
    -------
    SpatialData
        What `spatialdata_io.xenium` returns, under its names: images["he_image"] (multiscale, read lazily),
        shapes["cell_boundaries"] and, where the folder has them, shapes["nucleus_boundaries"] (polygons in
        micrometres), tables["table"] (genes of the panel; annotates the cells); with the coordinate system
        "micrometers" beside "global", whose unit is the pixel of Xenium. Images of stains, labels and transcripts are
        left to `spatialdata_io.xenium`.

    Raises
    ------
    FileNotFoundError
        Where files are missing, the alignment of the H&E image among them; it names every one.
    ImportError
        Without the extra.
    ValueError
        Where several H&E images could be meant, for an alignment that is no affine matrix, a pixel without a size, and
        an image that is not 8-bit RGB.

    Notes
    -----
    The scale of the H&E image is Xenium's pixel (`pixel_size` of `experiment.xenium`) times the scale of the alignment.
    """
    check_arguments(read_xenium, locals())
    folder = find_xenium(Path(path), *(None if file is None else Path(file) for file in (image, alignment)))
    affine = folder.affine()
    pixels = open_pixels(folder.image)
    sdata = _read(folder)
    slide = image_element(pixels.levels, mpp=None)
    set_transformation(slide, {GLOBAL: Affine(affine, input_axes=("x", "y"), output_axes=("x", "y"))}, set_all=True)
    sdata.images[HE] = slide
    for element in (slide, *sdata.shapes.values()):
        add_micrometers(element, system=GLOBAL, unit_um=folder.pixel_um)
    sdata.tables["table"] = _of_cells(sdata.tables["table"])
    sdata.attrs["name"] = Path(path).resolve().name if name is None else name
    return sdata


def _read(folder: Xenium) -> SpatialData:
    """All but the image."""
    try:
        from spatialdata_io import xenium
    except ImportError as error:
        raise ImportError("read_xenium needs spatialdata-io: pip install 'stpredict[io]'.") from error
    with reading(folder.root), contextlib.ExitStack() as stack:
        root = folder.root
        if folder.counts.is_dir():
            root = stack.enter_context(with_h5(root, folder.counts, root / COUNTS, leave_out=LARGE))
        stack.enter_context(warnings.catch_warnings())
        # of the table, whose region is set here
        warnings.filterwarnings(
            "ignore", message="Converting `region_key|The table is annotating", category=UserWarning
        )
        return xenium(
            root,
            cells_labels=False,
            nucleus_labels=False,
            nucleus_boundaries=(root / NUCLEI).is_file(),
            transcripts=False,
            morphology_mip=False,
            morphology_focus=False,
            aligned_images=False,
        )


def _of_cells(table: AnnData) -> AnnData:
    """The table, annotating the cells' outlines by their ids instead of labels that are not read."""
    table.obs["region"] = pd.Categorical([CELLS] * table.n_obs)
    del table.uns[TableModel.ATTRS_KEY]
    return TableModel.parse(table, region=CELLS, region_key="region", instance_key="cell_id")
