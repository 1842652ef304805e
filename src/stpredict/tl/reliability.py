"""What is known of how far each predicted gene can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpredict import _spatialdata
from stpredict._arguments import check_arguments
from stpredict.tl._predicted import predicted_layer

if TYPE_CHECKING:
    from spatialdata import SpatialData

LAST_IN_DOMAIN = 99.0  # percentile
NOT_PREDICTED, WEAK, MOST_OUTSIDE = 0.1, 0.3, 0.5

NO_EVIDENCE = "no held-out evidence"
OUTSIDE = "this tissue is outside what the model knows"
NOTHING = "not predicted on held-out data"
LIKE_RIDGE = "no better than Ridge on held-out data"
LITTLE = "weak on held-out data"
GOOD = "predicted on held-out data"
VERDICTS = (GOOD, LITTLE, LIKE_RIDGE, NOTHING, OUTSIDE, NO_EVIDENCE)


def reliability(sdata: SpatialData | str | Path, key: str, *, table_name: str | None = None) -> pd.DataFrame:
    """What is known of each predicted gene: on held-out data, and on this object.

    Parameters
    ----------
    sdata : SpatialData | str | Path
        A SpatialData object, or the path of a .zarr store, into which `stp.tl.predict` has written `key`.
    key : str
        Name of the predicted layer.
    table_name : str, optional
        Table with the layer; None: the only one that has it.

    Returns
    -------
    DataFrame
        A row a gene, in the order of the table. NaN: not known.

        - gene: its name.
        - val_pcc: correlation over held-out shapes when the model was trained.
        - ridge_pcc: what Ridge on colour statistics reached with the same training and held-out shapes.
        - ceiling: the correlation that a perfect predictor of the underlying mean could have reached.
        - val_rmse: root of the mean squared error on held-out shapes, in units of the target.
        - spread: of an ensemble, the standard deviation over its members, averaged over the shapes of this object.
        - in_domain: share of the shapes of this object that look like what the model was trained on (the same for all
          genes).
        - verdict: in words; see Notes.

        ``attrs["held_out"]`` says what was held out, "" where nothing is known.

    Raises
    ------
    ValueError
        For a layer that is not there.
    FileNotFoundError
        For a store that is not there.

    Notes
    -----
    The verdict is the first that holds: "no held-out evidence" (no correlation is known); "this tissue is outside what
    the model knows" (less than half of the shapes are in domain); "not predicted on held-out data" (a correlation below
    0.1); "no better than Ridge on held-out data"; "weak on held-out data" (below 0.3); else "predicted on held-out
    data". The limits are of thumb. None of this is a measurement on the tissue at hand: a gene that was predicted on
    held-out data may fail on another patient's.

    Examples
    --------
    >>> known = stp.tl.reliability(slide, "ridge")
    >>> known.columns[:4].tolist()
    ['gene', 'val_pcc', 'ridge_pcc', 'ceiling']
    """
    check_arguments(reliability, locals())
    sdata = _spatialdata.opened(sdata)
    layer = predicted_layer(sdata, key, table_name)
    sd = layer.values(f"{key}_sd") if "n_models" in layer.record else None
    frame = pd.DataFrame({"gene": layer.genes})
    for name in ("val_pcc", "val_ridge_pcc", "val_ceiling", "val_rmse"):
        frame[name if name in ("val_pcc", "val_rmse") else name.removeprefix("val_")] = layer.of_genes(f"{key}_{name}")
    predicted = None if sd is None else np.isfinite(sd).all(axis=1)
    frame["spread"] = np.nan if sd is None or predicted is None or not predicted.any() else sd[predicted].mean(axis=0)
    frame["in_domain"] = _share_in_domain(layer.table.obs, f"{key}_domain")
    frame["verdict"] = [_verdict(*row) for row in frame[["val_pcc", "ridge_pcc", "in_domain"]].to_numpy()]
    frame.attrs["held_out"] = str(layer.record.get("held_out", ""))
    return frame


def _share_in_domain(obs: pd.DataFrame, column: str) -> float:
    if column not in obs:
        return np.nan
    percentile = obs[column].to_numpy(dtype=np.float64)
    known = percentile[np.isfinite(percentile)]
    return float((known <= LAST_IN_DOMAIN).mean()) if len(known) else np.nan


def _verdict(pcc: float, ridge: float, in_domain: float) -> str:
    if np.isnan(pcc):
        return NO_EVIDENCE
    if in_domain < MOST_OUTSIDE:
        return OUTSIDE
    if pcc < NOT_PREDICTED:
        return NOTHING
    if pcc <= ridge:
        return LIKE_RIDGE
    return LITTLE if pcc < WEAK else GOOD
