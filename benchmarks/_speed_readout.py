"""Read-out: ours against rasterio + bincount, exactextract, and rasterize + spatialdata.aggregate."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import exactextract
import numpy as np
import pandas as pd
import psutil
import shapely
import spatialdata as sd
import torch
from exactextract.raster import NumPyRasterSource
from geopandas import GeoDataFrame
from rasterio.features import rasterize
from spatialdata.models import Image2DModel, ShapesModel

import stpredict as stp
from stpredict import _coverage, _spatialdata
from stpredict._window import Window

SIDE = 2048
WHOLE = Window(0, 0, SIDE, SIDE)
N_GENES, N_GENES_SLOW = 50, 20  # the latter of spatialdata, which takes minutes for 50


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Shapes on 2048 x 2048 pixels of 3.2 um (spots) and 1 um (bins, cells): geometry and radius."""
    rng = np.random.default_rng(0)
    step = 100 / 3.17
    rows = np.arange(9, SIDE - 9, step * np.sqrt(3) / 2)
    spots = np.array([(x, y) for i, y in enumerate(rows) for x in np.arange(9 + i % 2 * step / 2, SIDE - 9, step)])
    corner = np.stack(np.meshgrid(*2 * [np.arange(250) * 8.0]), axis=-1).reshape(-1, 2) + 24
    bins = shapely.box(*corner.T, *(corner + 8).T)
    turn = np.deg2rad(1.0)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * 0.96
    turned = shapely.transform(bins, lambda xy: (xy - SIDE / 2) @ matrix.T + SIDE / 2)
    angle, reach = np.arange(24) / 24 * 2 * np.pi, 5 * (1 + 0.15 * rng.standard_normal((20_164, 24, 1)))
    ring = rng.uniform(8, SIDE - 8, (20_164, 1, 2)) + reach * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    cells = shapely.polygons(ring)
    cells = cells[shapely.is_valid(cells)]
    radius = {"Visium spots": np.full(len(spots), 8.66)}
    shapes = {
        "Visium spots": shapely.points(spots), "8 um bins": bins, "8 um bins turned by 1 degree": turned, "cells": cells
    }  # fmt: skip
    return {name: (each, radius.get(name, np.full(len(each), np.nan))) for name, each in shapes.items()}


def ours(geometry: np.ndarray, radius: np.ndarray, cells: np.ndarray) -> np.ndarray:
    weights = _coverage.Weights.of(_coverage.coverage(_coverage.Shapes(geometry, radius), WHOLE))
    return weights.of_cells(cells) / weights.area[:, None]


def bincount(polygons: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Pixels belong to the shape that covers their centre."""
    pairs = ((polygon, i + 1) for i, polygon in enumerate(polygons))
    labels = rasterize(pairs, out_shape=(SIDE, SIDE), fill=0, dtype="int32").ravel()
    n = np.maximum(np.bincount(labels, minlength=len(polygons) + 1), 1)
    sums = [np.bincount(labels, plane, minlength=len(polygons) + 1) for plane in planes]
    return (np.stack(sums, axis=1) / n[:, None])[1:]


def exact(polygons: np.ndarray, planes: np.ndarray) -> pd.DataFrame:
    flipped = shapely.transform(polygons, lambda xy: np.column_stack([xy[:, 0], SIDE - xy[:, 1]]))
    stack = planes.reshape(-1, SIDE, SIDE)
    sources = [NumPyRasterSource(p, xmin=0, ymin=0, xmax=SIDE, ymax=SIDE, name=str(i)) for i, p in enumerate(stack)]
    frame = GeoDataFrame(geometry=flipped, crs="EPSG:3857")
    return exactextract.exact_extract(sources, frame, "mean", output="pandas")


def through_spatialdata(frame: GeoDataFrame, planes: np.ndarray) -> sd.SpatialData:
    image = Image2DModel.parse(planes.reshape(-1, SIDE, SIDE), dims=("c", "y", "x"))
    labels = sd.rasterize(
        ShapesModel.parse(frame), ["x", "y"], min_coordinate=[0, 0], max_coordinate=[SIDE, SIDE],
        target_coordinate_system="global", target_unit_to_pixels=1.0, return_regions_as_labels=True,
    )  # fmt: skip
    return sd.aggregate(values=image, by=labels, agg_func="mean")


def seconds(rounds: int, call: Callable[..., object], *given: object) -> float:
    """Median time of a call."""
    return float(np.median(timeit.repeat(partial(call, *given), number=1, repeat=rounds)))


def table(rounds: int) -> str:
    cells = np.random.default_rng(1).random((SIDE * SIDE, N_GENES), dtype=np.float32)
    few = np.ascontiguousarray(cells[:, :N_GENES_SLOW])
    lines = [
        f"{SIDE} x {SIDE}, {N_GENES} genes (spatialdata {N_GENES_SLOW}, against ours with {N_GENES}: a lower bound), "
        f"medians of {rounds} rounds (one of exactextract and spatialdata): their time over ours, which works out the "
        "coverage in every round but where it is kept. The error is that of the mean against float64.\n",
        "| shapes | n | spatialdata | exactextract | rasterio + bincount | the same, coverage kept | worst error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (geometry, radius) in cases().items():
        lines.append(f"| {name} | {len(geometry)} | {row(geometry, radius, cells, few, rounds)} |")
    return "\n".join([*lines, "", against_a_read(rounds)])


def row(geometry: np.ndarray, radius: np.ndarray, cells: np.ndarray, few: np.ndarray, rounds: int) -> str:
    polygons = np.where(np.isnan(radius), geometry, shapely.buffer(geometry, np.nan_to_num(radius), quad_segs=16))
    coverage = _coverage.coverage(_coverage.Shapes(geometry, radius), WHOLE)
    weights, planes = _coverage.Weights.of(coverage), np.ascontiguousarray(cells.T)
    own, kept = seconds(rounds, ours, geometry, radius, cells), seconds(rounds, weights.of_cells, cells)
    counted = seconds(rounds, bincount, polygons, planes)
    slow = seconds(1, through_spatialdata, GeoDataFrame(geometry=polygons), planes[:N_GENES_SLOW])
    ratios = [
        slow / own, seconds(1, exact, polygons, planes) / own, counted / own,
        counted / kept,
    ]  # fmt: skip
    true = (coverage @ few.astype(float)) / coverage.sum(axis=1)[:, None]
    error = np.abs(ours(geometry, radius, few) / true - 1).max()
    return " | ".join([*(f"{ratio:.1f}x" for ratio in ratios), f"{error:.0e}"])


def against_a_read(rounds: int) -> str:
    """250 genes from memory, against one read (a sum by torch on all threads) of the same block."""
    block = torch.rand(SIDE * SIDE, 250)
    read = seconds(rounds, block.sum)
    found = []
    for name, (geometry, radius) in cases().items():
        weights = _coverage.Weights.of(_coverage.coverage(_coverage.Shapes(geometry, radius), WHOLE))
        found.append(f"{name} {seconds(rounds, weights.of_cells, block.numpy()) / read:.1f}x")
    return f"250 genes in memory, coverage kept, against one read of the block: {', '.join(found)}."


def bins(n_side: int, n_genes: int) -> None:
    """Aggregate a stored raster of 4 um in n_side^2 bins of 8 um; prints seconds and megabytes.

    The shapes are in micrometres, so that they are moved to the raster's pixels, as those of a user.
    """
    with tempfile.TemporaryDirectory() as folder:
        rng, side = np.random.default_rng(0), 2 * n_side
        sdata = sd.SpatialData()
        corner = np.stack(np.meshgrid(*2 * [np.arange(n_side) * 8.0]), axis=-1).reshape(-1, 2)
        frame = GeoDataFrame(geometry=shapely.box(*corner.T, *(corner + 8).T))
        sdata.shapes["bins"] = ShapesModel.parse(frame)
        sdata.write(Path(folder) / "slide.zarr")
        target = _spatialdata.RasterTarget(
            _spatialdata.open_store(sdata), "maps", genes=[f"g{i}" for i in range(n_genes)], shape=(side, side),
            transformations={"global": sd.transformations.Scale([4.0, 4.0], axes=("x", "y"))}, chunk_px=250,
        )  # fmt: skip
        with target:
            for y in range(0, side, 250):
                for x in range(0, side, 250):
                    values = rng.random((n_genes, 250, 250), dtype=np.float32)
                    target.write(slice(y, y + 250), slice(x, x + 250), values)
            _spatialdata.commit(sdata, [target.image({})], overwrite=False)
        before = psutil.Process().memory_info().rss / 2**20
        took = seconds(1, partial(stp.tl.aggregate, sdata, "maps", shapes_key="bins"))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        table = sdata.tables["bins_maps"]
        result = (table.X.nbytes + table.layers["maps"].nbytes) / 2**20
        print(took, before, after, result)


def million_bins(n_side: int = 1000, n_genes: int = 250) -> str:
    command = [sys.executable, "-c", f"import _speed_readout as s; s.bins({n_side}, {n_genes})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    took, before, after, result = map(float, done.stdout.split()[-4:])
    return (
        f"{n_side**2:,} bins of 8 um, {n_genes} genes, from a store and back into it: {took / 60:.1f} minutes; peak "
        f"{after:.0f} MB, of which {before:.0f} MB before the call and {result:.0f} MB the result"
    )
