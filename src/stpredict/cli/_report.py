"""`stpredict report`: write a prediction as one HTML file that opens in any browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import stpredict as stp
from stpredict.cli._options import (
    DATA,
    RESULT,
    ImageKey,
    ImageMpp,
    Layer,
    MinCounts,
    check_store,
    gene_names,
    of_verb,
)


def report(
    store: Annotated[Path, Parameter(help="A SpatialData store (.zarr); it is only read.")],
    /,
    *,
    key: Annotated[str, of_verb("tl.report", "key")] = "pixnet",
    path: Annotated[Path, of_verb("tl.report", "path", group=RESULT)] = Path("report.html"),
    genes: Annotated[
        list[str] | None,
        of_verb("tl.report", "genes", group=RESULT, consume_multiple=True, negative=()),
    ] = None,
    n_genes: Annotated[int, of_verb("tl.report", "n_genes", group=RESULT)] = 250,
    title: Annotated[str | None, of_verb("tl.report", "title", group=RESULT)] = None,
    overwrite: Annotated[bool, of_verb("tl.report", "overwrite", group=RESULT, negative="")] = False,
    layer: Layer = None,
    image_key: ImageKey = None,
    shapes_key: Annotated[str | None, of_verb("tl.report", "shapes_key", group=DATA)] = None,
    table_name: Annotated[str | None, of_verb("tl.report", "table_name", group=DATA)] = None,
    tissue_key: Annotated[str | None, of_verb("tl.report", "tissue_key", group=DATA)] = None,
    mpp: ImageMpp = None,
    min_counts: MinCounts = None,
) -> None:
    """Write a prediction as one HTML file that opens in any browser, without a network.

    The H&E with the predicted map over it, a picker of genes, measured beside predicted where counts are there, what is
    known of each gene, domain and tissue, scores beside nulls and ceiling, provenance, and what the numbers do not say.
    """
    check_store(store)
    written = stp.tl.report(
        store, key, path=path, genes=gene_names(genes), n_genes=n_genes, layer=layer, image_key=image_key,
        shapes_key=shapes_key, table_name=table_name, tissue_key=tissue_key, mpp=mpp, min_counts=min_counts,
        title=title, overwrite=overwrite,
    )  # fmt: skip
    print(f"report: {written}")
