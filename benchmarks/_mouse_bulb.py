"""Mouse olfactory bulb, two replicates of legacy Spatial Transcriptomics (Stahl 2016): raw counts, 2.75 um a pixel."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anndata import AnnData
from scipy.sparse import load_npz
from spatialdata import SpatialData

import stpredict as stp

REPLICATES = ("MOB1", "MOB11")


def read(folder: Path) -> list[SpatialData]:
    """Replicates 1 and 11."""
    return [
        stp.io.read_st(
            _counts(folder, name), folder / f"{name}_he_2.75um.jpg", folder / f"{name}_spots_2.75um.csv", name=name,
            spot_diameter_um=100.0, pitch_um=200.0,
        )
        for name in REPLICATES
    ]  # fmt: skip


def _counts(folder: Path, name: str) -> Path | AnnData:
    """Spots x genes; the spots are named by their places on the array."""
    table = folder / f"{name}_counts.tsv.gz"
    if table.is_file():
        return table
    spots = pd.read_csv(folder / f"{name}_spots.csv")["spot"].astype(str)
    genes = (folder / f"{name}_genes.txt").read_text().split()
    return AnnData(
        load_npz(folder / f"{name}_counts.npz"), obs=pd.DataFrame(index=spots), var=pd.DataFrame(index=genes)
    )
