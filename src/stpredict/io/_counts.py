"""Tables of raw counts: read, checked, CSR float32."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from stpredict.io._files import reading

LARGEST_EXACT = 2**24  # float32 holds every integer up to here
MISSING = ("", "NA", "NaN", "nan")


@dataclass(frozen=True)
class _Table:
    """Spots x genes as read, not yet checked."""

    matrix: sp.csr_matrix
    spots: pd.Index
    genes: pd.Index


def read_counts(counts: str | Path | AnnData) -> AnnData:
    """Raw counts, spots x genes, as a new AnnData with CSR float32 in X and empty obs and var.

    Parameters
    ----------
    counts : str | Path | AnnData
        A text table (.tsv, .csv, .txt, each also .gz; one row a spot, first column its id, header the genes), an .h5ad
        file, or an AnnData whose obs_names are spot ids and var_names genes.

    Raises
    ------
    ValueError
        For another format, duplicate spots or genes, and values that are not counts.
    """
    source = "the AnnData" if isinstance(counts, AnnData) else str(counts)
    table = _of_anndata(counts) if isinstance(counts, AnnData) else _read(Path(counts))
    _check_unique(table.spots, "spot ids", source)
    _check_unique(table.genes, "gene names", source)
    _check_counts(table, source)
    return AnnData(
        table.matrix.astype(np.float32), obs=pd.DataFrame(index=table.spots), var=pd.DataFrame(index=table.genes)
    )


def delimiter(path: Path) -> str:
    """The delimiter that a text table's suffix stands for: comma for .csv and .csv.gz, else tab."""
    return "," if path.name.lower().removesuffix(".gz").endswith(".csv") else "\t"


def _of_anndata(table: AnnData) -> _Table:
    if table.X is None:
        raise ValueError(f"a table of {table.n_obs} spots and {table.n_vars} genes has no X; raw counts belong there.")
    spots, genes = (names.astype(str).rename(None) for names in (table.obs_names, table.var_names))
    return _Table(sp.csr_matrix(table.X), spots, genes)


def _read(path: Path) -> _Table:
    if not path.is_file():
        raise FileNotFoundError(f"no counts table at {path}")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".h5ad"):
        with reading(path):
            table = ad.read_h5ad(path)
        return _of_anndata(table)
    if name.endswith((".tsv", ".csv", ".txt")):
        with reading(path):
            return _read_text(path)
    raise ValueError(
        f"counts table of unknown format: {path.name!r}. Give .tsv, .csv or .txt (also .gz), .h5ad, or an AnnData "
        "built from what you have (obs_names = spot ids, var_names = genes)."
    )


def _read_text(path: Path) -> _Table:
    # row by row: pandas renames duplicate columns in silence, and is slow for so many
    with _open_text(path) as lines:
        rows = csv.reader(lines, delimiter=delimiter(path))
        header = next(rows, [])
        ids: list[str] = []
        blocks: list[sp.csr_matrix] = []
        for row in rows:
            if blocks and len(row) != blocks[0].shape[1] + 1:
                raise ValueError(f"{path}: row {row[:1]} has {len(row) - 1} values, others {blocks[0].shape[1]}.")
            ids.append(row[0] if row else "")
            blocks.append(sp.csr_matrix(_numbers(row[1:], path, ids[-1])))
    if not blocks:
        raise ValueError(f"{path} holds no spots: a header and one row a spot are expected.")
    n_genes = blocks[0].shape[1]
    genes = header[1:] if len(header) == n_genes + 1 else header  # R leaves out the corner of the header
    if len(genes) != n_genes:
        raise ValueError(f"{path}: the header names {len(genes)} genes, but the rows hold {n_genes} values.")
    return _Table(sp.vstack(blocks, format="csr"), pd.Index(ids, dtype=str), pd.Index(genes, dtype=str))


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _numbers(fields: list[str], path: Path, spot: str) -> NDArray[np.float64]:
    try:
        return np.array([[float(field) if field not in MISSING else np.nan for field in fields]])
    except ValueError as error:
        raise ValueError(
            f"{path}, spot {spot!r}: not a number ({error}). Rows must be spots and columns genes."
        ) from None


def _check_unique(names: pd.Index, what: str, source: str) -> None:
    duplicates = names[names.duplicated()].unique().tolist()
    if duplicates:
        raise ValueError(
            f"duplicate {what} in {source}: {duplicates[:5]} ({len(duplicates)} of {len(names)}). Make them unique, "
            "e.g. by summing the counts of equal names."
        )


def _check_counts(table: _Table, source: str) -> None:
    values = table.matrix.data.astype(np.float64)
    problems = {
        "NaN or infinite": ~np.isfinite(values),
        "negative": values < 0,
        "non-integer": np.isfinite(values) & (values != np.rint(values)),
        f"above {LARGEST_EXACT:,} (not exact in float32)": np.isfinite(values) & (values > LARGEST_EXACT),
    }
    for what, bad in problems.items():
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            spot = table.spots[int(np.searchsorted(table.matrix.indptr, at, side="right")) - 1]
            raise ValueError(
                f"{source} holds {what} values: {int(bad.sum())}, the first {values[at]:g} at spot {spot!r}, gene "
                f"{table.genes[table.matrix.indices[at]]!r}. Raw counts are needed."
            )
