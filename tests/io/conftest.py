"""A small legacy ST section, written to files in the published formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

PITCH_PX = 40.0
GENES = ["GNAS", "ERBB2", "FASN", "KRT19"]


@dataclass
class Files:
    """Where the three files are, and what is in them."""

    counts: Path
    image: Path
    spots: Path
    table: pd.DataFrame  # as in the counts file
    places: pd.DataFrame  # as in the spot file
    pixels: np.ndarray  # (300, 360, 3)


@pytest.fixture
def st_files(tmp_path) -> Files:
    """30 spots, 28 selected; the counts lack one of those, name another, and have rows in another order."""
    rng = np.random.default_rng(3)
    col, row = (a.ravel() for a in np.meshgrid(np.arange(3, 9), np.arange(5, 10)))
    places = pd.DataFrame({"x": col, "y": row})
    places["new_x"], places["new_y"] = col + rng.normal(0, 0.03, 30), row + rng.normal(0, 0.03, 30)
    places["pixel_x"], places["pixel_y"] = places.new_x * PITCH_PX - 60, places.new_y * PITCH_PX - 170
    places["selected"] = 1
    places.loc[[7, 20], "selected"] = 0
    ids = [f"{x}x{y}" for x, y in zip(col, row, strict=True)]
    rows = [*ids[1:], "40x40"]
    rng.shuffle(rows)
    table = pd.DataFrame(rng.poisson(2.0, (30, len(GENES))), index=rows, columns=GENES)
    pixels = rng.integers(0, 256, (300, 360, 3), dtype=np.uint8)
    files = Files(tmp_path / "A1.tsv.gz", tmp_path / "A1.png", tmp_path / "A1_spots.tsv", table, places, pixels)
    table.to_csv(files.counts, sep="\t")
    places.to_csv(files.spots, sep="\t", index=False)
    Image.fromarray(pixels).save(files.image)
    return files
