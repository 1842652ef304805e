"""What is known of each gene, drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stpredict import pl


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "gene": ["a", "b", "c", "d"],
            "val_pcc": [0.2, np.nan, 0.6, 0.4],
            "ridge_pcc": [0.3, np.nan, 0.2, 0.3],
            "ceiling": [0.7, 0.8, np.nan, 0.6],
            "verdict": ["weak", "no held-out evidence", "good", "good"],
        }
    )


def _dots(ax: plt.Axes, marker: str) -> dict[float, float]:
    """Row on the axis and value of the finite marks of a kind."""
    lines = [line for line in ax.lines if line.get_marker() == marker]
    points = np.concatenate([line.get_xydata() for line in lines])
    return {float(y): float(x) for x, y in points if np.isfinite(x)}


def test_the_best_gene_is_on_top_and_absent_evidence_last(frame):
    ax = pl.reliability(frame)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["c", "d", "a", "b"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert _dots(ax, "o") == {0.0: 0.6, 1.0: 0.4, 2.0: 0.2}
    assert _dots(ax, "x") == {0.0: 0.2, 1.0: 0.3, 2.0: 0.3}
    assert _dots(ax, "|") == {1.0: 0.6, 2.0: 0.7, 3.0: 0.8}
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["good", "weak", "no held-out evidence", "Ridge", "ceiling"]
    plt.close(ax.figure)


def test_what_is_left_out_is_said(frame):
    ax = plt.subplots()[1]
    assert pl.reliability(frame, n_top=2, ax=ax) is ax
    assert ax.get_title() == "2 genes, 2 more not shown"
    plt.close(ax.figure)


def test_a_frame_of_something_else_is_refused(frame):
    with pytest.raises(ValueError, match=r"frame lacks \['ceiling'\]"):
        pl.reliability(frame.drop(columns="ceiling"))
    with pytest.raises(ValueError, match="lacks .* of 0 rows"):
        pl.reliability(frame[:0])
