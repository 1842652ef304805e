"""The files of a Xenium folder: which is which, the size of its pixel, and how the H&E image lies on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpredict.io._files import read_json_object
from stpredict.io._matrix import is_matrix_folder

SPECS, CELLS, OUTLINES = "experiment.xenium", "cells.parquet", "cell_boundaries.parquet"
CELLS_ZARR = "cells.zarr.zip"  # spatialdata-io takes the ids of cells from it
COUNTS, FOLDER = "cell_feature_matrix.h5", "cell_feature_matrix"
HE, OME, ALIGNMENT = "he_image", ".ome.tif", "alignment.csv"  # {name}_he_image.ome.tif, {name}_he_imagealignment.csv
PIXEL_UM = (0.05, 2.0)  # of any microscope


@dataclass(frozen=True)
class Xenium:
    """Where the files of one region are.

    Parameters
    ----------
    root : Path
        Folder that holds `experiment.xenium`.
    counts : Path
        `cell_feature_matrix.h5`, or the folder of matrix.mtx, barcodes.tsv and features.tsv where that is missing.
    image, alignment : Path
        The H&E image, and the file that says how its pixels lie on those of Xenium.
    pixel_um : float
        The side of a pixel of Xenium's own images in micrometres.
    """

    root: Path
    counts: Path
    image: Path
    alignment: Path
    pixel_um: float

    def affine(self) -> NDArray[np.float64]:
        """The 3x3 matrix that takes (x, y, 1) of the H&E image to pixels of Xenium; ValueError where it is none."""
        try:
            matrix = pd.read_csv(self.alignment, header=None).to_numpy(dtype=np.float64)
        except (ValueError, pd.errors.ParserError) as error:
            raise ValueError(f"{self.alignment} is no table of numbers ({error}). {_EXPORT}") from error
        whole = matrix.shape == (3, 3) and bool(np.isfinite(matrix).all()) and np.allclose(matrix[2], (0, 0, 1))
        if not whole or not abs(np.linalg.det(matrix[:2, :2])) > 0:
            raise ValueError(
                f"{self.alignment} must hold a 3 x 3 affine matrix, but holds {matrix.tolist()}. {_EXPORT}"
            )
        return matrix


_EXPORT = (
    "Xenium Explorer exports it where the image is aligned; three lines '1,0,0', '0,1,0', '0,0,1' say that the image "
    "has Xenium's own pixels"
)


def find_xenium(path: Path, image: Path | None, alignment: Path | None) -> Xenium:
    """The files of the folder `path` or of its `outs/`; `image` and `alignment` where they lie elsewhere.

    Raises FileNotFoundError that names all that is missing, ValueError for several images and for no size of the pixel.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}")
    root = path / "outs" if (path / "outs").is_dir() else path
    counts = root / COUNTS if (root / COUNTS).is_file() else root / FOLDER
    slide = image if image is not None else _image({path, root})
    missing = [name for name in (SPECS, CELLS, CELLS_ZARR, OUTLINES) if not (root / name).is_file()]
    if not (counts.is_file() or is_matrix_folder(counts)):
        missing.append(f"{COUNTS} (or the folder {FOLDER}/ of matrix.mtx, barcodes.tsv and features.tsv)")
    if slide is None:
        missing.append(
            f"an H&E image called *{HE}{OME} (copy it there, or pass image= and alignment=; without one "
            "spatialdata_io.xenium reads the folder)"
        )
    elif alignment is None:
        alignment = slide.with_name(f"{slide.name.removesuffix(OME)}{ALIGNMENT}")
        if not alignment.is_file():
            missing.append(
                f"{alignment.name}, the alignment of {slide.name} (copy it there, or pass alignment=). {_EXPORT}"
            )
    if missing or slide is None or alignment is None:
        raise FileNotFoundError(f"{root} lacks: {'; '.join(missing)}.")
    for what, file in (("H&E image", slide), ("alignment", alignment)):
        if not file.is_file():
            raise FileNotFoundError(f"no {what} at {file}")
    return Xenium(root, counts, slide, alignment, _pixel_um(root / SPECS))


def _image(folders: set[Path]) -> Path | None:
    files = sorted({file.resolve(): file for folder in folders for file in folder.glob(f"*{HE}{OME}")}.values())
    if len(files) > 1:
        raise ValueError(f"{files[0].parent} holds several H&E images: {[f.name for f in files]}. Pass image=.")
    return files[0] if files else None


def _pixel_um(specs: Path) -> float:
    stated = read_json_object(specs).get("pixel_size")
    if not isinstance(stated, int | float) or not PIXEL_UM[0] <= stated <= PIXEL_UM[1]:
        raise ValueError(
            f"{specs} must state pixel_size, micrometres per pixel in [{PIXEL_UM[0]:g}, {PIXEL_UM[1]:g}] (it is .2125 "
            f"for Xenium), but it is {stated!r}. Copy the file anew."
        )
    return float(stated)
