"""Scores of a predicted layer against what was measured."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpredict import _spatialdata, metrics
from stpredict._arguments import check_arguments
from stpredict._frames import ScoresFrame, named
from stpredict._messages import warn

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


class SummaryFrame(pd.DataFrame):
    """A data frame that equals another as a whole, which pandas asks of what `attrs` hold when it joins frames.

    ``a == b`` is one truth value, not a frame of them; `DataFrame.eq` compares element by element.
    """

    @property
    def _constructor(self) -> type[SummaryFrame]:
        return SummaryFrame

    def __eq__(self, other: object) -> bool:
        return isinstance(other, pd.DataFrame) and self.equals(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def evaluate(
    sdatas: SpatialData | str | Path | Sequence[SpatialData | str | Path],
    key: str,
    *,
    layer: str | None = None,
    table_name: str = "table",
    groups: Sequence[str] | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    tissue_key: str | None = None,
    min_counts: float | None = None,
    scores: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Per-gene scores of a predicted layer by protocol stp-2, with two of the nulls beside them.

    Parameters
    ----------
    sdatas : SpatialData | str | Path | Sequence[SpatialData | str | Path]
        Sections (objects, or paths of stores) that hold raw counts and the predicted layer `key` of table `table_name`.
    key : str
        Name of the predicted layer.
    layer : str, optional
        Layer of the table that holds raw counts; None: X.
    table_name : str, default "table"
        Table that holds the counts and the predicted layer.
    groups : Sequence[str], optional
        One name a section (its patient); adds the column `group`.
    image_key, shapes_key, tissue_key : str, optional
        As for `stp.tl.predict`: spots are scored that lie wholly on the image, under tissue, with enough counts. Of a
        table that annotates several samples, `shapes_key` says which one is scored.
    min_counts : float, optional
        Total counts that a spot, bin or cell needs to be used. None: 500 from the area of a 55-um spot up, less in
        proportion to a smaller median area (`stp.metrics.default_min_counts`).
    scores : Sequence[str], optional
        Which metrics, by their names in `stp.metrics.METRICS`, of those that need values alone. None: all that apply.

    Returns
    -------
    DataFrame
        One row per section and predicted gene: section, gene, seen (whether its counts were trained on), pcc, spearman,
        mse, mae (over spots, in target units), pcc_log_depth (a null: the truth against the log of the spot's total
        count), ceiling (the correlation that a perfect predictor could reach; NaN where counts are no raw counts).
        ``attrs["summary"]`` holds, a row a section, what `stp.metrics.summary` says (PCC@F / S / M, HEG, HVG, MSE, MAE,
        counts of spots and genes), plus log_depth and ceiling (means over genes) and n_dropped; where some genes were
        never trained on, ``attrs["summary_unseen"]`` and ``attrs["summary_seen"]`` the same for either kind. An unseen
        gene has no scale of its own, so its mse and mae are NaN, and count in no mean. ``attrs["min_counts"]`` says for
        each section how many counts a shape needed (None: the target is no count), and ``attrs["targeted_panel"]`` for
        those whose table has fewer than 7,000 genes how many: their totals, and with them mse and mae, do not compare
        with those of a whole transcriptome. ``attrs["trained_on"]`` says for each whether the model was trained on its
        image (None: its card has no hashes of images, or the image cannot be read); scores of such a section are no
        evidence, and a warning says so. A region of a table of several samples is called by its object and its shapes.

    Raises
    ------
    ValueError
        For a layer that is not there or holds no predictions, for sections without usable spots, and for mse or mae of
        genes that the model never saw.
    FileNotFoundError
        For a store that is not there.

    Notes
    -----
    Which genes were predicted, ``var[key]`` and ``uns["stpredict"][key]`` say. A table that has neither
    (`spatialdata.concatenate` drops them unless it is given merge="same", uns_merge="same") is scored all the same,
    with a warning: the genes that have values in the layer, as log1p cp10k, all as if their counts were trained on.

    References
    ----------
    Protocol stp-2; for genes never seen its section "Unseen genes".

    Examples
    --------
    >>> scores = stp.tl.evaluate(slide, "ridge", shapes_key="spots")
    >>> sorted(scores["gene"]) == sorted(genes), "pcc" in scores
    (True, True)
    """
    check_arguments(evaluate, locals())
    sections = _spatialdata.all_opened(sdatas)
    if groups is not None and len(groups) != len(sections):
        raise ValueError(f"groups names {len(groups)} groups for {len(sections)} sections; give one a section.")
    of_layers = _layer_metrics()
    unknown = sorted(set(scores or ()) - set(of_layers))
    if unknown:
        raise ValueError(f"scores={unknown} are unknown: choose from {tuple(of_layers)}.")
    spec = _spatialdata.SectionSpec(
        image_key=image_key, shapes_key=shapes_key, table_name=table_name, layer=layer, tissue_key=tissue_key,
        min_counts=min_counts,
    )  # fmt: skip
    frames = []
    record: dict[str, dict[str, Any]] = {"min_counts": {}, "targeted_panel": {}, "trained_on": {}}
    summaries: dict[str, dict[str, pd.Series]] = {"summary": {}, "summary_seen": {}, "summary_unseen": {}}
    for i, sdata in enumerate(sections):
        own = _own(sdata, key, spec)
        name = _name(sdata, i, own)
        frame, found = _one(sdata, key, own, scores)
        record["min_counts"][name] = None if own.target == "as_is" else own.min_counts
        record["trained_on"][name] = _trained_on(sdata, key, own, name)
        if own.target != "as_is" and (n_genes := _spatialdata.n_targeted_genes(sdata.tables[table_name])):
            record["targeted_panel"][name] = n_genes
        frame.insert(0, "section", name)
        if groups is not None:
            frame.insert(1, "group", groups[i])
        frames.append(frame)
        for kind, summary in found.items():
            summaries[kind][name] = summary
    result = pd.concat(frames, ignore_index=True)
    for kind, of in summaries.items():
        if of:
            result.attrs[kind] = SummaryFrame(pd.DataFrame(of).T.rename_axis("section"))
    result.attrs |= {"protocol": metrics.PROTOCOL} | record
    return named(result, ScoresFrame)


def _own(sdata: SpatialData, key: str, spec: _spatialdata.SectionSpec) -> _spatialdata.SectionSpec:
    """The spec of one object: its image and shapes, the target of its layer, and the counts that a shape needs."""
    target = _target_of(_table_with(sdata, spec.table_name, key), key)
    spec = replace(spec, target=target).resolved(sdata)
    return replace(spec, min_counts=_spatialdata.needed_counts(sdata, spec))


def _name(sdata: SpatialData, i: int, spec: _spatialdata.SectionSpec) -> str:
    """What the section is called; with its shapes where the table annotates those of several samples."""
    name = _spatialdata.section_name(sdata, spec.image)
    name = name if name not in ("image", "slide") else f"{name}{i}"
    several = len(_spatialdata.regions(sdata.tables[spec.table_name])) > 1
    return f"{name}/{spec.shapes}" if several else name


def _one(
    sdata: SpatialData, key: str, spec: _spatialdata.SectionSpec, scores: Sequence[str] | None
) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    table, what = _table_with(sdata, spec.table_name, key), f"table {spec.table_name!r}"
    rows, dropped = _spatialdata.usable_rows(sdata, spec)
    columns = _predicted_columns(table, key, rows, what=what)
    seen = ~table.var_names[columns].isin(_record(table, key).get("unseen_genes", []))
    _check_scores(scores, table.var_names[columns][~seen])
    pred = np.asarray(table.layers[key][np.ix_(rows, columns)], dtype=np.float64)
    there = ~np.isnan(pred).any(axis=1)
    rows, pred = rows[there], pred[there]
    matrix = _spatialdata.matrix_of(table, spec.layer, what=what)[rows]
    true = _spatialdata.target(matrix, target=spec.target, columns=columns, what=what).astype(np.float64)
    frame = pd.DataFrame({"gene": table.var_names[columns].to_numpy(), "seen": seen})
    of_layers = _layer_metrics()
    for name in of_layers if scores is None else scores:
        values = of_layers[name].function(pred, true)
        frame[name] = values if of_layers[name].scale_free else np.where(seen, values, np.nan)
    frame["pcc_log_depth"], frame["ceiling"] = nulls(matrix, columns, true, spec.target)
    n_dropped = float(sum(dropped.values()) + (~there).sum())
    return frame, _summaries(pred, true, frame, n_dropped)


def _summaries(
    pred: NDArray[np.float64], true: NDArray[np.float64], frame: pd.DataFrame, n_dropped: float
) -> dict[str, pd.Series]:
    seen = frame["seen"].to_numpy()
    kinds = {"summary": np.ones_like(seen)}
    if not seen.all():
        kinds |= {"summary_seen": seen, "summary_unseen": ~seen}
    found = {}
    for kind, columns in kinds.items():
        if columns.any():
            found[kind] = metrics.summary(pred[:, columns], true[:, columns])
            found[kind]["log_depth"] = frame["pcc_log_depth"][columns].mean()
            found[kind]["ceiling"] = frame["ceiling"][columns].mean()
            found[kind]["n_dropped"] = n_dropped
            if not seen[columns].all():
                scaled = columns & seen
                for name in ("mse", "mae"):
                    errors = getattr(metrics, name)(pred[:, scaled], true[:, scaled])
                    found[kind][name] = errors.mean() if scaled.any() else np.nan
    return found


def _table_with(sdata: SpatialData, table_name: str, key: str) -> Any:
    if table_name not in sdata.tables:
        raise _spatialdata.missing_key(table_name, sdata.tables, what="table", argument="table_name")
    table = sdata.tables[table_name]
    layers = [name for name in table.layers if name is not None]
    if key not in layers:
        raise _spatialdata.missing_key(key, layers, what="predicted layer", argument="key")
    return table


def _predicted_columns(table: AnnData, key: str, rows: NDArray[np.int64], *, what: str) -> NDArray[np.int64]:
    """Where the genes of a predicted layer stand: by var, else by its record, else those that have values in `rows`.

    Raises ValueError for a layer that cannot be a prediction. Warns where the layer alone tells.
    """
    if key in table.var and table.var[key].dtype == bool:
        return np.flatnonzero(table.var[key].to_numpy())
    layer: Any = table.layers[key]
    values = layer[rows] if isinstance(layer, np.ndarray) and layer.dtype.kind == "f" else np.empty((0, table.n_vars))
    there = np.isfinite(values)
    columns = np.flatnonzero(there.any(axis=0))
    if not len(columns) or not (values[there] % 1).any():
        raise ValueError(
            f"{what} has the layer {key!r}, but neither var[{key!r}], which marks the genes that stp.tl.predict "
            "predicted, nor values that could be predictions: "
            + ("it is no dense array of floats" if not len(values) else "it holds whole numbers or NaN alone")
            + ". Pass key= of a predicted layer, or predict again."
        )
    if genes := set(map(str, _record(table, key).get("genes", ()))):
        return np.flatnonzero(table.var_names.isin(genes))
    warn(
        f"{what} has the layer {key!r} without var[{key!r}] and uns['stpredict'][{key!r}], which say of which genes "
        "and in which units it is; spatialdata.concatenate and anndata.concat drop them unless they are given "
        f"merge='same', uns_merge='same'. Scored are the {len(columns)} genes that have values in it, as log1p_cp10k.",
    )
    return columns


def _layer_metrics() -> dict[str, metrics.Metric]:
    return {name: metric for name, metric in metrics.METRICS.items() if metric.scores_layers}


def _check_scores(scores: Sequence[str] | None, unseen: Sequence[str]) -> None:
    of_layers = _layer_metrics()
    wrong = [name for name in scores or () if not of_layers[name].scale_free]
    if wrong and len(unseen):
        free = " or ".join(repr(name) for name, metric in of_layers.items() if metric.scale_free)
        raise ValueError(
            f"{wrong} cannot be given for genes that the model never saw: nothing of their counts was used, so their "
            f"predictions have no unit. {len(unseen)} are of this kind, such as {list(unseen[:3])}. Ask for {free}, "
            "or predict only genes of the panel."
        )


def _record(table: AnnData, key: str) -> Mapping[str, Any]:
    return table.uns.get("stpredict", {}).get(key, {})


def _trained_on(sdata: SpatialData, key: str, spec: _spatialdata.SectionSpec, name: str) -> bool | None:
    """Whether the model was trained on this image, as far as its record knows; warns where it was."""
    record = _record(sdata.tables[spec.table_name], key)
    if "training_images" not in record:
        return None
    try:
        trained = _spatialdata.picture_digest(sdata, spec.image) in record["training_images"]
    except OSError:  # scores need no pixel
        return None
    if trained:
        warn(
            f"section {name!r}: this {record.get('model', 'model')} was trained on its image, so that its scores here "
            "may be better than on any other slide. Score sections that it has not seen: leave them out of "
            "stp.tl.train, or let stp.tl.benchmark do so in turn."
        )
    return trained


def _target_of(table: AnnData, key: str) -> _spatialdata.Target:
    return _record(table, key).get("target", "log1p_cp10k")


def nulls(
    matrix: object, columns: NDArray[np.int64], true: NDArray[np.float64], target: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(g,) correlation of the measured target with the log of the spot's total, and ceiling; NaN without raw counts.

    Parameters
    ----------
    matrix, columns, true
        Counts of the scored spots over all genes; positions of the scored genes; their target (n, g).

    References
    ----------
    Protocol stp-2, Nulls and Ceiling.
    """
    nothing = np.full(len(columns), np.nan)
    if target != "log1p_cp10k":
        return nothing, nothing
    depth = np.log(_spatialdata.totals(matrix))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ceiling = metrics.ceiling(matrix, columns)
    return metrics.pcc(np.broadcast_to(depth, true.shape), true), ceiling
