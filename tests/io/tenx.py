"""Counts in the two layouts of 10x: an HDF5 file, and a folder of matrix.mtx, barcodes.tsv and features.tsv."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse as sp

GENES = ["ERBB2", "COL1A1", "ACTB"]


def write_h5(path: Path, counts: np.ndarray, names: list[str]) -> None:
    matrix = sp.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = np.array(names, "S"), np.array(matrix.shape, "i4")
        group["data"], group["indices"], group["indptr"] = matrix.data.astype("i4"), matrix.indices, matrix.indptr
        columns = {"id": [f"ENSG{i}" for i in range(len(GENES))], "name": GENES}
        columns |= {"feature_type": ["Gene Expression"] * len(GENES), "genome": ["GRCh38"] * len(GENES)}
        for name, column in columns.items():
            group[f"features/{name}"] = np.array(column, "S")


def as_mtx(h5: Path) -> None:
    """Write the counts of an HDF5 file as matrix.mtx.gz, barcodes.tsv.gz and features.tsv.gz, and remove it."""
    to = h5.with_suffix("")
    to.mkdir()
    with h5py.File(h5) as file:
        group = file["matrix"]
        matrix = sp.csc_matrix((group["data"][:], group["indices"][:], group["indptr"][:]), group["shape"][:])
        barcodes = [name.decode() for name in group["barcodes"][:]]
        columns = [[value.decode() for value in group[f"features/{k}"][:]] for k in ("id", "name", "feature_type")]
    with gzip.open(to / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, matrix, field="integer")
    for name, lines in (("barcodes", barcodes), ("features", ["\t".join(row) for row in zip(*columns, strict=True)])):
        with gzip.open(to / f"{name}.tsv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    h5.unlink()
