"""The page "Can I trust gene X on my slide?": its code runs, in its order, and its table names every column."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "trust.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*shapes have nothing on the image")
def test_the_code_of_the_page_runs():
    names: dict = {}
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    known, low, high, gene = (names[name] for name in ("known", "low", "high", "gene"))
    assert known["spread"].notna().all()
    assert known["ridge_pcc"].notna().any()
    assert known["ceiling"].notna().any()
    assert (low[gene] < high[gene]).all()
    assert "sections left out in turn" in known.attrs["held_out"]
    table = PAGE.read_text(encoding="utf-8").partition("## A row a gene")[2].partition("## Where")[0]
    assert [*re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)] == list(known)[1:]
    plt.close("all")
