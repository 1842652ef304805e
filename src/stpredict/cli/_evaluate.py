"""`stpredict evaluate`: score a predicted layer against the measured spots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

import stpredict as stp
from stpredict.cli._options import (
    DATA,
    RESULT,
    ImageKey,
    Layer,
    MinCounts,
    ShapesKey,
    Stores,
    TableName,
    TissueKey,
    checked,
    of_verb,
    shown,
)

if TYPE_CHECKING:
    import pandas as pd


def score_names() -> tuple[str, ...]:
    """What `--scores` may be; looked up when the options are shown or read, for it loads the metrics."""
    return tuple(name for name, metric in stp.metrics.METRICS.items() if metric.scores_layers)


def evaluate(
    stores: Stores,
    /,
    *,
    key: Annotated[str, of_verb("tl.evaluate", "key")] = "pixnet",
    layer: Layer = None,
    table_name: TableName = "table",
    groups: Annotated[
        list[str] | None, of_verb("tl.evaluate", "groups", group=DATA, consume_multiple=True, negative=())
    ] = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    tissue_key: TissueKey = None,
    min_counts: MinCounts = None,
    scores: Annotated[
        list[Literal[*score_names()]] | None,  # type: ignore[valid-type]
        of_verb("tl.evaluate", "scores", group=RESULT, consume_multiple=True, negative=()),
    ] = None,
    out: Annotated[Path | None, Parameter(group=RESULT, help="A CSV file for the scores of every gene.")] = None,
) -> None:
    """Score a predicted layer against the measured spots.

    A row a section by protocol stp-2: Pearson correlation over spots (25th percentile, median and mean over genes; mean
    of the 50 genes with the highest mean and variance), errors, how many spots and genes were scored or dropped. Beside
    them the null `log depth` (correlation with the spot's total count) and the ceiling that measurement noise sets.
    """
    frame = stp.tl.evaluate(
        checked(stores), key, layer=layer, table_name=table_name, groups=groups, image_key=image_key,
        shapes_key=shapes_key, tissue_key=tissue_key, min_counts=min_counts, scores=scores,
    )  # fmt: skip
    print(shown(summary_table(frame)))
    print(f"protocol {frame.attrs['protocol']}; correlations are means over genes, `log depth` and `ceiling` included")
    for section, n_genes in frame.attrs["targeted_panel"].items():
        print(f"{section}: totals are of a targeted panel of {n_genes} genes, not of a whole transcriptome")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out, index=False)
        print(f"scores of every gene: {out}")


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What `tl.evaluate` says of each section, with the means of the depth null and the ceiling beside it."""
    names = {
        "pcc_f": "PCC@F", "pcc_s": "PCC@S", "pcc_m": "PCC@M", "heg": "HEG", "hvg": "HVG", "log_depth": "log depth",
        "ceiling": "ceiling", "mse": "MSE", "mae": "MAE", "n_spots": "spots", "n_dropped": "dropped",
        "n_genes": "genes", "n_nan_genes": "NaN genes",
    }  # fmt: skip
    return frame.attrs["summary"][list(names)].rename(columns=names)
