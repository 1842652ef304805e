"""A row a model: correlations and errors, mean and standard deviation over sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpredict.metrics import top_correlations

if TYPE_CHECKING:
    from collections.abc import Sequence

REFERENCES = ("log depth", "ceiling")  # rows that are no model, shown last
MEASURED = "measured"
COLUMNS = {
    "pcc_f": "PCC@F", "pcc_s": "PCC@S", "pcc_m": "ALL", "heg": "HEG", "hvg": "HVG", "mse": "MSE", "mae": "MAE",
    "spearman": "Spearman", "rvd": "RVD", "ssim": "SSIM", "morans_i_gap": "Moran's I gap",
}  # fmt: skip
SHOWN = ("pcc_f", "pcc_s", "pcc_m", "heg", "hvg", "mse", "mae")
KEYS = ["model", "seed", "fold", "section"]


def sections(result: pd.DataFrame, *, n_top: int = 50) -> pd.DataFrame:
    """The scores of every section: what all other tables average.

    result
        What `stp.tl.benchmark` returns.
    n_top
        Genes behind HEG and HVG: those with the highest mean and variance of the measured target in that section.

    Returns one row per model, seed, fold and section: pcc_f, pcc_s, pcc_m (over genes; NaN genes left out), heg, hvg,
    and the mean over genes of every other metric; diameter_um, n_genes, n_nan_genes (no pcc).
    Source: protocol stp-1, Correlation.
    """
    values = result[result["gene"].notna()]
    if values.empty:
        raise ValueError("this result holds no score: every run failed (its column `error` says why).")
    measured = dict(iter(values[values["model"] == MEASURED].groupby(["fold", "section"], sort=False)))
    rows = []
    for key, part in values[values["model"] != MEASURED].groupby(KEYS, sort=False, dropna=False):
        by_gene = part.pivot(index="gene", columns="metric", values="value")
        of = measured[key[2:]].pivot(index="gene", columns="metric", values="value").loc[by_gene.index]
        r, known = by_gene.pop("pcc").to_numpy(), {"n_genes": len(by_gene)}
        top = top_correlations(r, mean=of["mean"].to_numpy(), variance=of["variance"].to_numpy(), n_top=n_top)
        known |= {"n_nan_genes": int(np.isnan(r).sum()), "diameter_um": part["diameter_um"].iloc[0]}
        rows.append(dict(zip(KEYS, key, strict=True)) | top | by_gene.mean().to_dict() | known)
    return pd.DataFrame(rows)


def scores(
    result: pd.DataFrame, *, columns: Sequence[str] = SHOWN, n_top: int = 50, by: Sequence[str] = ("model",)
) -> pd.DataFrame:
    """Mean and standard deviation over sections: Table 2 of GeneQuery (HEG, HVG, ALL), F / S / M, MSE and MAE of EGN.

    columns
        Scores of `sections`, in the order in which they are shown.
    by
        What a row is: "model", with "fold" for a row a model and fold.

    Returns a row a model in the order of the benchmark, then log depth and ceiling; columns (score, "mean") and
    (score, "sd"). Seeds of a section are averaged first, so the standard deviation (n - 1) is that over sections; NaN
    for one section.
    Raises ValueError for scores that there are not.
    """
    frame = sections(result, n_top=n_top)
    unknown = [name for name in columns if name not in frame]
    if unknown:
        raise ValueError(
            f"columns={unknown} are no scores of this result: it has {[c for c in COLUMNS if c in frame]}."
        )
    keys = list(by)
    one = frame.groupby(list(dict.fromkeys([*keys, "fold", "section"])), sort=False)[list(columns)].mean()
    grouped = one.groupby(level=keys, sort=False)
    parts = {"mean": grouped.mean(), "sd": grouped.std()}
    table = pd.concat(parts, axis=1).swaplevel(axis=1)
    table = table[[(name, kind) for name in columns for kind in parts]].rename(columns=COLUMNS, level=0)
    model = table.index.get_level_values("model")
    return pd.concat([table[~model.isin(REFERENCES)], *(table[model == name] for name in REFERENCES)])


def cost(result: pd.DataFrame) -> pd.DataFrame:
    """What every model cost: median seconds of training a fold, largest memory in MB, parameters; and failed runs."""
    models = [m for m in dict.fromkeys(result["model"]) if m not in (*REFERENCES, MEASURED)]
    runs = result[result["model"].isin(models)].drop_duplicates(["model", "seed", "fold"])
    grouped = runs.groupby("model", sort=False)
    return pd.DataFrame(
        {
            "seconds": grouped["seconds"].median(),
            "peak MB": grouped["peak_mb"].max(),
            "parameters": grouped["n_parameters"].max(),
            "runs": grouped.size(),
            "failed": grouped["error"].count(),
        }
    )
