"""Tables that compare: models with the first one, data sets, texts, scales, seen with unseen genes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stpredict._arguments import check_arguments
from stpredict.tables._scores import MEASURED, REFERENCES, scores, sections

BOOTSTRAP_FROM = 8  # sections
MAIN = ("heg", "hvg", "pcc_m")


def differences(
    result: pd.DataFrame, *, score: str = "pcc_m", first: str | None = None, n_draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Every model's score minus that of the first-named one, fold by fold.

    Parameters
    ----------
    result : DataFrame
        What `stp.tl.benchmark` returns.
    score : str, default "pcc_m"
        A score of `sections`.
    first : str, optional
        The model that others are compared with; None: the first of the benchmark.
    n_draws : int, default 10000
        Draws of the bootstrap.
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    DataFrame
        A row a model: a column a tested section (named with its fold where it is tested in several), and their mean,
        NaN for a model that failed in one. From eight sections up, also `low` and `high`: the 95 % interval of the mean
        by a bootstrap over sections (never over spots or blocks, which are neighbours). With fewer, the differences
        themselves are all that can be said.

    Raises
    ------
    ValueError
        For a model that is not in the result, where the first-named model has no score, and where `sections` raises it.

    References
    ----------
    Protocol stp-2, "Differences between models".

    Examples
    --------
    >>> stp.tables.differences(result, first="Ridge").shape[0]
    1
    """
    check_arguments(differences, locals())
    frame = sections(result)
    frame = frame[~frame["model"].isin(REFERENCES)]
    keys = ["model", "fold", "section"]
    table = frame.groupby(keys, sort=False)[score].mean().unstack(["fold", "section"], sort=False)
    if first not in (None, *result["model"]):
        raise ValueError(f"first={first!r} is no model of this result: {list(table.index)}.")
    first = _first(result) if first is None else first
    if first not in table.index or table.loc[first].isna().any():
        raise ValueError(
            f"{first!r}, with which others are compared, has not been scored in every fold; scored are "
            f"{list(table.dropna().index)}. Pass one of them as first=, or see the column `error` of the result."
        )
    table = table.drop(index=first) - table.loc[first]
    by_section = table.T.groupby(level="section", sort=False).mean().T.to_numpy()
    folds = table.columns.to_frame(index=False)
    several = folds["section"].duplicated(keep=False)
    table.columns = pd.Index(folds["section"].where(~several, folds["section"] + ", " + folds["fold"]))
    table.columns.name, table.index.name = None, f"{score} minus {first}"
    table["mean"] = table.to_numpy().mean(axis=1)
    n = by_section.shape[1]
    if n >= BOOTSTRAP_FROM:
        draws = np.random.default_rng(seed).integers(n, size=(n_draws, n))
        means = by_section[:, draws].mean(axis=2)
        table["low"], table["high"] = np.percentile(means, [2.5, 97.5], axis=1)
    return table


def _first(result: pd.DataFrame) -> str:
    """The first-named model of a benchmark, failed or not."""
    return next(name for name in result["model"] if name not in (*REFERENCES, MEASURED))


def transfer(result: pd.DataFrame) -> pd.DataFrame:
    """HEG, HVG and ALL a model and fold, for folds that train on one data set and test on another (Table 4).

    Parameters
    ----------
    result : DataFrame
        Of `stp.tl.benchmark(cv={"a to b": (sections of a, sections of b)})`.

    Returns
    -------
    DataFrame
        A row a model and fold.

    Raises
    ------
    ValueError
        Where `scores` raises it.
    """
    check_arguments(transfer, locals())
    return scores(result, columns=MAIN, by=("fold", "model"))


def scales(result: pd.DataFrame, *, score: str = "pcc_m") -> pd.DataFrame:
    """A score a model (rows) and diameter of the tested shapes in micrometres (columns): one map at many scales.

    Parameters
    ----------
    result : DataFrame
        Of `stp.tl.benchmark` with folds that train at one spot size and test at others.
    score : str, default "pcc_m"
        A score of `sections`.

    Returns
    -------
    DataFrame
        A row a model, a column a diameter.

    Raises
    ------
    ValueError
        Where `sections` raises it.
    """
    check_arguments(scales, locals())
    frame = sections(result)
    frame["um"] = frame["diameter_um"].round().astype(int)
    table = frame.groupby(["model", "um"], sort=False)[score].mean().unstack().sort_index(axis=1)
    table = table.loc[list(dict.fromkeys(frame["model"]))]
    table.columns = [f"{um} um" for um in table.columns]
    return table


def text(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """HEG, HVG and ALL a kind of text and model (Table 5).

    Parameters
    ----------
    results : Mapping[str, DataFrame]
        {kind of text ("definitions", "symbols", the name of an encoder): what `stp.tl.benchmark` returned with it}.

    Returns
    -------
    DataFrame
        A row a kind of text and model.

    Raises
    ------
    ValueError
        Where `scores` raises it.

    Examples
    --------
    >>> stp.tables.text({"symbols": result}).shape[0]
    2
    """
    check_arguments(text, locals())
    frames = {kind: scores(result, columns=MAIN) for kind, result in results.items()}
    table = pd.concat(frames, names=["text"])
    return table[~table.index.get_level_values("model").isin(REFERENCES)]


def unseen(frame: pd.DataFrame, *, genes: str = "unseen") -> pd.DataFrame:
    """HEG, HVG and ALL a share of seen genes, model and predictor, the nulls among them (Table 3).

    Parameters
    ----------
    frame : DataFrame
        What `stp.tl.unseen_genes` returns.
    genes : str, default "unseen"
        "seen", "unseen" or "all".

    Returns
    -------
    DataFrame
        Columns (score, "mean") and (score, "sd") over seeds; sections of a seed are averaged first.

    Raises
    ------
    ValueError
        For a frame that `stp.tl.unseen_genes` did not return, and for `genes` that it does not have.
    """
    check_arguments(unseen, locals())
    if "predictor" not in frame:
        raise ValueError("this is no result of stp.tl.unseen_genes; those of stp.tl.benchmark go to stp.tables.scores.")
    part = frame[frame["genes"] == genes]
    if part.empty:
        raise ValueError(f"genes={genes!r} must be one of {sorted(set(frame['genes']))}.")
    keys = ["share", "model", "predictor"]
    one = part.groupby([*keys, "seed"], sort=False)[list(MAIN)].mean()
    grouped = one.groupby(level=keys, sort=False)
    table = pd.concat({"mean": grouped.mean(), "sd": grouped.std()}, axis=1).swaplevel(axis=1)
    names = {"heg": "HEG", "hvg": "HVG", "pcc_m": "ALL"}
    return table[[(name, kind) for name in names for kind in ("mean", "sd")]].rename(columns=names, level=0)
