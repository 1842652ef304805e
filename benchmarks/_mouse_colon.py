"""Mouse colon, one section (a Swiss roll). Its counts are corrected, not raw: their totals vary by 9 %."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anndata import AnnData
from scipy.sparse import load_npz
from spatialdata import SpatialData

import stpredict as stp


def read(folder: Path) -> SpatialData:
    """The Swiss roll d0."""
    spots = pd.read_csv(folder / "d0_spots.csv")
    genes = (folder / "genes.txt").read_text().split()
    counts = AnnData(load_npz(folder / "d0_counts.npz"), obs=pd.DataFrame(index=spots["barcode"].astype(str)))
    counts.var_names = genes
    return stp.io.read_st(
        counts, folder / "d0_he.jpg", folder / "d0_spots.csv", name="d0", spot_diameter_um=55.0, pitch_um=100.0
    )
