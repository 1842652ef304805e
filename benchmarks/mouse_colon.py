"""Mouse colon, one section: trained on four random spatial blocks of six, tested on the other two; PixNet beside Ridge.

    python benchmarks/mouse_colon.py --out results/colon        # prints Markdown

The blocks are the cells of a 3 x 2 grid of quantiles of the spots. These counts are corrected, not raw (their totals
vary by 9 %), so there is no noise ceiling. Training windows may see image, never counts, of the test blocks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _settings import DATA, pixnet
from anndata import AnnData
from her2st import table
from scipy.sparse import load_npz
from spatialdata import SpatialData

import stpredict as stp
from stpredict.models import Mean, Ridge

BUILD = {"pixnet": pixnet, "ridge": Ridge, "mean": Mean}


def read(folder: Path) -> SpatialData:
    """The Swiss roll d0."""
    spots = pd.read_csv(folder / "d0_spots.csv")
    genes = (folder / "genes.txt").read_text().split()
    counts = AnnData(load_npz(folder / "d0_counts.npz"), obs=pd.DataFrame(index=spots["barcode"].astype(str)))
    counts.var_names = genes
    return stp.io.read_st(
        counts, folder / "d0_he.jpg", folder / "d0_spots.csv", name="d0", spot_diameter_um=55.0, pitch_um=100.0
    )


def blocks(sdata: SpatialData) -> np.ndarray:
    """(n,) block 0..5 of each row of the table."""
    x, y = sdata.tables["table"].obsm["spatial"].T
    column = np.searchsorted(np.quantile(x, [1 / 3, 2 / 3]), x)
    block = np.zeros(len(x), dtype=int)
    for c in range(3):
        here = column == c
        block[here] = 2 * c + (y[here] > np.median(y[here]))
    return block


def part(sdata: SpatialData, keep: np.ndarray, name: str) -> SpatialData:
    """The same image with only some of the spots."""
    rows = sdata.tables["table"][keep].copy()
    shapes = sdata.shapes["spots"].loc[rows.obs["instance_id"]]
    out = SpatialData(images=dict(sdata.images), shapes={"spots": shapes}, tables={"table": rows})
    out.attrs["name"] = name
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n-genes", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"colon_seed{args.seed}.json"
    if not path.is_file():
        sdata = read(args.data / "mouse_colon")
        block = blocks(sdata)
        held = np.random.default_rng(args.seed).permutation(6)[:2]
        train, test = (part(sdata, keep, "d0") for keep in (~np.isin(block, held), np.isin(block, held)))
        panel = stp.pp.gene_panel([train], n_genes=args.n_genes, by="mean")
        fold: dict = {"test": "blocks " + ", ".join(map(str, sorted(held))), "scores": {}, "seconds": {}}
        for name, build in BUILD.items():
            torch.manual_seed(args.seed)
            model = build(panel)
            start = pd.Timestamp.now()
            stp.tl.train(train, model, val=0.0, seed=args.seed, progress=False)
            fold["seconds"][name] = (pd.Timestamp.now() - start).total_seconds()
            stp.tl.predict(test, model, key_added=name, precision="32", progress=False)
            fold["scores"][name] = stp.tl.evaluate(test, name).attrs["summary"].iloc[0].to_dict()
        path.write_text(json.dumps(fold))
    fold = json.loads(path.read_text())
    print(f"{fold['scores']['pixnet']['n_spots']:.0f} test spots\n\n" + table([fold], names=tuple(BUILD)))


if __name__ == "__main__":
    main()
