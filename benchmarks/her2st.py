"""Leave-one-section-out on her2st C2..C5: PixNet beside Ridge, Mean, the depth of the spot, and the noise ceiling.

    python benchmarks/her2st.py --out results/her2st        # resumes fold by fold; prints Markdown

Every number follows the protocol stp-1. The panel, Ridge's scaler and penalty, and PixNet's output bias come from the
training sections of the fold; the number of epochs is the same in every fold. PixNet's settings were chosen on C4 with
C2 and C3 as training sections (benchmarks/README.md says which, and what else was tried).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from _settings import DATA, SECTIONS, pixnet
from spatialdata import SpatialData

import stpredict as stp
from stpredict.models import Mean, Model, PixNet, Ridge
from stpredict.models._base import first_seed

BUILD: dict[str, Callable[[Sequence[str]], Model]] = {"pixnet": pixnet, "ridge": Ridge, "mean": Mean}
MODELS = ("pixnet", "pixnet, 8 turns", "pixnet, decoder alone", "pixnet, context alone", "ridge", "mean")


def run_fold(test: str, sections: dict[str, SpatialData], *, n_genes: int, seed: int) -> dict:
    """Train every model on all sections but one, predict that one, and score it."""
    train = [sdata for name, sdata in sections.items() if name != test]
    panel = stp.pp.gene_panel(train, n_genes=n_genes, by="mean")
    fold: dict = {"test": test, "panel": panel, "seed": seed, "scores": {}, "pcc": {}, "seconds": {}, "parameters": {}}
    for name, build in BUILD.items():
        with first_seed(seed):
            model = build(panel)
        start = time.perf_counter()
        stp.tl.train(train, model, val=0.0, seed=seed, progress=False)
        seconds = time.perf_counter() - start
        fold["parameters"][name] = sum(p.numel() for p in model.parameters())
        score(fold, name, model, sections[test], seconds)
        if isinstance(model, PixNet):
            score_variants(fold, model, sections[test], seconds)
    return fold


def score_variants(fold: dict, model: PixNet, section: SpatialData, seconds: float) -> None:
    """The same weights: read eight times, and either branch by itself."""
    assert model.context_map is not None
    config, share = model.config, model.context_map.share.clone()
    model.config = replace(config, turns=8)
    score(fold, "pixnet, 8 turns", model, section, seconds)
    model.config = config
    for name, of_context in (("pixnet, decoder alone", 0.0), ("pixnet, context alone", 1.0)):
        model.context_map.share.fill_(of_context)
        score(fold, name, model, section, seconds)
    model.context_map.share.copy_(share)


def score(fold: dict, name: str, model: Model, section: SpatialData, seconds: float) -> None:
    """Predict a section and write the scores into the fold."""
    stp.tl.predict(section, model, key_added="predicted", precision="32", overwrite=True, progress=False)
    scores = stp.tl.evaluate(section, "predicted")
    fold["seconds"][name] = seconds
    fold["scores"][name] = scores.attrs["summary"].iloc[0].to_dict()
    fold["pcc"][name] = [float(r) if np.isfinite(r) else None for r in scores["pcc"]]
    fold["genes"] = scores["gene"].tolist()
    fold["depth"], fold["ceiling"] = float(scores["pcc_log_depth"].mean()), float(scores["ceiling"].mean())
    print(f"{fold['test']} {name}: PCC@M {fold['scores'][name]['pcc_m']:.3f}, training {seconds:.0f} s", flush=True)


def table(folds: Sequence[dict], names: Sequence[str] = MODELS) -> str:
    """The scores fold by fold, then their mean and standard deviation over sections, in Markdown."""
    columns = {
        "pcc_f": "PCC@F",
        "pcc_s": "PCC@S",
        "pcc_m": "PCC@M",
        "heg": "HEG",
        "hvg": "HVG",
        "mse": "MSE",
        "mae": "MAE",
    }
    lines = ["| test | model | " + " | ".join(columns.values()) + " | training s |", "|---" * (len(columns) + 3) + "|"]
    for name in names:
        values = np.array([[fold["scores"][name][key] for key in columns] for fold in folds], dtype=float)
        for fold, row in zip(folds, values, strict=True):
            cells = " | ".join("NaN" if np.isnan(v) else f"{v:.3f}" for v in row)
            lines.append(f"| {fold['test']} | {name} | {cells} | {fold['seconds'][name]:.0f} |")
        cells = " | ".join(
            "NaN" if np.isnan(v).all() else f"{v.mean():.3f} ± {v.std(ddof=1) if len(v) > 1 else 0:.3f}"
            for v in values.T
        )
        lines.append(f"| **mean ± sd** | **{name}** | {cells} | |")
    return "\n".join(lines)


def differences(folds: Sequence[dict]) -> str:
    """PixNet minus Ridge, fold by fold, paired by gene; with the depth null and the ceiling."""
    lines = [
        "| test | spots | dropped | PixNet - Ridge, PCC@M | genes better | 8 turns - Ridge | genes better | log depth "
        "| ceiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    every = []
    for fold in folds:
        ridge = pd.Series(fold["pcc"]["ridge"], dtype=float)
        ours = [pd.Series(fold["pcc"][name], dtype=float) for name in MODELS[:2]]
        every.append([r.mean() - ridge.mean() for r in ours])
        cells = " | ".join(f"{r.mean() - ridge.mean():+.3f} | {(r > ridge).mean():.0%}" for r in ours)
        s = fold["scores"]["pixnet"]
        lines.append(
            f"| {fold['test']} | {s['n_spots']:.0f} | {s['n_dropped']:.0f} | {cells} | {fold['depth']:.3f} | "
            f"{fold['ceiling']:.3f} |"
        )
    mean = np.mean(every, axis=0)
    return "\n".join([*lines, f"| **mean** | | | **{mean[0]:+.3f}** | | **{mean[1]:+.3f}** | | | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True, help="folder for one JSON file a fold")
    parser.add_argument("--folds", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--n-genes", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sections = dict(zip(SECTIONS, stp.datasets.her2st(list(SECTIONS), path=args.data / "her2st"), strict=True))
    folds = []
    for test in args.folds:
        path = args.out / f"{test}_seed{args.seed}.json"
        if not path.is_file():
            path.write_text(json.dumps(run_fold(test, sections, n_genes=args.n_genes, seed=args.seed)))
        fold = json.loads(path.read_text())
        if len(fold["panel"]) != args.n_genes:
            raise SystemExit(f"{path} has {len(fold['panel'])} genes, not {args.n_genes}; name another --out.")
        folds.append(fold)
    print(table(folds), differences(folds), sep="\n\n")


if __name__ == "__main__":
    main()
