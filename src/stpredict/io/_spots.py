"""Spot files: where each spot lies on the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stpredict.io._counts import delimiter
from stpredict.io._files import reading

PIXEL_COLUMNS = (("pixel_x", "pixel_y"), ("x_px", "y_px"))
ID_COLUMNS = ("spot", "barcode")


def read_spots(path: Path) -> pd.DataFrame:
    """The selected spots of a spot file: index = spot ids, in file order.

    Columns: x_px, y_px (float64, column and row of the spot's centre in image pixels); array_row and array_col (int64)
    where the file has the array coordinates x (column) and y (row).

    Raises ValueError for missing columns, duplicate ids, positions that are not finite, or no selected spot.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no spot file at {path}")
    with reading(path):
        table = pd.read_csv(path, sep=delimiter(path), dtype=dict.fromkeys(ID_COLUMNS, str))
    columns = next((pair for pair in PIXEL_COLUMNS if set(pair) <= set(table.columns)), None)
    if columns is None:
        raise ValueError(f"{path}: no pixel positions; needed are pixel_x, pixel_y or x_px, y_px, found {list(table)}.")
    spots = table[list(columns)].set_axis(["x_px", "y_px"], axis=1).astype(np.float64)
    spots.index = _ids(table, path)
    if {"x", "y"} <= set(table.columns):
        spots["array_row"] = np.rint(table["y"].to_numpy()).astype(np.int64)
        spots["array_col"] = np.rint(table["x"].to_numpy()).astype(np.int64)
    if "selected" in table.columns:
        spots = spots[table["selected"].to_numpy() == 1]
    _check(spots, path)
    return spots


def _ids(table: pd.DataFrame, path: Path) -> pd.Index:
    named = next((column for column in ID_COLUMNS if column in table.columns), None)
    if named is not None:
        return pd.Index(table[named], name=None)
    if {"x", "y"} <= set(table.columns):
        return pd.Index(table["x"].astype(str) + "x" + table["y"].astype(str), name=None)
    raise ValueError(f"{path}: no spot ids; needed are x and y (id 'XxY'), spot, or barcode, found {list(table)}.")


def _check(spots: pd.DataFrame, path: Path) -> None:
    if not len(spots):
        raise ValueError(f"{path}: no spot is selected (column 'selected' is never 1).")
    duplicates = spots.index[spots.index.duplicated()].unique().tolist()
    if duplicates:
        raise ValueError(f"duplicate spot ids in {path}: {duplicates[:5]} ({len(duplicates)} of {len(spots)}).")
    lost = spots.index[~np.isfinite(spots[["x_px", "y_px"]]).all(axis=1)].tolist()
    if lost:
        raise ValueError(f"{path}: spots without a pixel position: {lost[:5]} ({len(lost)} of {len(spots)}).")
