"""A row a model: correlations and errors, mean and standard deviation over sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpredict._arguments import check_arguments
from stpredict.metrics import METRICS, top_correlations

if TYPE_CHECKING:
    from collections.abc import Sequence

REFERENCES = ("log depth", "ceiling")  # rows that are no model, shown last
MEASURED = "measured"
SUMMARY = {"pcc_f": "PCC@F", "pcc_s": "PCC@S", "pcc_m": "ALL", "heg": "HEG", "hvg": "HVG"}  # figures of "pcc"
SHOWN = ("pcc_f", "pcc_s", "pcc_m", "heg", "hvg", "mse", "mae")
KEYS = ["model", "seed", "fold", "section"]


def sections(result: pd.DataFrame, *, n_top: int = 50) -> pd.DataFrame:
    """The scores of every section: what all other tables average.

    Parameters
    ----------
    result : DataFrame
        What `stp.tl.benchmark` returns.
    n_top : int, default 50
        Genes behind HEG and HVG: those with the highest mean and variance of the measured target in that section.

    Returns
    -------
    DataFrame
        One row per model, seed, fold and section: pcc_f, pcc_s, pcc_m (over genes; NaN genes left out), heg, hvg, and
        the mean over genes of every other metric; diameter_um, n_genes, n_nan_genes (no pcc).

    Raises
    ------
    ValueError
        For a frame that `stp.tl.benchmark` did not return, and for one of which every run failed.

    References
    ----------
    Protocol stp-2, Correlation.

    Examples
    --------
    >>> len(stp.tables.sections(result))
    8
    """
    check_arguments(sections, locals())
    _check_result(result)
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


def _titles() -> dict[str, str]:
    """What every score of `sections` is called, those that are shown unasked first."""
    of_metrics = {name: metric.title for name, metric in METRICS.items() if name != "pcc"}
    known = SUMMARY | of_metrics
    return {name: known[name] for name in SHOWN} | known


def _check_result(result: pd.DataFrame) -> None:
    """Raise ValueError for a frame that `stp.tl.benchmark` did not make."""
    if "predictor" in result:
        raise ValueError("this is no result of stp.tl.benchmark; those of stp.tl.unseen_genes go to stp.tables.unseen.")
    lacking = [name for name in (*KEYS, "gene", "metric", "value", "error") if name not in result]
    if lacking:
        raise ValueError(
            f"result is no frame of stp.tl.benchmark: it lacks the columns {lacking}, and has "
            f"{[str(name) for name in result.columns[:8]]}."
        )
    protocols = sorted(result["protocol"].dropna().unique()) if "protocol" in result else []
    if len(protocols) > 1:
        raise ValueError(
            f"result mixes the protocols {protocols}, whose labels differ: scores under one say nothing of scores "
            'under another. Make a table of each: result[result["protocol"] == ...].'
        )


def scores(
    result: pd.DataFrame, *, columns: Sequence[str] = SHOWN, n_top: int = 50, by: Sequence[str] = ("model",)
) -> pd.DataFrame:
    """Mean and standard deviation over sections: Table 2 of GeneQuery (HEG, HVG, ALL), F / S / M, MSE and MAE of EGN.

    Parameters
    ----------
    result : DataFrame
        What `stp.tl.benchmark` returns.
    columns : Sequence[str], default SHOWN
        Scores of `sections`, in the order in which they are shown.
    n_top : int, default 50
        Genes behind HEG and HVG, see `sections`.
    by : Sequence[str], default ("model",)
        What a row is: "model", with "fold" for a row a model and fold.

    Returns
    -------
    DataFrame
        A row a model in the order of the benchmark, then log depth and ceiling; columns (score, "mean") and (score,
        "sd"). Seeds of a section are averaged first, so the standard deviation (n - 1) is that over sections; NaN for
        one section. A model that failed in some fold is NaN: a mean over the folds it survived is another score.

    Raises
    ------
    ValueError
        For scores that there are not, and where `sections` raises it.

    Examples
    --------
    >>> stp.tables.scores(result).index.tolist()
    ['Ridge', 'Mean', 'log depth', 'ceiling']
    """
    check_arguments(scores, locals())
    frame, titles = sections(result, n_top=n_top), _titles()
    unknown = [name for name in columns if name not in frame]
    if unknown:
        raise ValueError(f"columns={unknown} are no scores of this result: it has {[c for c in titles if c in frame]}.")
    keys = list(by)
    one = frame.groupby(list(dict.fromkeys([*keys, "fold", "section"])), sort=False)[list(columns)].mean()
    grouped = one.groupby(level=keys, sort=False)
    whole = _whole(result, grouped.size(), keys)
    parts = {
        kind: values.reindex(whole.index).where(whole)
        for kind, values in (("mean", grouped.mean()), ("sd", grouped.std()))
    }
    table = pd.concat(parts, axis=1).swaplevel(axis=1)
    table = table[[(name, kind) for name in columns for kind in parts]].rename(columns=titles, level=0)
    model = table.index.get_level_values("model")
    return pd.concat([table[~model.isin(REFERENCES)], *(table[model == name] for name in REFERENCES)])


def pooled(result: pd.DataFrame) -> pd.DataFrame:
    """PCC over the spots of all test sections together, the mean over genes: the other convention, for comparison only.

    A gene that merely differs between sections correlates here; protocol stp-2 scores section by section.

    Parameters
    ----------
    result : DataFrame
        What `stp.tl.benchmark` returns.

    Returns
    -------
    DataFrame
        A row a model, the column "pooled PCC" (mean over seeds); NaN for a model that failed in some fold.

    Raises
    ------
    ValueError
        For a frame that `stp.tl.benchmark` did not return, and for one of an earlier version, which has no moments to
        pool.

    Examples
    --------
    >>> sorted(stp.tables.pooled(result).index)
    ['Mean', 'Ridge']
    """
    check_arguments(pooled, locals())
    _check_result(result)
    names = ["n_spots", "mean_pred", "mean_true", "var_pred", "var_true", "cov"]
    part = result[result["metric"].isin(names)]
    if part.empty:
        raise ValueError("this result has no moments to pool: it was made by an earlier version.")
    wide = part.pivot(index=["model", "seed", "gene", "fold", "section"], columns="metric", values="value")
    keys = ["model", "seed", "gene"]
    share = wide["n_spots"] / wide.groupby(keys)["n_spots"].transform("sum")
    away = {}
    for name in ("pred", "true"):
        mean = (share * wide[f"mean_{name}"]).groupby(keys).transform("sum")
        away[name] = wide[f"mean_{name}"] - mean
    parts = {
        "cov": share * (wide["cov"] + away["pred"] * away["true"]),
        "pred": share * (wide["var_pred"] + away["pred"] ** 2),
        "true": share * (wide["var_true"] + away["true"] ** 2),
    }
    sums = {name: values.groupby(keys).sum() for name, values in parts.items()}
    scale = np.sqrt(sums["pred"] * sums["true"])
    r = (sums["cov"] / scale.where(scale > 1e-12)).groupby(["model", "seed"]).mean().groupby("model").mean()
    sizes = wide.reset_index()[["model", "fold", "section"]].drop_duplicates().groupby("model").size()
    whole = _whole(result[~result["model"].isin(REFERENCES)], sizes, ["model"])
    return r.reindex(whole.index).where(whole).to_frame("pooled PCC")


def _whole(result: pd.DataFrame, n_found: pd.Series, keys: list[str]) -> pd.Series:
    """For every row of the table (failed models too), whether it has all sections of its folds."""
    wanted = result.loc[result["model"] == MEASURED, ["fold", "section"]].drop_duplicates()
    rows = result.loc[result["model"] != MEASURED, keys].drop_duplicates()
    per_fold = wanted.groupby("fold").size()
    n_wanted = rows["fold"].map(per_fold).to_numpy() if "fold" in keys else len(wanted)
    index = pd.MultiIndex.from_frame(rows) if len(keys) > 1 else pd.Index(rows[keys[0]], name=keys[0])
    return pd.Series(n_found.reindex(index).fillna(0).to_numpy() == n_wanted, index=index)


def cost(result: pd.DataFrame) -> pd.DataFrame:
    """What every model cost: median seconds of training a fold, largest memory in MB, parameters; and failed runs.

    Features of a frozen encoder that two models share are computed by the first that asks and remembered, so seconds of
    later ones lack that; memory is what the process took beyond what it had when the run began.

    Parameters
    ----------
    result : DataFrame
        What `stp.tl.benchmark` returns.

    Returns
    -------
    DataFrame
        A row a model.

    Raises
    ------
    ValueError
        For a frame that `stp.tl.benchmark` did not return.

    Examples
    --------
    >>> int(stp.tables.cost(result).loc["Mean", "parameters"])
    0
    """
    check_arguments(cost, locals())
    _check_result(result)
    models = [m for m in dict.fromkeys(result["model"]) if m not in (*REFERENCES, MEASURED)]
    runs = result[result["model"].isin(models)].drop_duplicates(["model", "seed", "fold"])
    grouped = runs.groupby("model", sort=False)
    return pd.DataFrame(
        {
            "seconds": grouped["seconds"].median(),
            "peak MB": grouped["peak_mb"].max(),
            "parameters": grouped["n_parameters"].max().astype("Int64"),
            "runs": grouped.size(),
            "failed": grouped["error"].count(),
        }
    )
