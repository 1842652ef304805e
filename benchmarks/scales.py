"""Several scales of one tissue: PixNet trained on bins of 16, 8 or 2 um, on spots, and on the bins together.

    python benchmarks/scales.py        # four minutes of one core; prints Markdown

Two simulated sections: one is trained on, the other predicted, and every map is compared with the truth at the scale
that it is read at (`datasets.toy_truth_shapes`): the mean over genes of the correlation over shapes. All see as many
windows, in batches of two, and hold the same share of places out. The start is the shipped model (encoder and decoder).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from spatialdata import SpatialData

import stpredict as stp
from stpredict import metrics
from stpredict.models import Model

BINS = ("toy_square_016um", "toy_square_008um", "toy_square_002um")
READ = ("spots", *BINS)
TRAINED = {"spots": ("spots",), "16 um": BINS[:1], "8 um": BINS[1:2], "2 um": BINS[2:], "16 + 8 + 2 um": BINS}
NO_PATCHES = BINS[2]  # there are too many bins of 2 um to cut a patch around each


def tables(keys: Sequence[str]) -> list[str]:
    """The tables of shapes."""
    return ["table" if key == "spots" else key.removeprefix("toy_") for key in keys]


def trained(section: SpatialData, keys: Sequence[str], panel: Sequence[str], *, epochs: int, seed: int) -> Model:
    """PixNet, without its context branch, on some scales; an epoch has so many windows for each of them."""
    config = stp.models.PixNetConfig(genes=tuple(panel), mpp=1.0, context_rank=0)
    model = stp.models.PixNet(config=config, encoder_weights="pixnet-her2st", seed=seed)
    rounds = max(1, round(epochs / len(keys)))
    stp.tl.train(
        section, model, shapes_key=list(keys), table_name=tables(keys), max_epochs=rounds, batch_size=2, seed=seed,
        precision="32", progress=False,
    )  # fmt: skip
    return model


def correlations(model: Model, section: SpatialData, truth: dict, keys: Sequence[str]) -> dict[str, float]:
    """Mean correlation with the truth at every scale; NaN where it is not read."""
    found = dict.fromkeys(READ, np.nan)
    for key in keys:
        stp.tl.predict(
            section, model, shapes_key=key, table_added=f"read_{key}", overwrite=True, precision="32", progress=False
        )
        table = section.tables[f"read_{key}"]
        there = np.isfinite(table.X[:, 0]) & truth[key].notna().all(axis=1).to_numpy()
        found[key] = float(np.nanmean(metrics.pcc(table.X[there], truth[key].to_numpy()[there])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-um", type=float, default=800.0)
    parser.add_argument(
        "--epochs", type=int, default=10, help="of one scale; of three a third, with three times as many windows"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, test = stp.datasets.toy(2, seed=0, size_um=args.size_um, n_genes=60)
    for section in (train, test):
        stp.datasets.toy_bins(section)
    panel = stp.pp.gene_panel([train], n_genes=30, shapes_key=list(BINS[:2]), table_name=tables(BINS[:2]))
    truth = {key: stp.datasets.toy_truth_shapes(test, key, genes=panel) for key in READ}
    print("| trained on | spots of 55 um | 16 um | 8 um | 2 um | shapes | training s |\n|---|---|---|---|---|---|---|")
    for name, keys in TRAINED.items():
        start = time.perf_counter()
        model = trained(train, keys, panel, epochs=args.epochs, seed=args.seed)
        row(name, correlations(model, test, truth, READ), train, keys, time.perf_counter() - start)
    for name, keys in list(TRAINED.items())[:2]:
        start = time.perf_counter()
        ridge = stp.models.Ridge(panel)
        stp.tl.train(train, ridge, shapes_key=list(keys), table_name=tables(keys), val=0, progress=False)
        found = correlations(ridge, test, truth, [key for key in READ if key != NO_PATCHES])
        row(f"Ridge, {name}", found, train, keys, time.perf_counter() - start)


def row(name: str, found: dict[str, float], train: SpatialData, keys: Sequence[str], seconds: float) -> None:
    cells = " | ".join("—" if np.isnan(found[key]) else f"{found[key]:.3f}" for key in READ)
    n = sum(train.tables[table].n_obs for table in tables(keys))
    print(f"| {name} | {cells} | {n} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
