"""An ensemble of three on her2st C2..C5, each left out: what its spread says of its errors, and what intervals hold.

    python benchmarks/ensemble.py --out results/ensemble        # resumes fold by fold; prints Markdown

Each member leaves out one of the three training sections (`val="sections"`), whose errors make the intervals. Beside it
one model of the same settings, trained on all three sections but 15 % of their spots in blocks, by whose errors its own
intervals are made. PixNet `small` at 4 um per pixel and few epochs: a setting for this question, not for scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _settings import DATA, SECTIONS, WEIGHTS, pixnet
from numpy.typing import NDArray
from scipy.stats import spearmanr
from spatialdata import SpatialData

import stpredict as stp
from stpredict import _spatialdata
from stpredict.models import Ensemble, PixNet, PixNetConfig

MPP, MEMBERS = 4.0, 3


def run_fold(test: str, sections: dict[str, SpatialData], *, n_genes: int, epochs: int) -> dict[str, Any]:
    """Train an ensemble and a single model on all sections but one, and look at both on that one."""
    train = [sdata for name, sdata in sections.items() if name != test]
    panel = stp.pp.gene_panel(train, n_genes=n_genes, by="mean")
    config = pixnet(panel, mpp=MPP).config
    fold: dict[str, Any] = {"test": test, "n_genes": len(panel), "epochs": epochs}
    single = _member(config, 0)
    ensemble = Ensemble([_member(config, seed) for seed in range(MEMBERS)])
    for name, model, val in (("single", single, None), ("ensemble", ensemble, "sections")):
        start = time.perf_counter()
        stp.tl.train(train, model, val=val, max_epochs=epochs, progress=False)
        trained = time.perf_counter()
        stp.tl.predict(sections[test], model, key_added=name, precision="32", overwrite=True, progress=False)
        seconds = {"train_s": trained - start, "predict_s": time.perf_counter() - trained}
        fold[name] = seconds | look(sections[test], name, panel)
        print(test, name, {key: round(value, 3) for key, value in fold[name].items()}, flush=True)
    return fold


def _member(config: PixNetConfig, seed: int) -> PixNet:
    return PixNet(config=config, encoder_weights=WEIGHTS, seed=seed)


def look(sdata: SpatialData, key: str, panel: Sequence[str]) -> dict[str, float]:
    """Scores, coverage of intervals, and of an ensemble what its spread has to do with its errors."""
    section = _spatialdata.training_section(sdata, genes=panel, at_mpp=MPP)
    table = sdata.tables["table"]
    rows = pd.Index(table.obs["instance_id"]).get_indexer(section.ids)
    assert section.expression is not None and (rows >= 0).all()
    true = section.expression
    pred = table[rows, list(panel)].layers[key]
    error = np.abs(pred - true)
    found = {
        "n_spots": float(len(rows)),
        "pcc_m": float(np.nanmean(stp.metrics.pcc(pred, true))),
        "mae": float(error.mean()),
        "held_out_pcc": float(np.nanmean(table.var.loc[list(panel), f"{key}_val_pcc"])),
    }
    for level in (0.8, 0.9):
        low, high = (end.loc[:, list(panel)].to_numpy()[rows] for end in stp.tl.intervals(sdata, key, level=level))
        inside = (true >= low) & (true <= high)
        found[f"covered_{level:g}"] = float(inside.mean())
        found[f"genes_{level:g}"] = float((np.abs(inside.mean(axis=0) - level) <= 0.1).mean())
    if f"{key}_sd" in table.layers:
        spread = np.asarray(table[rows, list(panel)].layers[f"{key}_sd"])
        found["rho_genes"] = float(np.nanmean([_rho(s, e) for s, e in zip(spread.T, error.T, strict=True)]))
        found["rho_spots"] = _rho(spread.mean(axis=1), error.mean(axis=1))
        found["rho_all"] = _rho(spread.ravel(), error.ravel())
        found["spread"] = float(spread.mean())
    return found


def _rho(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(spearmanr(a, b).statistic)


def table_of(folds: Sequence[dict[str, Any]]) -> str:
    """Coverage and spread by left-out section, then costs."""
    columns = {
        "n_spots": "spots", "pcc_m": "PCC@M", "covered_0.8": "80 % hold", "covered_0.9": "90 % hold",
        "genes_0.8": "genes within 10 points", "rho_spots": "rho, spots", "rho_genes": "rho, by gene",
        "rho_all": "rho, all values",
    }  # fmt: skip
    lines = ["| left out | model | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in ("ensemble", "single"):
        values = np.array([[fold[name].get(key, np.nan) for key in columns] for fold in folds])
        for fold, row in zip(folds, values, strict=True):
            lines.append(f"| {fold['test']} | {name} | {_cells(row)} |")
        lines.append(f"| **mean** | **{name}** | {_cells(values.mean(axis=0))} |")
    return "\n".join(lines)


def _cells(row: NDArray[np.floating]) -> str:
    return " | ".join("" if np.isnan(v) else f"{v:.0f}" if v > 2 else f"{v:.3f}" for v in row)


def costs(folds: Sequence[dict[str, Any]]) -> str:
    """Seconds of the ensemble and of one model in the same run, and their ratio."""
    lines = ["| | ensemble s | single s | ratio |", "|---|---|---|---|"]
    for key, name in (("train_s", "training"), ("predict_s", "prediction")):
        ours, one = (np.sum([fold[model][key] for fold in folds]) for model in ("ensemble", "single"))
        lines.append(f"| {name} | {ours:.0f} | {one:.0f} | {ours / one:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True, help="folder for one JSON file a fold")
    parser.add_argument("--folds", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--n-genes", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sections = dict(zip(SECTIONS, stp.datasets.her2st(list(SECTIONS), path=args.data / "her2st"), strict=True))
    folds = []
    for test in args.folds:
        path = args.out / f"{test}.json"
        if not path.is_file():
            path.write_text(json.dumps(run_fold(test, sections, n_genes=args.n_genes, epochs=args.epochs)))
        folds.append(json.loads(path.read_text()))
    print(table_of(folds), costs(folds), sep="\n\n")


if __name__ == "__main__":
    main()
