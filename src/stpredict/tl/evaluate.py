"""Scores of a predicted layer against what was measured."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpredict import _sdata, metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def evaluate(
    sdatas: SpatialData | Sequence[SpatialData],
    key: str,
    *,
    layer: str | None = None,
    table_name: str = "table",
    groups: Sequence[str] | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    tissue_key: str | None = None,
) -> pd.DataFrame:
    """Per-gene scores of a predicted layer by protocol stp-1, with two of the nulls beside them.

    sdatas
        Sections that hold raw counts and the predicted layer `key` of table `table_name`.
    layer
        Where raw counts are; None: X.
    groups
        One name a section (its patient); adds the column `group`.
    image_key, shapes_key, tissue_key
        As for `stp.tl.predict`: spots are scored that lie wholly on the image, under tissue, with at least 500 counts.

    Returns one row per section and predicted gene: section, gene, pcc, spearman, mse, mae (over spots, in target
    units), pcc_log_depth (a null: the truth against the log of the spot's total count), ceiling (the correlation that
    a perfect predictor could reach; NaN where counts are no raw counts). ``attrs["summary"]`` holds, a row a section,
    what `stp.metrics.summary` says (PCC@F / S / M, HEG, HVG, MSE, MAE, counts of spots and genes), plus n_dropped.

    Raises ValueError for a layer that is not there, and for sections without usable spots.
    """
    sdatas = [sdatas] if not isinstance(sdatas, Sequence) else list(sdatas)
    if groups is not None and len(groups) != len(sdatas):
        raise ValueError(f"groups names {len(groups)} groups for {len(sdatas)} sections; give one a section.")
    where: dict[str, Any] = {"image_key": image_key, "shapes_key": shapes_key, "tissue_key": tissue_key}
    frames, summaries = [], {}
    for i, sdata in enumerate(sdatas):
        name = _name(sdata, i, image_key)
        frame, summary = _one(sdata, key, layer, table_name, where)
        frame.insert(0, "section", name)
        if groups is not None:
            frame.insert(1, "group", groups[i])
        frames.append(frame)
        summaries[name] = summary
    result = pd.concat(frames, ignore_index=True)
    result.attrs["summary"] = pd.DataFrame(summaries).T.rename_axis("section")
    result.attrs["protocol"] = metrics.PROTOCOL
    return result


def _name(sdata: SpatialData, i: int, image_key: str | None) -> str:
    name = _sdata.section_name(sdata, _sdata.resolve_image(sdata, image_key))
    return name if name not in ("image", "slide") else f"{name}{i}"


def _one(
    sdata: SpatialData, key: str, layer: str | None, table_name: str, where: dict[str, Any]
) -> tuple[pd.DataFrame, pd.Series]:
    table = sdata.tables[table_name] if table_name in sdata.tables else None
    layers = [] if table is None else [name for name in table.layers if name is not None]
    if table is None:
        raise _sdata.missing_key(table_name, sdata.tables, what="table", argument="table_name")
    if key not in layers or key not in table.var:
        raise _sdata.missing_key(key, layers, what="predicted layer", argument="key")
    target = _target_of(table, key)
    rows, dropped = _sdata.usable_rows(sdata, table_name=table_name, layer=layer, target=target, **where)
    columns = np.flatnonzero(table.var[key].to_numpy(dtype=bool))
    pred = np.asarray(table.layers[key][np.ix_(rows, columns)], dtype=np.float64)
    seen = ~np.isnan(pred).any(axis=1)
    rows, pred = rows[seen], pred[seen]
    matrix = _sdata.matrix_of(table, layer, what=f"table {table_name!r}")[rows]
    true = _sdata.target(matrix, target=target, columns=columns, what=f"table {table_name!r}").astype(np.float64)
    frame = pd.DataFrame({"gene": table.var_names[columns].to_numpy()})
    for name in ("pcc", "spearman", "mse", "mae"):
        frame[name] = getattr(metrics, name)(pred, true)
    frame["pcc_log_depth"], frame["ceiling"] = _nulls(matrix, columns, true, target)
    summary = metrics.summary(pred, true)
    summary["n_dropped"] = float(sum(dropped.values()) + (~seen).sum())
    return frame, summary


def _target_of(table: object, key: str) -> _sdata.Target:
    record = table.uns.get("stpredict", {}).get(key, {})  # type: ignore[attr-defined]
    return record.get("target", "log1p_cp10k")


def _nulls(
    matrix: object, columns: NDArray[np.int64], true: NDArray[np.float64], target: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nothing = np.full(len(columns), np.nan)
    if target != "log1p_cp10k":
        return nothing, nothing
    depth = np.log(_sdata.totals(matrix))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ceiling = metrics.ceiling(matrix, columns)
    return metrics.pcc(np.broadcast_to(depth, true.shape), true), ceiling
