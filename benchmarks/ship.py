"""Train the model that comes with the package, on her2st C2..C5, and put the leave-one-section-out scores on its card.

    python benchmarks/her2st.py --out results/her2st
    python benchmarks/ship.py --results results/her2st --version 1.4.0
    python benchmarks/ship.py --scores results/her2st   # weights stay: only the scores are those of other folds
    python benchmarks/ship.py --domain          # weights and scores stay: only what the card says of the tissue
    python benchmarks/ship.py --context         # scores and the trained half stay: only the context is fitted anew

Writes src/stpredict/models/weights/pixnet-her2st. The reliability of a gene is the mean, over the folds whose panel
holds the gene, of its correlation on the section that was left out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from _settings import DATA, SECTIONS, pixnet

import stpredict as stp
from stpredict import _spatialdata
from stpredict._card import card_file, read_card
from stpredict.models._base import first_seed
from stpredict.tl._domain import about, domain_record

OUT = Path(__file__).resolve().parents[1] / "src" / "stpredict" / "models" / "weights" / "pixnet-her2st"

SOURCE = "leave-one-section-out over C2..C5 of one patient; mean over the folds whose panel has the gene"
BEFORE = "; measured with the context before its last fit"


def reliability(folds: list[dict], panel: list[str]) -> dict[str, float | None]:
    """Per gene the mean correlation over the folds in which it was predicted; None where there is none."""
    seen: dict[str, list[float]] = {gene: [] for gene in panel}
    for fold in folds:
        for gene, r in zip(fold["genes"], fold["pcc"]["pixnet"], strict=True):
            if gene in seen and r is not None:
                seen[gene].append(r)
    return {gene: round(float(np.mean(values)), 4) if values else None for gene, values in seen.items()}


def scores(folds: list[dict]) -> dict[str, dict]:
    """What the card keeps of each fold."""
    return {
        f"{fold['test']} left out": {
            name: {key: round(value, 4) for key, value in fold["scores"][name].items() if np.isfinite(value)}
            for name in ("pixnet", "ridge", "mean")
        }
        | {"ceiling": round(fold["ceiling"], 4)}
        for fold in folds
    }


def renew_domain() -> None:
    """Write into the card what tissue the training sections show, and what they are of, as `tl.train` would."""
    card, spec = read_card(OUT), _spatialdata.SectionSpec()
    given = stp.datasets.her2st(list(card.sections), path=DATA / "her2st")
    sections = _spatialdata.training_sections(given, [spec], genes=card.genes, at_mpp=card.mpp)
    domain = domain_record([(sdata, spec.resolved(sdata)) for sdata in given], sections, seed=card.seed or 0)
    replace(card, domain=domain, about=about(given)).write(card_file(OUT))


def renew_context() -> None:
    """Fit the context of the shipped model as `tl.train` now would; the card says that its scores are of another."""
    card, model = read_card(OUT), pixnet(read_card(OUT).genes)
    trained = stp.models.load(OUT).state_dict().items()
    kept = {key: v for key, v in trained if not key.startswith("context_map.") or ".encoder." in key}
    model.load_state_dict(kept, strict=False)
    given = stp.datasets.her2st(list(card.sections), path=DATA / "her2st")
    sections = _spatialdata.training_sections(given, [_spatialdata.SectionSpec()], genes=card.genes, at_mpp=card.mpp)
    model.finish(sections)
    source = card.val_source.removesuffix(BEFORE) + BEFORE
    model.card = replace(card, config=asdict(model.config), val_source=source)
    model.save(OUT, overwrite=True)


def read_folds(results: Path, seed: int) -> list[dict]:
    """What `her2st.py` wrote of each fold."""
    return [json.loads((results / f"{name}_seed{seed}.json").read_text()) for name in SECTIONS]


def renew_scores(folds: list[dict]) -> None:
    """Write the scores of these folds into the card."""
    card = read_card(OUT)
    card = replace(card, val_pcc=reliability(folds, list(card.genes)), val_source=SOURCE, scores=scores(folds))
    card.write(card_file(OUT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--results", type=Path)
    what.add_argument("--scores", type=Path)
    what.add_argument("--domain", action="store_true")
    what.add_argument("--context", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--version", help="of the model that is trained")
    args = parser.parse_args()
    if args.domain:
        renew_domain()
        return
    if args.context:
        renew_context()
        return
    folds = read_folds(args.scores or args.results, args.seed)
    if args.scores:
        renew_scores(folds)
        return
    sections = stp.datasets.her2st(list(SECTIONS), path=DATA / "her2st")
    panel = stp.pp.gene_panel(sections, n_genes=250, by="mean")
    with first_seed(args.seed):
        model = pixnet(panel)
    stp.tl.train(
        sections,
        model,
        val=0.0,
        seed=args.seed,
        progress=False,
        licence="BSD-3-Clause (weights); encoder started from Apache-2.0 ImageNet weights; training data: research use",
    )
    assert model.card is not None
    model.card = replace(model.card, val_pcc=reliability(folds, panel), val_source=SOURCE, scores=scores(folds))
    model.save(OUT, overwrite=True, version=args.version)
    size = sum(path.stat().st_size for path in OUT.iterdir()) / 1e6
    print(f"{OUT.name}: {size:.1f} MB, {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
