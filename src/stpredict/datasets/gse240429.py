"""GSE240429: four Visium sections of one human liver, the data of BLEEP (Xie et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_mtx
from anndata.utils import make_index_unique
from scipy import sparse
from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict.datasets._spots import section
from stpredict.io import read_counts
from stpredict.io.read_visium import PITCH_UM, SPOT_UM, STEP

URL = "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE240429"
SAMPLES = {"A1": "GSM7697868", "B1": "GSM7697869", "C1": "GSM7697870", "D1": "GSM7697871"}
TABLES = ("matrix.mtx", "barcodes.tsv", "features.tsv", "tissue_positions_list.csv")  # each also with .gz
IMAGES = ("_Merged.tiff", "_Merged.tif")
POSITIONS = ["in_tissue", "array_row", "array_col", "y_px", "x_px"]  # after the barcode; the file has no header


def gse240429(sections: str | Iterable[str] | None = None, *, path: str | Path | None = None) -> list[SpatialData]:
    """Visium sections of a human liver: H&E, 55-um spots at a pitch of 100 um, raw counts, one object each.

    Parameters
    ----------
    sections : str | Iterable[str], optional
        Of "A1", "B1", "C1", "D1"; None: all four. They are consecutive sections of one donor, so a score across them
        says nothing of other people.
    path : str | Path, optional
        Folder with the files as GEO publishes them: for each section its sample's `GSM..._matrix.mtx.gz`,
        `_barcodes.tsv.gz`, `_features.tsv.gz` and `_tissue_positions_list.csv.gz`, and the full-resolution image
        `GSM..._GEX_C73_A1_Merged.tiff`, **unpacked** from its .gz (2.6 GB, read in windows). What stands between GSM
        number and ending does not matter; a folder for each sample will do. Needed: no checksums of these files are
        known here, so none are fetched.

    Returns
    -------
    list[SpatialData]
        The sections in the order asked, laid out as by `stpredict.io.read_visium`: spots that have both counts and a
        position, index = barcodes, obs in_tissue, array_row, array_col; symbols that occur twice are made unique, the
        Ensembl ids are in var["gene_ids"]. The scale is 100 um over the pitch of the spots.

    Raises
    ------
    ValueError
        Without `path`, for other sections, and for files that do not belong together.
    FileNotFoundError
        Where files are missing; it names all of them.

    References
    ----------
    Xie et al., NeurIPS 2023; GEO series GSE240429, samples GSM7697868 to GSM7697871.
    """
    check_arguments(gse240429, locals())
    names = list(SAMPLES) if sections is None else [sections] if isinstance(sections, str) else list(sections)
    unknown = [name for name in names if name not in SAMPLES]
    if unknown:
        raise ValueError(f"GSE240429 has no sections {unknown}; it has {list(SAMPLES)}.")
    if path is None:
        raise ValueError(
            f"no checksums are known for the files of GSE240429, so they are not fetched. Download those of samples "
            f"{[SAMPLES[name] for name in names]} from {URL}, unpack the .tiff.gz, and give path=, their folder."
        )
    return [_read(Path(path), name) for name in names]


def _read(folder: Path, name: str) -> SpatialData:
    matrix, barcodes, features, positions, image = _files(folder, name)
    spot_table = _spot_table(positions)
    table = _counts(matrix, barcodes, features)
    table.obs["in_tissue"] = spot_table["in_tissue"].reindex(table.obs_names, fill_value=0).to_numpy()
    return section(table, spot_table, image, name=name, spot_diameter_um=SPOT_UM, pitch_um=PITCH_UM, step=STEP)


def _files(folder: Path, name: str) -> list[Path]:
    """Counts, barcodes, features, positions and image of a section, in this order."""
    sample = SAMPLES[name]
    wanted = [tuple(f"{ending}{packed}" for packed in ("", ".gz")) for ending in TABLES] + [IMAGES]
    found = [_ending_in(folder, sample, endings) for endings in wanted]
    missing = [f"{sample}*{endings[-1]}" for endings, file in zip(wanted, found, strict=True) if file is None]
    if missing:
        packed = _ending_in(folder, sample, tuple(f"{ending}.gz" for ending in IMAGES))
        hint = "" if packed is None else f" Unpack {packed.name}: parts of an image cannot be read from a .gz."
        raise FileNotFoundError(f"section {name!r}: no {missing} in {folder} or its folders.{hint} Files: {URL}")
    return [file for file in found if file is not None]


def _ending_in(folder: Path, sample: str, endings: tuple[str, ...]) -> Path | None:
    files = sorted(f for f in [*folder.glob(f"{sample}*"), *folder.glob(f"*/{sample}*")] if f.name.endswith(endings))
    if len(files) > 1:
        raise ValueError(f"{folder} holds several files of {sample} that could be meant: {[str(f) for f in files]}.")
    return files[0] if files else None


def _counts(matrix: Path, barcodes: Path, features: Path) -> AnnData:
    """Spots x genes; features.tsv has the columns Ensembl id, symbol, kind."""
    ids = pd.read_csv(barcodes, sep="\t", header=None, dtype=str)[0]
    genes = pd.read_csv(features, sep="\t", header=None, dtype=str)
    values = sparse.csr_matrix(sparse.csr_matrix(read_mtx(matrix, dtype="float64").X).T)
    if values.shape != (len(ids), len(genes)):
        raise ValueError(
            f"{matrix.name} has {values.shape[1]} genes x {values.shape[0]} barcodes, but {features.name} and "
            f"{barcodes.name} name {len(genes)} and {len(ids)}. The files belong to different samples."
        )
    symbols = make_index_unique(pd.Index(genes[1]))
    raw = AnnData(values, obs=pd.DataFrame(index=pd.Index(ids)), var=pd.DataFrame(index=pd.Index(symbols)))
    table = read_counts(raw)
    table.var["gene_ids"] = genes[0].to_numpy()
    return table


def _spot_table(path: Path) -> pd.DataFrame:
    """Index = barcodes of the whole array; x_px, y_px, array_row, array_col, in_tissue."""
    table = pd.read_csv(path, header=None, index_col=0)
    if table.shape[1] != len(POSITIONS):
        raise ValueError(
            f"{path} has {table.shape[1] + 1} columns; Space Ranger's tissue_positions_list.csv has "
            f"{len(POSITIONS) + 1}, without a header: barcode, in_tissue, array_row, array_col, row, column in pixels."
        )
    spot_table = table.set_axis(POSITIONS, axis=1).set_axis(table.index.astype(str).rename(None), axis=0)
    numbers = spot_table.apply(pd.to_numeric, errors="coerce")
    odd = spot_table.index[~np.isfinite(numbers).all(axis=1) | spot_table.index.duplicated()].tolist()
    if odd:
        raise ValueError(
            f"{path}: barcodes named twice or without numbers: {odd[:5]} ({len(odd)} of {len(spot_table)})."
        )
    whole = ["in_tissue", "array_row", "array_col"]
    return numbers.astype({**dict.fromkeys(whole, np.int64), "x_px": np.float64, "y_px": np.float64})
