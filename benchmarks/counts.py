"""A map of counts against one in log units: a toy's truth at four sizes, several scales together, and her2st.

    python benchmarks/counts.py toy --out results/counts      # three seeds, trained on spots of 55 um
    python benchmarks/counts.py scales --out results/counts   # trained on bins of 16, 8, 2 um, and on all of them
    python benchmarks/counts.py her2st --out results/counts   # C2..C5 left out in turn, one seed

Both links have the same network, weights to start from, windows, steps and seed, and no context branch. Every result is
a JSON file, and one that is there is not made again; each command prints Markdown. On the toy the truth is log1p of the
rate per 10,000 that is pooled in each shape; the bias is the mean over genes and shapes of prediction less truth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
from _settings import DATA, ENCODER, SECTIONS, WEIGHTS
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import stpredict as stp
from stpredict import metrics
from stpredict.models import Model, PixNet, PixNetConfig

LINKS = ("identity", "counts")
SIZES_UM = (8, 16, 55, 110)
FIELD_UM = 2.0  # of the toy's true field
BINS = ("toy_square_016um", "toy_square_008um", "toy_square_002um")
TRAINED = {"spots": ("spots",), "16 um": BINS[:1], "8 um": BINS[1:2], "2 um": BINS[2:], "16 + 8 + 2 um": BINS}
RUN: dict[str, Any] = {"device": "cpu", "precision": "32", "progress": False}


def toy_model(panel: Sequence[str], link: str, seed: int) -> Model:
    """A PixNet without context that starts from the shipped encoder and decoder."""
    config = PixNetConfig(genes=tuple(panel), mpp=1.0, context_rank=0, link=link)  # type: ignore[arg-type]
    return PixNet(config=config, encoder_weights="pixnet-her2st", seed=seed)


def tables(keys: Sequence[str]) -> list[str]:
    """The tables of shapes."""
    return ["table" if key == "spots" else key.removeprefix("toy_") for key in keys]


def add_squares(section: SpatialData, *, pitch_um: float = 50.0) -> list[str]:
    """Squares (discs from 50 um up) of every size around the same centres, where the largest lies on tissue."""
    keys = []
    for size in SIZES_UM:
        key = f"at{size}um"
        stp.pp.tile_grid(section, diameter_um=float(SIZES_UM[-1]), pitch_um=pitch_um, image_key="image", key_added=key)
        grid = section.shapes.pop(key)
        whole = shapely.buffer(grid.geometry.to_numpy(), grid["radius"].to_numpy())
        grid = grid[shapely.within(whole, section.shapes["tissue"].geometry.union_all())][["radius", "geometry"]]
        grid["radius"] *= size / SIZES_UM[-1]
        if size < 50:
            square = shapely.buffer(grid.geometry.to_numpy(), grid["radius"].to_numpy(), cap_style="square")
            grid = grid.set_geometry(square).drop(columns="radius")
        section.shapes[key] = grid
        keys.append(key)
    return keys


def agreement(section: SpatialData, read: Callable[[str], NDArray], keys: Sequence[str], genes: Sequence[str]) -> dict:
    """Correlation with the truth and bias at every size."""
    found = {}
    for key in keys:
        truth = stp.datasets.toy_truth_shapes(section, key, genes=genes).to_numpy()
        values = read(key)
        there = np.isfinite(values[:, 0]) & np.isfinite(truth).all(axis=1)
        error = values[there].astype(np.float64) - truth[there]
        found[key] = float(np.nanmean(metrics.pcc(values[there], truth[there]))), float(error.mean())
    return found


def of_model(section: SpatialData, model: Model) -> Callable[[str], NDArray]:
    """A function of shapes: what a model predicts in them."""

    def read(key: str) -> NDArray:
        stp.tl.predict(section, model, shapes_key=key, table_added="read", overwrite=True, **RUN)
        return np.asarray(section.tables["read"].X)

    return read


def of_raster(section: SpatialData, values: NDArray, names: Sequence[str], genes: Sequence[str]) -> Callable:
    """A function of shapes: a map on the grid of the true field, read in them."""
    section.images["map"] = Image2DModel.parse(
        values.astype(np.float32), dims=("c", "y", "x"), c_coords=list(names),
        transformations={"micrometers": Scale([FIELD_UM, FIELD_UM], axes=("x", "y"))},
    )  # fmt: skip

    def read(key: str) -> NDArray:
        stp.tl.aggregate(section, "map", shapes_key=key, genes=list(genes), table_added="read", overwrite=True)
        return np.asarray(section.tables["read"].X)

    return read


def oracles(section: SpatialData, keys: Sequence[str], genes: Sequence[str]) -> dict[str, dict]:
    """The true field itself, as a map of logs and as one of rates."""
    field = np.asarray(section.images["field"].data).astype(np.float64)
    table = section.tables["table"]
    profile = np.asarray(table.varm["toy_profiles"])
    at = table.var_names.get_indexer(list(genes))
    rates, rna = (np.einsum("gk,kyx->gyx", p, field) for p in (profile[at], profile.sum(axis=0)[None]))
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log1p(1e4 * rates / rna)
    return {
        "the true log rate of each pixel": agreement(section, of_raster(section, logs, genes, genes), keys, genes),
        "the true rates of each pixel": agreement(
            section, of_raster(section, np.concatenate([rates, rna]), [*genes, "__total__"], genes), keys, genes
        ),
    }


def trained_and_read(
    train: SpatialData, test: SpatialData, panel: Sequence[str], keys: Sequence[str], *, link: str, seed: int,
    on: Sequence[str], epochs: int, batch_size: int,
) -> dict:  # fmt: skip
    """The agreement of a model that is trained on the shapes `on` of one section, and the seconds of its training."""
    model = toy_model(panel, link, seed)
    start = time.perf_counter()
    stp.tl.train(
        train, model, shapes_key=list(on), table_name=tables(on), max_epochs=epochs, batch_size=batch_size, val=0,
        seed=seed, **RUN,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return agreement(test, of_model(test, model), keys, panel) | {"seconds": seconds}


def toy(args: argparse.Namespace) -> None:
    """Trained on spots of 55 um of one toy section, read at four sizes on another."""
    rows: dict[str, list[dict]] = {}
    for seed in args.seeds:
        train, test = stp.datasets.toy(2, seed=seed, size_um=args.size_um)
        panel = stp.pp.gene_panel([train], n_genes=60)
        keys = add_squares(test)
        for link in LINKS:
            made = partial(
                trained_and_read, train, test, panel, keys, link=link, seed=seed, on=("spots",), epochs=args.epochs,
                batch_size=4,
            )  # fmt: skip
            rows.setdefault(f"PixNet, {link}", []).append(
                kept(args.out / f"toy_{link}_{args.epochs}_{seed}.json", made)
            )
        truth = kept(args.out / f"toy_oracles_{seed}.json", partial(oracles, test, keys, panel))
        for name, found in truth.items():
            rows.setdefault(name, []).append(found)
    head = [f"{size} um" for size in SIZES_UM]
    print("| | " + " | ".join(head) + " | bias: " + " | bias: ".join(head) + " |\n" + "|---" * 9 + "|")
    for name, found in rows.items():
        values = np.array([[each[f"at{size}um"] for size in SIZES_UM] for each in found])  # (seeds, sizes, 2)
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0 * values[0]
        cells = [f"{mean[i, j]:{'+' if j else ''}.3f} ± {spread[i, j]:.3f}" for j in (0, 1) for i in range(4)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def scales(args: argparse.Namespace) -> None:
    """Trained on bins of several sizes of one toy section, apart and together, read on another."""
    seed = args.seeds[0]
    train, test = stp.datasets.toy(2, seed=args.toy_seed, size_um=args.size_um, n_genes=60)
    for section in (train, test):
        stp.datasets.toy_bins(section)
    panel = stp.pp.gene_panel([train], n_genes=30, shapes_key=list(BINS[:2]), table_name=tables(BINS[:2]))
    read = ("spots", *BINS)
    print("| link | trained on | spots of 55 um | 16 um | 8 um | 2 um | training s |\n" + "|---" * 7 + "|")
    for name, keys in TRAINED.items():
        for link in LINKS:
            made = partial(
                trained_and_read, train, test, panel, read, link=link, seed=seed, on=keys, batch_size=2,
                epochs=args.epochs if args.same_epochs else max(1, round(args.epochs / len(keys))),
            )  # fmt: skip
            found = kept(
                args.out / f"scales_{link}_{name.replace(' ', '')}_{made.keywords['epochs']}_{seed}.json", made
            )
            cells = " | ".join(f"{found[key][0]:.3f} ({found[key][1]:+.2f})" for key in read)
            print(f"| {link} | {name} | {cells} | {found['seconds']:.0f} |", flush=True)


def left_out(test: SpatialData, train: Sequence[SpatialData], panel: Sequence[str], *, link: str, seed: int) -> dict:
    """The scores of one section, and the seconds of the training on the others."""
    config = PixNetConfig(genes=tuple(panel), context_rank=0, link=link, **ENCODER)  # type: ignore[arg-type]
    model = PixNet(config=config, encoder_weights=WEIGHTS, seed=seed)
    start = time.perf_counter()
    stp.tl.train(train, model, val=0.0, seed=seed, **RUN)
    seconds = time.perf_counter() - start
    stp.tl.predict(test, model, key_added="predicted", overwrite=True, **RUN)
    scores = stp.tl.evaluate(test, "predicted").attrs["summary"].iloc[0]
    return {key: float(scores[key]) for key in COLUMNS} | {"seconds": seconds}


def her2st(args: argparse.Namespace) -> None:
    """C2..C5 left out in turn: both links without the context branch, in the same number of steps."""
    sections = dict(zip(SECTIONS, stp.datasets.her2st(list(SECTIONS), path=args.data / "her2st"), strict=True))
    print("| test | link | PCC@F | PCC@S | PCC@M | HEG | HVG | MSE | training s |\n" + "|---" * 9 + "|", flush=True)
    found: dict[str, list[list[float]]] = {link: [] for link in LINKS}
    for test, sdata in sections.items():
        train = [other for name, other in sections.items() if name != test]
        panel = stp.pp.gene_panel(train, n_genes=250, by="mean")
        for link in LINKS:
            made = partial(left_out, sdata, train, panel, link=link, seed=args.seeds[0])
            scores = kept(args.out / f"her2st_{link}_{test}_{args.seeds[0]}.json", made)
            found[link].append([scores[key] for key in COLUMNS])
            cells = " | ".join(f"{scores[key]:.3f}" for key in COLUMNS)
            print(f"| {test} | {link} | {cells} | {scores['seconds']:.0f} |", flush=True)
    for link, values in found.items():
        print(f"| **mean** | **{link}** | " + " | ".join(f"{v:.3f}" for v in np.mean(values, axis=0)) + " | |")


COLUMNS = ("pcc_f", "pcc_s", "pcc_m", "heg", "hvg", "mse")


def kept(file: Path, made: Callable[[], dict]) -> dict:
    """What a file holds; it is made first where it is not there."""
    if not file.is_file():
        file.write_text(json.dumps(made()))
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("toy", "scales", "her2st"))
    parser.add_argument("--out", type=Path, required=True, help="folder for one JSON file a run")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--size-um", type=float, help="of the toy sections; default 1200 for toy, 800 for scales")
    parser.add_argument(
        "--epochs", type=int, help="default 12 for toy, 10 of one scale and a third of three for scales"
    )
    parser.add_argument("--same-epochs", action="store_true", help="of three scales as many as of one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="scales and her2st take the first")
    parser.add_argument("--toy-seed", type=int, default=0, help="of the sections of scales")
    args = parser.parse_args()
    args.size_um = args.size_um or {"toy": 1200.0}.get(args.part, 800.0)
    args.epochs = args.epochs or {"toy": 12}.get(args.part, 10)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    {"toy": toy, "scales": scales, "her2st": her2st}[args.part](args)


if __name__ == "__main__":
    main()
