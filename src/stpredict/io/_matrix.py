"""Counts as 10x writes them beside its HDF5 file: a folder of matrix.mtx, barcodes.tsv and features.tsv."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

MATRIX, BARCODES, FEATURES = "matrix.mtx", "barcodes.tsv", "features.tsv"
TYPE = "Gene Expression"  # of features whose file has no third column


def is_matrix_folder(path: Path) -> bool:
    """Whether a folder holds the three files, each plain or with .gz."""
    return path.is_dir() and all(_file(path, name) is not None for name in (MATRIX, BARCODES, FEATURES))


@contextmanager
def with_h5(root: Path, matrix: Path, h5: Path, *, leave_out: tuple[str, ...] = ()) -> Iterator[Path]:
    """A scratch folder with the files of `root` as links, and the counts of a folder as the HDF5 file that is missing.

    spatialdata-io reads the HDF5 file alone. The folder is gone when the context ends.

    Parameters
    ----------
    matrix : Path
        Folder of matrix.mtx, barcodes.tsv and features.tsv.
    h5 : Path
        The missing file, below `root`.
    leave_out : tuple[str, ...], default ()
        Patterns of names that are not linked.
    """
    with tempfile.TemporaryDirectory(prefix="stpredict-") as scratch:
        copy = Path(scratch) / root.resolve().name
        shutil.copytree(root, copy, copy_function=_link, ignore=shutil.ignore_patterns(*leave_out))
        _write_h5(copy / h5.relative_to(root), matrix)
        yield copy


def _link(source: str, target: str) -> None:
    try:
        os.symlink(Path(source).resolve(), target)
    except OSError:  # a file system or an account that may not link
        shutil.copy2(source, target)


def _write_h5(path: Path, folder: Path) -> None:
    """Write the counts of a folder in the HDF5 layout of Cell Ranger 3: features x barcodes, compressed by barcode."""
    counts = _read_mtx(_existing(folder, MATRIX))
    barcodes = pd.read_csv(_existing(folder, BARCODES), sep="\t", header=None, dtype=str)[0]
    features = pd.read_csv(_existing(folder, FEATURES), sep="\t", header=None, dtype=str)
    if counts.shape != (len(features), len(barcodes)):
        raise ValueError(
            f"{folder}: {MATRIX} has {counts.shape[0]} x {counts.shape[1]} values, but {FEATURES} names "
            f"{len(features)} features and {BARCODES} {len(barcodes)} barcodes. The files do not belong together."
        )
    columns = {"id": features[0], "name": features[1] if 1 in features else features[0]}
    columns["feature_type"] = features[2] if 2 in features else pd.Series([TYPE] * len(features))
    columns["genome"] = pd.Series([""] * len(features))
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([folder.name.encode()])
        group = file.create_group("matrix")
        group["barcodes"] = _bytes(barcodes)
        group["data"] = counts.data.astype(np.int32)
        group["indices"], group["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
        group["shape"] = np.array(counts.shape, dtype=np.int32)
        for name, column in columns.items():
            group[f"features/{name}"] = _bytes(column)


def _read_mtx(path: Path) -> sp.csc_matrix:
    """The counts of a Matrix Market file; ValueError where it is none of whole coordinates and values."""
    # pandas: as fast as any, gzip included, while scipy's reader is about to change what it returns
    names = ["row", "column", "value"]
    try:
        table = pd.read_csv(path, sep=" ", comment="%", header=None, names=names, dtype=np.float64)
        row, column, value = (table[name].to_numpy() for name in names)
        whole = len(table) > 0 and all(np.array_equal(each, np.rint(each)) for each in (row, column, value))
        if not whole or value[0] != len(table) - 1:  # the first line holds both sizes and the number of values
            raise ValueError("expected are rows, columns and raw counts, all whole, and as many as its first line says")
        at = (row[1:].astype(np.int64) - 1, column[1:].astype(np.int64) - 1)
        return sp.csc_matrix((value[1:].astype(np.int32), at), shape=(int(row[0]), int(column[0])))
    except ValueError as error:  # of pandas, too
        raise ValueError(f"{path} cannot be read as counts: {error}.") from error


def _bytes(column: pd.Series) -> np.ndarray:
    return np.array([str(value).encode() for value in column], dtype="S")


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _existing(folder: Path, name: str) -> Path:
    found = _file(folder, name)
    if found is None:
        raise FileNotFoundError(f"{folder} lacks {name} or {name}.gz.")
    return found
