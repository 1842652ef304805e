"""One file that shows a prediction to somebody who has nothing but a browser."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpredict import _spatialdata
from stpredict._arguments import check_arguments
from stpredict.tl._report import _facts
from stpredict.tl._report._content import content, score_rows
from stpredict.tl._report._measured import Scores, measured, scores
from stpredict.tl._report._page import page
from stpredict.tl._report._source import chosen_genes, find_source
from stpredict.tl.reliability import reliability

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

MOST_BYTES = 20_000_000


def report(
    sdata: SpatialData | str | Path,
    key: str,
    *,
    path: str | Path = "report.html",
    genes: str | Sequence[str] | None = None,
    n_genes: int = 250,
    layer: str | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str | None = None,
    tissue_key: str | None = None,
    mpp: float | None = None,
    min_counts: float | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML file that shows a prediction: maps over the H&E, and how far they can be trusted.

    The file holds its pictures, style and script, is below 20 MB, and opens in any browser without a network: predicted
    beside measured where counts are there, with a picker of genes; what is known of each gene and the verdict; domain
    and tissue; scores beside nulls and ceiling; provenance; and what the numbers do not say.

    Parameters
    ----------
    sdata : SpatialData | str | Path
        A SpatialData object, or the path of a .zarr store, which is only read.
    key : str
        Name of a prediction: of the layer, of the map, or of both.
    path : str | Path, default "report.html"
        The file.
    genes : str | Sequence[str], optional
        Genes that are drawn, in this order; None: all, up to `n_genes`.
    n_genes : int, default 250
        How many genes are drawn at most: those with the highest correlation on held-out data, or, where none is known,
        whose prediction varies most. The report says so, and its table lists all.
    layer : str, optional
        Layer of the table that holds raw counts; None: X.
    image_key : str, optional
        The H&E image; None: the only one.
    shapes_key : str, optional
        Which shapes, where the table annotates several.
    table_name : str, optional
        Table with the layer; None: the only one that has it.
    tissue_key : str, optional
        Shapes or labels that outline the tissue; None: the outline that `stp.pp.tissue` wrote, if there is one.
    mpp : float, optional
        Micrometres per pixel of the full-resolution image; None: found as for `stp.tl.predict`.
    min_counts : float, optional
        Total counts that a shape needs to be shown as measured, and scored; None: as for `stp.tl.evaluate`.
    title : str, optional
        Headline; None: the name of the section.
    overwrite : bool, default False
        Replace a file of that name; otherwise it raises.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        For a key that is no prediction (with those that there are), for a latent map, for genes that were not
        predicted, for an object without an H&E image, and for keys that are missing or not unique.
    FileNotFoundError
        For a store that is not there.
    FileExistsError
        For a file that is there already.
    OSError
        For a folder that cannot be written to.

    Notes
    -----
    Maps are reduced so that all of them have room, and hold 255 steps between the smallest and largest value of a gene.
    A map is shown after the model's link. Shapes beyond some thousands are drawn as a grid of their means. What is
    missing (no layer, no counts, no scale) is said on top of the report.

    Examples
    --------
    >>> stp.tl.report(slide, "ridge", path="report.html", shapes_key="spots").name
    'report.html'
    """
    check_arguments(report, locals())
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} is there already. Pass another path=, or overwrite=True to replace it.")
    sdata = _spatialdata.opened(sdata)
    source = find_source(
        sdata, key, image_key=image_key, shapes_key=shapes_key, table_name=table_name, tissue_key=tissue_key, mpp=mpp
    )
    known = None if source.layer is None else reliability(sdata, key, table_name=source.table_name)
    evidence = np.full(len(source.genes), np.nan) if known is None else known["val_pcc"].to_numpy()
    drawn, why = chosen_genes(source, genes, n_genes, evidence)
    found = measured(source, drawn, layer=layer, min_counts=min_counts)
    scored = Scores()
    if source.layer is not None and found.values is not None:
        scored = scores(source, layer=layer, min_counts=min_counts)
    made = content(source, drawn, found, known=known, scored=scored)
    columns, score_table = score_rows(source, scored)
    text = page(
        made.data,
        title=title or _spatialdata.section_name(sdata, source.image_key),
        key=key,
        unit=_facts.unit(source),
        cards=_facts.cards(source, known, found, scored, tissue_mm2=made.tissue_mm2),
        notices=_facts.notices(source, known, found, scored, made, n_drawn=len(drawn), why_drawn=why),
        limits=_facts.limits(source, found, factor=made.factor),
        provenance=_facts.provenance(source),
        score_columns=columns,
        scores=score_table,
        held_out="" if known is None else known.attrs["held_out"],
        dropped=found.dropped or {},
        n_used=found.n_used,
        min_counts=scored.min_counts,
    )
    _write(path, text, n_drawn=len(drawn))
    logger.info("report of %r with %d genes: %s (%.1f MB)", key, len(drawn), path, len(text.encode()) / 1e6)
    return path


def _write(path: Path, text: str, *, n_drawn: int) -> None:
    """Write the file, whole or not at all."""
    size = len(text.encode())
    if size > MOST_BYTES:
        raise ValueError(
            f"the report would have {size / 1e6:.0f} MB, more than the {MOST_BYTES / 1e6:.0f} that open everywhere. "
            f"Pass n_genes= below {n_drawn}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
