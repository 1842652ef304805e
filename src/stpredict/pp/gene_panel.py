"""Choose the genes that a model predicts, by highest mean or highest variance in the training sections."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict._spatialdata import (
    SectionSpec,
    Target,
    all_opened,
    is_gene,
    matrix_of,
    sparse_target,
    specs_of,
    usable_rows,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("stpredict")


def gene_panel(
    sdatas: Sequence[SpatialData | str | Path],
    *,
    n_genes: int,
    by: Literal["mean", "hvg_union"] = "mean",
    min_spots: int | None = None,
    among: Collection[str] | None = None,
    table_name: str | Sequence[str] = "table",
    layer: str | None = None,
    target: Target = "log1p_cp10k",
    image_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    tissue_key: str | None = None,
    min_counts: float | None = None,
) -> list[str]:
    """The ordered genes of a panel, chosen from the usable spots of training sections by the rule of protocol stp-2.

    Parameters
    ----------
    sdatas : Sequence[SpatialData | str | Path]
        Training sections only (objects, or paths of stores): a panel that has seen the test section makes a score too
        good.
    n_genes : int
        Size of the panel. For "mean" the number of genes; for "hvg_union" the number that each section contributes to
        the union.
    by : {"mean", "hvg_union"}, default "mean"
        "mean": the genes with the highest mean of the target, the average of the sections' means. "hvg_union": the
        union of each section's genes with the highest population variance of the target, ordered by the average of the
        sections' variances. Only genes that all sections have are candidates; ties go by gene name.
    min_spots : int, optional
        For "hvg_union": keep genes with a count in at least this many usable spots of all sections; None: all.
    among : Collection[str], optional
        Candidates, such as the genes that the test sections have; None: every gene.
    table_name : str | Sequence[str], default "table"
        What was measured, and which spots are usable, as in `tl.train`.
    layer : str, optional
        What was measured, and which spots are usable, as in `tl.train`.
    target : {"log1p_cp10k", "as_is"}, default "log1p_cp10k"
        What was measured, and which spots are usable, as in `tl.train`.
    image_key, shapes_key : str | Sequence[str], optional
        What was measured, and which spots are usable, as in `tl.train`; several names make as many sections of every
        object, each of which weighs the same.
    tissue_key : str, optional
        What was measured, and which spots are usable, as in `tl.train`.
    min_counts : float, optional
        Total counts that a spot, bin or cell needs to be used. None: 500 from the area of a 55-um spot up, less in
        proportion to a smaller median area (`stp.metrics.default_min_counts`).

    Returns
    -------
    list[str]
        The names of the genes, in the order of the panel.

    Raises
    ------
    ValueError
        For no sections, no common genes, an empty panel, fewer genes than asked, and input that `tl.train` would
        refuse.
    FileNotFoundError
        For a store that is not there.

    Examples
    --------
    >>> stp.pp.gene_panel([train], n_genes=3)
    ['RPS18', 'RPL13', 'MT-CO3']
    """
    check_arguments(gene_panel, locals())
    _check(by, min_spots)
    opened = all_opened(sdatas)
    spec = SectionSpec(layer=layer, target=target, tissue_key=tissue_key, min_counts=min_counts)
    specs = specs_of(spec, image_key=image_key, shapes_key=shapes_key, table_name=table_name)
    sections = [_statistics(sdata, each) for sdata in opened for each in specs]
    shared = set.intersection(*(set(table.index) for table in sections))
    common = sorted(shared if among is None else shared & set(among))
    _check_common(common, sections, n_genes, among)
    sections = [table.loc[common] for table in sections]
    mean, variance, seen = (
        np.array([table[column].to_numpy() for table in sections]) for column in ("mean", "variance", "n_spots")
    )
    names = np.array(common, dtype=object)
    if by == "mean":
        panel = _top(mean.mean(axis=0), names, n_genes)
    else:
        union = set().union(*(_top(of_section, names, n_genes) for of_section in variance))
        enough = np.array([name in union for name in common]) & (seen.sum(axis=0) >= (min_spots or 0))
        panel = _top(variance.mean(axis=0)[enough], names[enough], int(enough.sum()))
    if not panel:
        raise ValueError(
            f"the panel is empty: none of {len(union)} variable genes is seen in {min_spots} spots. Lower min_spots=."
        )
    logger.info(
        "panel of %d genes by %s from %d sections with %d common genes", len(panel), by, len(sections), len(common)
    )
    return panel


def _statistics(sdata: SpatialData, spec: SectionSpec) -> pd.DataFrame:
    """Per gene of one section, over its usable spots: mean and population variance of the target, spots that see it."""
    rows, _ = usable_rows(sdata, spec)
    table = sdata.tables[spec.table_name]
    what = f"table {spec.table_name!r}"
    values = sparse_target(matrix_of(table, spec.layer, what=what)[rows], target=spec.target, what=what)
    mean = np.asarray(values.sum(axis=0)).ravel() / len(rows)
    squares = np.asarray(values.multiply(values).sum(axis=0)).ravel() / len(rows)
    frame = pd.DataFrame(
        {"mean": mean, "variance": np.maximum(squares - mean**2, 0.0), "n_spots": _n_stored(values)},
        index=table.var_names.astype(str),
    )
    names = table.var_names.astype(str)
    duplicated = names.duplicated(keep=False)
    if duplicated.any():
        logger.info("%s: %d genes whose name occurs twice are no candidates", what, len(set(names[duplicated])))
    return frame[is_gene(table) & ~duplicated]


def _n_stored(values) -> NDArray[np.int64]:
    return np.bincount(values.indices, minlength=values.shape[1])


def _top(score: NDArray[np.float64], names: NDArray[np.object_], n: int) -> list[str]:
    """The n names with the highest score, in falling order; ties by name."""
    return names[np.lexsort((names.astype(str), -score))[:n]].tolist()


def _check(by: str, min_spots: int | None) -> None:
    if min_spots is not None and by == "mean":
        raise ValueError('min_spots= belongs to by="hvg_union"; by="mean" ranks by the mean alone.')


def _with(among: Collection[str] | None) -> str:
    if among is None:
        return ""
    return f" with the {len(among)} candidates" if among else " with the others of the fold, which are tested"


def _check_common(common: list[str], sections: list[pd.DataFrame], n_genes: int, among: Collection[str] | None) -> None:
    if not common:
        message = "; ".join(str(table.index[:3].tolist()) for table in sections[:4])
        raise ValueError(
            f"the panel is empty: the {len(sections)} sections have no gene in common{_with(among)}. They begin with "
            f"{message}. Bring them to one kind of identifier and one species."
        )
    if len(common) < n_genes:
        raise ValueError(
            f"{n_genes} genes were asked, but the {len(sections)} sections have only {len(common)} in common"
            f"{'' if among is None else f' that are among the {len(among)} candidates'}. Lower n_genes=."
        )
