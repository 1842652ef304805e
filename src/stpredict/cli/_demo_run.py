"""The demo, step by step: two toy sections, three models, one table, two stores and a figure."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.figure import Figure
from spatialdata.models import Image2DModel

from stpredict import datasets, metrics, pl, pp, tl
from stpredict._card import shipped
from stpredict._spatialdata import image_mpp, raster_transformations
from stpredict.cli._demo_scores import NEAREST, ORACLE_MAP, SCALES_UM, scores
from stpredict.models import Mean, PixNet, PixNetConfig, Recipe, Ridge

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from stpredict.models import Model

START = "pixnet-her2st"  # the trained model whose encoder and decoder the demo's PixNet starts from
TRUTH_MPP = 8.0
NOTES = """\
PCC@F, @S, @M: 25th percentile, median, mean over genes of the correlation over spots (pixels, shapes).
MSE: over spots and genes.
nearest spot: every pixel copies the nearest measured spot of this very section.
oracle's map: the true log rate of every pixel, read as PixNet's map is. oracle: the true rate pooled in each shape."""


@dataclass(frozen=True)
class Size:
    """How large the demo is.

    Parameters
    ----------
    size_um, n_genes
        Side of the toy sections, and how many of their genes are predicted (those with the highest mean).
    max_epochs, window_px
        Of PixNet's training; chosen on sections of other seeds than the demo's own.
    mpp : float, default 1.0
        Micrometres per pixel at which PixNet sees; its map has a step of 4 x mpp.
    core_px, halo_px
        Inference tile.
    scales_um : tuple[float, ...], default SCALES_UM
        At which scales the map is read and scored.
    """

    size_um: float = 2400.0
    n_genes: int = 60
    max_epochs: int = 9
    batch_size: int = 4
    window_px: int = 384
    mpp: float = 1.0
    core_px: int = 1280
    halo_px: int = 384
    scales_um: tuple[float, ...] = SCALES_UM


def run(out: Path, *, seed: int = 0, overwrite: bool = False, size: Size | None = None) -> pd.DataFrame:
    """The whole demo; prints what it does, and returns the table of scores.

    Raises FileExistsError where `out` holds something and `overwrite` is not given.
    """
    with _quiet():
        return _run(out, seed=seed, overwrite=overwrite, size=size or Size())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what each verb says of its spots and files: the demo says what it does by itself."""
    logger = logging.getLogger("stpredict")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run(out: Path, *, seed: int, overwrite: bool, size: Size) -> pd.DataFrame:
    _clear(out, overwrite=overwrite)
    say = _Clock()
    train, test = datasets.toy(2, seed=seed, size_um=size.size_um)
    say(f"simulated two sections with {train['table'].n_obs} and {test['table'].n_obs} spots")
    models = fit(train, seed=seed, size=size)
    say(f"trained PixNet (from {START if START in shipped() else 'random weights'}), Ridge and Mean on the first")
    predict(test, models)
    say("predicted the second: layers in its table, and PixNet's map")
    genes = list(models["pixnet"].genes)
    patch_models = {name: models[name] for name in ("ridge", "mean")}
    table = scores(test, raster_key="pixnet", patch_models=patch_models, genes=genes, scales_um=size.scales_um)
    say("scored it")
    add_truth(test, genes)
    paths = _write(out, train, test, models["pixnet"], table, gene=shown_gene(train, genes))
    say("wrote it")
    print(f"\n{_text(table)}\n\n{NOTES}\n")
    for what, path in paths.items():
        print(f"{what:<18}{path}")
    print(f"\nopen {paths['report']} in a browser: the maps of all genes, and how far each can be trusted")
    return table


def fit(train: SpatialData, *, seed: int, size: Size) -> dict[str, Model]:
    """PixNet, Ridge and Mean, trained on one section and nothing else."""
    panel = pp.gene_panel([train], n_genes=size.n_genes)
    models = {"pixnet": small_pixnet(panel, size, seed=seed), "ridge": Ridge(panel), "mean": Mean(panel)}
    for name, model in models.items():
        tl.train(
            train,
            model,
            shapes_key="spots",
            val=None if name == "pixnet" else 0.0,
            seed=seed,
            device="cpu",
            progress=False,
        )
    return models


def small_pixnet(panel: list[str], size: Size, *, seed: int) -> PixNet:
    """A PixNet for the toy: from the trained model of the package where there is one, else from random weights."""
    start = START if START in shipped() else None
    recipe = Recipe(max_epochs=size.max_epochs, batch_size=size.batch_size, lr=3e-3, encoder_lr=1e-3, weight_decay=1e-2)
    # read at 8 um, where the context, whose cells are wider, is to count less than the default (docs: models)
    config = PixNetConfig(
        genes=tuple(panel), mpp=size.mpp, window_px=size.window_px, core_px=size.core_px, halo_px=size.halo_px,
        context_share=0.5, recipe=recipe,
    )  # fmt: skip
    return PixNet(config=config, encoder_weights=start, seed=seed)


def predict(test: SpatialData, models: Mapping[str, Model]) -> None:
    """Write a layer for every model, and the map of those that have one."""
    for name, model in models.items():
        output: Literal["both", "layer"] = "both" if model.output == "raster" else "layer"
        tl.predict(
            test, model, shapes_key="spots", tissue_key="tissue", output=output, key_added=name, device="cpu",
            progress=False,
        )  # fmt: skip


def shown_gene(train: SpatialData, genes: list[str]) -> str:
    """The gene that the figure shows: the one that varies most between the training spots."""
    table = train.tables["table"]
    totals = np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel()
    measured = metrics.log1p_cp10k(table[totals > 0, genes].X.toarray(), totals[totals > 0])
    return genes[int(np.argmax(measured.var(axis=0)))]


def add_truth(test: SpatialData, genes: list[str]) -> None:
    """The true maps of the predicted genes as images["truth"], to look at beside the predicted ones."""
    truth = datasets.toy_truth(test, genes=genes, mpp=TRUTH_MPP).astype(np.float16)
    pixel = TRUTH_MPP / image_mpp(test, "image")
    test.images["truth"] = Image2DModel.parse(
        truth.to_numpy(), dims=("c", "y", "x"), c_coords=genes,
        transformations=raster_transformations(test.images["image"], scale=(pixel, pixel)),
    )  # fmt: skip
    test.attrs["stpredict"]["images/truth"] = {"made_by": "datasets.toy_truth", "target": "log1p_cp10k"}


class _Clock:
    """Says what was done, and how long it took."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def __call__(self, done: str) -> None:
        now = time.perf_counter()
        print(f"{now - self.since:5.0f} s  {done}", flush=True)
        self.since = now


def _paths(out: Path) -> dict[str, Path]:
    return {
        "predicted section": out / "test.zarr",
        "training section": out / "train.zarr",
        "trained model": out / "pixnet",
        "table": out / "scores.csv",
        "figure": out / "demo.png",
        "report": out / "report.html",
    }


def _clear(out: Path, *, overwrite: bool) -> None:
    """Make room for the results; only what a demo writes is ever removed."""
    present = [path for path in _paths(out).values() if path.exists()]
    if present and not overwrite:
        raise FileExistsError(
            f"{out} holds an earlier demo ({present[0].name}). Pass another --out, or --overwrite to replace it."
        )
    for path in present:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)


def _write(
    out: Path, train: SpatialData, test: SpatialData, model: Model, table: pd.DataFrame, *, gene: str
) -> dict[str, Path]:
    paths = _paths(out)
    train.write(paths["training section"])
    test.write(paths["predicted section"])
    model.save(paths["trained model"])
    table.to_csv(paths["table"])
    figure(test, gene=gene).savefig(paths["figure"], dpi=110)
    tl.report(test, "pixnet", path=paths["report"], tissue_key="tissue", title="stpredict demo: a simulated section")
    return paths


def _text(table: pd.DataFrame) -> str:
    """The table with three decimals; a dash where a row has no such score, NaN where the score is not defined."""
    text = table.map(lambda value: "NaN" if np.isnan(value) else f"{value:.3f}").astype(str)
    spots = table.columns.get_level_values(0)[0]
    text.loc[[NEAREST, ORACLE_MAP], spots] = "-"
    return text.to_string()


def figure(test: SpatialData, *, gene: str) -> Figure:
    """Six panels: H&E, true and predicted map of a gene; its spots as measured, as predicted, and one against another.

    Parameters
    ----------
    test : SpatialData
        A toy section with images["pixnet"], images["truth"] and the layer "pixnet".
    gene : str
        One that was predicted.
    """
    drawn = Figure(figsize=(15, 9.6), layout="constrained")
    (tissue, truth, predicted), (measured, spots, scatter) = drawn.subplots(2, 3)
    _histology(test, tissue)
    values = test.images["truth"].sel(c=gene).to_numpy().astype(np.float64)
    low, high = np.nanpercentile(values, (1, 99))
    for ax, key, title in ((truth, "truth", "truth at every pixel"), (predicted, "pixnet", "PixNet's map")):
        pl.raster(test, key, gene=gene, image_key="image", ax=ax, alpha=1.0, vmin=float(low), vmax=float(high))
        ax.set_title(f"{gene}\n{title}")
    for ax in (tissue, predicted):
        ax.set(xlim=truth.get_xlim(), ylim=truth.get_ylim())
    pl.compare(test, "pixnet", gene=gene, shapes_key="spots", image_key="image", axes=[measured, spots])
    pl.gene_scatter(test, "pixnet", gene=gene, shapes_key="spots", image_key="image", ax=scatter)
    return drawn


def _histology(test: SpatialData, ax: Axes) -> None:
    whole, *coarser = (next(iter(level.data_vars.values())) for level in test.images["image"].values())
    drawn = coarser[0] if coarser else whole
    ax.imshow(drawn.transpose("y", "x", "c").to_numpy(), extent=(0, whole.sizes["x"], whole.sizes["y"], 0))
    ax.set(title="the section that was predicted\nH&E, simulated", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
