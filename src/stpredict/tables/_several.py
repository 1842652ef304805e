"""Tables that compare: models with the first one, data sets, texts, scales, seen with unseen genes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stpredict.tables._scores import REFERENCES, scores, sections

BOOTSTRAP_FROM = 8  # sections
MAIN = ("heg", "hvg", "pcc_m")


def differences(
    result: pd.DataFrame, *, score: str = "pcc_m", first: str | None = None, n_draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Every model's score minus that of the first-named one, section by section.

    first
        The model that others are compared with; None: the first of the benchmark.
    n_draws, seed
        Of the bootstrap.

    Returns a row a model: a column a section, and their mean. From eight sections up, also `low` and `high`: the 95 %
    interval of the mean by a bootstrap over sections (never over spots, which are neighbours). With fewer, the
    differences themselves are all that can be said.
    Source: protocol stp-1, "Differences between models".
    """
    frame = sections(result)
    frame = frame[~frame["model"].isin(REFERENCES)]
    by_section = frame.groupby(["model", "section"], sort=False)[score].mean().unstack(sort=False)
    first = by_section.index[0] if first is None else first
    if first not in by_section.index:
        raise ValueError(f"first={first!r} is no model of this result: {list(by_section.index)}.")
    table = by_section.drop(index=first) - by_section.loc[first]
    table.index.name = f"{score} minus {first}"
    table.columns.name = None
    n = table.shape[1]
    values = table.to_numpy()
    table["mean"] = values.mean(axis=1)
    if n >= BOOTSTRAP_FROM:
        draws = np.random.default_rng(seed).integers(n, size=(n_draws, n))
        means = values[:, draws].mean(axis=2)
        table["low"], table["high"] = np.percentile(means, [2.5, 97.5], axis=1)
    return table


def transfer(result: pd.DataFrame) -> pd.DataFrame:
    """HEG, HVG and ALL a model and fold, for folds that train on one data set and test on another (Table 4).

    result
        Of `stp.tl.benchmark(cv={"a to b": (sections of a, sections of b)})`.
    """
    return scores(result, columns=MAIN, by=("fold", "model"))


def scales(result: pd.DataFrame, *, score: str = "pcc_m") -> pd.DataFrame:
    """A score a model (rows) and diameter of the tested shapes in micrometres (columns): one map at many scales.

    result
        Of `stp.tl.benchmark` with folds that train at one spot size and test at others.
    """
    frame = sections(result)
    frame["um"] = frame["diameter_um"].round().astype(int)
    table = frame.groupby(["model", "um"], sort=False)[score].mean().unstack().sort_index(axis=1)
    table = table.loc[list(dict.fromkeys(frame["model"]))]
    table.columns = [f"{um} um" for um in table.columns]
    return table


def text(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """HEG, HVG and ALL a kind of text and model (Table 5).

    results
        {kind of text ("definitions", "symbols", the name of an encoder): what `stp.tl.benchmark` returned with it}.
    """
    frames = {kind: scores(result, columns=MAIN) for kind, result in results.items()}
    table = pd.concat(frames, names=["text"])
    return table[~table.index.get_level_values("model").isin(REFERENCES)]


def unseen(frame: pd.DataFrame, *, genes: str = "unseen") -> pd.DataFrame:
    """HEG, HVG and ALL a share of seen genes, model and predictor, the nulls among them (Table 3).

    frame
        What `stp.tl.unseen_genes` returns.
    genes
        "seen", "unseen" or "all".

    Returns columns (score, "mean") and (score, "sd") over seeds; sections of a seed are averaged first.
    """
    part = frame[frame["genes"] == genes]
    if part.empty:
        raise ValueError(f"genes={genes!r} must be one of {sorted(set(frame['genes']))}.")
    keys = ["share", "model", "predictor"]
    one = part.groupby([*keys, "seed"], sort=False)[list(MAIN)].mean()
    grouped = one.groupby(level=keys, sort=False)
    table = pd.concat({"mean": grouped.mean(), "sd": grouped.std()}, axis=1).swaplevel(axis=1)
    names = {"heg": "HEG", "hvg": "HVG", "pcc_m": "ALL"}
    return table[[(name, kind) for name in names for kind in ("mean", "sd")]].rename(columns=names, level=0)
