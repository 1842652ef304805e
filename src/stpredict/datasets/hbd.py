"""HBD: human breast cancer by legacy Spatial Transcriptomics (ST-Net, He et al. 2020), read from a local folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict.datasets._spots import section
from stpredict.io import read_counts

URL = "https://data.mendeley.com/datasets/29ntw7sh4r/5"
INDEX = "metadata.csv"
FILES = ("count_matrix", "histology_image", "spot_coordinates")  # columns of the index that name a file


def hbd(sections: str | Iterable[str] | None = None, *, path: str | Path | None = None) -> list[SpatialData]:
    """Sections of human breast cancer: H&E, 100-um spots at a pitch of 200 um, raw counts, one object each.

    Parameters
    ----------
    sections : str | Iterable[str], optional
        Names such as "BC23287_C1", patient and replicate; None: all that the index lists (68 of 23 patients).
    path : str | Path, optional
        Folder with the files as they are published: `metadata.csv`, which names for each patient and replicate the
        `count_matrix` (.tsv.gz; rows `XxY`, columns Ensembl ids, raw counts of the whole array), the `histology_image`
        (.jpg) and the `spot_coordinates` (.csv.gz; rows `XxY`, columns X and Y: column and row in pixels, spots under
        tissue alone). Needed: no checksums of these files are known here, so none are fetched.

    Returns
    -------
    list[SpatialData]
        The sections in the order asked (or of the index), laid out as by `stpredict.io.read_st`, with the genes by
        their Ensembl ids, as published, and `attrs["patient"]` and `attrs["type"]` (the tumour's subtype): pass the
        former as `groups`, for a patient has up to three sections. A gene without counts in a section is not in its
        table. The tumour annotation is not read.

    Raises
    ------
    ValueError
        Without `path`, for sections that the index lacks, and where `stpredict.io.read_st` raises it.
    FileNotFoundError
        For files that the index names and the folder lacks.

    References
    ----------
    He et al., Nature Biomedical Engineering 4 (2020), 827; files of Mendeley Data 29ntw7sh4r, version 5.
    """
    check_arguments(hbd, locals())
    if path is None:
        raise ValueError(
            f"no checksums are known for the files of HBD, so they are not fetched. Download them from {URL}, unpack "
            f"them, and give path=, the folder that holds {INDEX} and all the files that it names."
        )
    index = _index(Path(path))
    names = list(index.index) if sections is None else [sections] if isinstance(sections, str) else list(sections)
    unknown = [name for name in names if name not in index.index]
    if unknown:
        raise ValueError(f"sections {unknown} are not in {Path(path) / INDEX}; those there are {index.index.tolist()}.")
    return [_read(Path(path), name, index.loc[name]) for name in names]


def _index(folder: Path) -> pd.DataFrame:
    file = folder / INDEX
    if not file.is_file():
        present = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else "no folder"
        raise FileNotFoundError(
            f"no {INDEX} in {folder} (there: {present}). Give the folder of the unpacked files of {URL}."
        )
    index = pd.read_csv(file, dtype=str)
    missing = [column for column in ("patient", "replicate", "type", *FILES) if column not in index.columns]
    if missing:
        raise ValueError(f"{file} lacks the columns {missing}, found {list(index)}.")
    return index.set_index(index["patient"] + "_" + index["replicate"])


def _read(folder: Path, name: str, row: pd.Series) -> SpatialData:
    files = [folder / row[column] for column in FILES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"section {name!r}: no {missing} in {folder}, which {INDEX} names.")
    counts, image, spots = files
    sdata = section(read_counts(counts), _spot_table(spots), image, name=name, spot_diameter_um=100.0, pitch_um=200.0)
    sdata.attrs["patient"], sdata.attrs["type"] = str(row["patient"]), str(row["type"])
    return sdata


def _spot_table(path: Path) -> pd.DataFrame:
    """Index = spot ids `XxY`; x_px, y_px, array_row, array_col."""
    table = pd.read_csv(path, index_col=0)
    if not {"X", "Y"} <= set(table.columns):
        raise ValueError(f"{path}: no pixel positions; needed are the columns X and Y, found {list(table)}.")
    ids = table.index.astype(str).rename(None)
    array = ids.str.extract(r"^(?P<array_col>\d+)x(?P<array_row>\d+)$")
    odd = ids[array.isna().any(axis=1) | ids.duplicated()].tolist()
    if odd:
        raise ValueError(f"{path}: spots that are named twice, or not as 'XxY': {odd[:5]} ({len(odd)} of {len(ids)}).")
    spot_table = table[["X", "Y"]].set_axis(["x_px", "y_px"], axis=1).astype(np.float64).set_axis(ids, axis=0)
    lost = ids[~np.isfinite(spot_table).all(axis=1)].tolist()
    if lost:
        raise ValueError(f"{path}: spots without a pixel position: {lost[:5]} ({len(lost)} of {len(ids)}).")
    return spot_table.join(array.astype(np.int64).set_axis(ids, axis=0))
