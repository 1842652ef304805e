"""10x Visium HD: a Space Ranger folder of square bins with the full-resolution image."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from spatialdata import SpatialData
from spatialdata.transformations import Identity, set_transformation

from stpredict._arguments import check_arguments
from stpredict.io._files import reading
from stpredict.io._image import add_micrometers, image_element
from stpredict.io._matrix import with_h5
from stpredict.io._pixels import open_pixels
from stpredict.io._space_ranger import COUNTS, check_image, find_counts
from stpredict.io._visium_hd import VisiumHD, find_hd

# what spatialdata-io says of files that are not needed, and of what it does itself
KNOWN = (
    "Variable names are not unique",
    "Converting `region_key",
    "No full resolution image found",
    "File .* does not exist, skipping it",
    "No image path found containing",
)
ABSENT = "none"  # no file: the slide is opened here, lazily, and not by spatialdata-io
SLIDES = ("microscope_image", "*.btf", "*.tif", "*.tiff", "*.h5ad", "raw_feature_bc_matrix*")


def read_visium_hd(
    path: str | Path, *, bin_um: int | Sequence[int] = 8, name: str | None = None, image: str | Path | None = None
) -> SpatialData:
    """A Visium HD section from its Space Ranger folder: full-resolution H&E image, square bins, raw counts.

    Parameters
    ----------
    path : str | Path
        Folder with `binned_outputs/`, `feature_slice.h5` (its name may have a prefix, as those published by 10x have)
        and the full-resolution image that Space Ranger was given; or the folder whose `outs/` holds them. Where a
        `filtered_feature_bc_matrix.h5` is missing, the folder of that name with `matrix.mtx`, `barcodes.tsv` and
        `features.tsv` is read.
    bin_um : int or Sequence[int], default 8
        Sides of the bins in micrometres, one or several of those that the folder has (2, 8 and 16).
    name : str, optional
        Name of the section, kept in `sdata.attrs["name"]`; None is the folder's name.
    image : str | Path, optional
        The full-resolution image, where it lies elsewhere; None looks for it in the folder, its `microscope_image/` and
        its `image/`. See `read_image` for the formats.

    Returns
    -------
    SpatialData
        What `spatialdata_io.visium_hd` returns, under its names: of the prefix `P` (empty where the files have none)
        images["P_full_image"] (multiscale, read lazily) beside Space Ranger's reduced ones, shapes["P_square_008um"]
        (squares) and tables["square_008um"] for every size of bins, cells where Space Ranger segmented them; with the
        coordinate system "micrometers" beside its own.

    Raises
    ------
    FileNotFoundError
        Where files are missing; it names every one.
    ImportError
        Without the extra.
    ValueError
        For bins that the folder lacks, for several images that could be meant, an image that is not the one that Space
        Ranger was given, and scale factors that state no scale or contradict themselves.

    Notes
    -----
    The scale is `microns_per_pixel` of the scale factors, which is the side of a bin over its side in pixels.
    """
    check_arguments(read_visium_hd, locals())
    sizes = (bin_um,) if isinstance(bin_um, int) else tuple(dict.fromkeys(bin_um))
    if not sizes:
        raise ValueError("bin_um is an empty list; pass the side of the bins in micrometres, such as 8.")
    folder = find_hd(Path(path), None if image is None else Path(image), sizes)
    pixels = open_pixels(folder.image)
    check_image(folder.image, pixels.shape, hires=folder.hires, scales=folder.scales)
    sdata = _read(folder, list(sizes))
    slide = image_element(pixels.levels, mpp=None)
    set_transformation(slide, {folder.prefix: Identity()}, set_all=True)
    sdata.images[f"{folder.prefix}_full_image"] = slide
    for element in (*sdata.images.values(), *sdata.shapes.values()):
        add_micrometers(element, system=folder.prefix, unit_um=folder.mpp)
    sdata.attrs["name"] = Path(path).resolve().name if name is None else name
    return sdata


def _read(folder: VisiumHD, sizes: list[int]) -> SpatialData:
    """All but the full-resolution image."""
    with reading(folder.root), contextlib.ExitStack() as stack:
        root = folder.root
        for bins in folder.bins:
            counts = find_counts(bins)
            if counts is not None and counts.is_dir():
                place = root / bins.relative_to(folder.root)
                h5 = place / COUNTS
                root = stack.enter_context(with_h5(root, counts, h5, leave_out=SLIDES))
        sdata = _visium_hd(root, folder.prefix, sizes)
        if root != folder.root:  # the links to the reduced images go with the scratch folder
            for key in list(sdata.images):
                sdata.images[key] = sdata.images[key].persist()
    return sdata


def _visium_hd(root: Path, prefix: str, sizes: list[int]) -> SpatialData:
    try:
        from spatialdata_io import visium_hd
    except ImportError as error:
        raise ImportError("read_visium_hd needs spatialdata-io: pip install 'stpredict[io]'.") from error
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for message in KNOWN:
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        return visium_hd(
            root,
            dataset_id=prefix,
            bin_size=sizes,
            load_segmentations_only=False,
            fullres_image_file=root / ABSENT,
        )
