"""One run of a benchmark: one model, one fold, one seed; trained, predicted, scored, and kept in a file."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
import torch
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

from stpredict import _spatialdata, _training, metrics
from stpredict._record import hashed_settings, stable_hash
from stpredict.models._base import weights_sha256
from stpredict.models._patches import array_grid
from stpredict.nn.device import resolve_device, resolve_precision
from stpredict.tl._benchmark import _steps
from stpredict.tl._benchmark._folds import centres_um, usable_spots
from stpredict.tl._benchmark._labels import relabelled
from stpredict.tl._cache import environment_info
from stpredict.tl.evaluate import nulls

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._section import Section
    from stpredict.models import Model

logger = logging.getLogger("stpredict")
NEAR = 1.25  # neighbours lie within this many median nearest-neighbour distances
COLUMNS = (
    "model", "seed", "fold", "section", "gene", "metric", "value", "diameter_um", "seconds", "peak_mb", "n_parameters",
    "error", "protocol",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same in all runs: how sections are read, how models are trained, and where results are kept."""

    spec: _spatialdata.SectionSpec
    training: Mapping[str, Any]
    val: float
    device: str
    path: Path | None
    raw_counts: bool = True
    groups: Mapping[str, str] | None = None
    smooth_labels: bool = False
    panel_totals: bool = False

    def labelled(self, section: Section) -> Section:
        """The section with the labels of this setting."""
        if not (self.smooth_labels or self.panel_totals):
            return section
        return relabelled(section, smooth_labels=self.smooth_labels, panel_totals=self.panel_totals)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model to build for a panel, on the parts of a fold."""

    name: str
    build: Callable[[Sequence[str]], Model]
    seed: int
    fold: str
    panel: tuple[str, ...]
    train: Mapping[str, SpatialData]
    test: Mapping[str, SpatialData]


def result_of(run: Run, setting: Setting) -> dict[str, Any]:
    """The scores of a run, from its file if there is one.

    Raises ValueError for a file of another panel, of other settings of the model, or of other weights to start from.
    """
    return _steps.cached_run(
        lambda: run.build(list(run.panel)),
        run.seed,
        None if setting.path is None else setting.path / f"{_file_name(run)}.json",
        lambda model: _fingerprint(run, model),
        lambda model: _measured(run, model, setting),
        name=run.name,
    )


def _file_name(run: Run) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{run.name}_{run.fold}")
    return f"{safe}_{hashlib.sha256(f'{run.name}/{run.fold}'.encode()).hexdigest()[:6]}_seed{run.seed}"


def _fingerprint(run: Run, model: Model) -> str:
    config = hashed_settings(asdict(model.config))
    # the weights that it starts from, and the texts that it knows, are part of what a model is
    return stable_hash(
        run.panel, config, type(model).__name__, weights_sha256(model), sorted(run.train), sorted(run.test)
    )


def _measured(run: Run, model: Model, setting: Setting) -> dict[str, Any]:
    if model.genes != run.panel:
        raise ValueError(f"models[{run.name!r}] must return a model of the panel that it is given, in its order.")
    device, start = resolve_device(setting.device), time.perf_counter()
    with _peak(setting.device) as peak:
        _fit(run, model, setting)
        seconds = time.perf_counter() - start
        found = {name: _scored(model, sdata, name, setting) for name, sdata in run.test.items()}
    return {
        "sections": found,
        "seconds": seconds,
        "peak_mb": peak[0],
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "made_by": environment_info(device, resolve_precision(setting.training["precision"], device)),
        "config": {k: v for k, v in asdict(model.config).items() if k not in ("genes", "vocabulary")},
    }


def _fit(run: Run, model: Model, setting: Setting) -> None:
    sections = [_section(model, s, name, setting) for name, s in run.train.items()]
    options = _training.TrainOptions(seed=run.seed, device=setting.device, progress=False, **setting.training)
    _steps.fit(model, sections, options, val=setting.val, target=setting.spec.target)


def _scored(model: Model, sdata: SpatialData, name: str, setting: Setting) -> dict[str, Any]:
    """Values by metric of one section, a value a gene; None where it is not defined."""
    section = _section(model, sdata, name, setting)
    pred, true = _steps.predict_and_measure(model, section, list(model.genes), device=setting.device)
    return {metric: _plain(values) for metric, values in scores(pred, true, section).items()}


def _section(model: Model, sdata: SpatialData, name: str, setting: Setting) -> Section:
    """The section as the model sees it, of the group that the caller says, else of the one that the object says."""
    section = _spatialdata.training_section(sdata, setting.spec, genes=model.genes, at_mpp=model.mpp, name=name)
    section = section if setting.groups is None else replace(section, group=setting.groups[name])
    return setting.labelled(section)


def scores(pred: NDArray[np.float32], true: NDArray[np.float32], section: Section) -> dict[str, NDArray[np.float64]]:
    """Every metric, (g,) each, and the moments; NaN for those on an array where the shapes are no array of spots."""
    graph = _neighbours(section)
    by_gene = {}
    for name, metric in metrics.METRICS.items():
        if metric.needs == "array":
            by_gene[name] = _on_array(metric, pred, true, section)
        else:
            by_gene[name] = metric.function(pred, true, *([graph] if metric.needs == "neighbours" else []))
    return by_gene | _moments(pred.astype(np.float64), true.astype(np.float64))


def _on_array(
    metric: metrics.Metric, pred: NDArray[np.float32], true: NDArray[np.float32], section: Section
) -> NDArray[np.float64]:
    """(g,) a score on the array of spots; NaN where the shapes are none."""
    try:
        return metric.function(pred, true, array_grid(section))
    except ValueError as error:
        logger.info("section %s has no %s: %s", section.name, metric.title, error)
        return np.full(pred.shape[1], np.nan)


def _moments(pred: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """What a correlation over the spots of several sections is made of, (g,) each."""
    return {
        "n_spots": np.full(pred.shape[1], float(len(pred))),
        "mean_pred": pred.mean(axis=0),
        "mean_true": true.mean(axis=0),
        "var_pred": pred.var(axis=0),
        "var_true": true.var(axis=0),
        "cov": ((pred - pred.mean(axis=0)) * (true - true.mean(axis=0))).mean(axis=0),
    }


def _neighbours(section: Section) -> csr_matrix:
    """(n, n) adjacency: shapes within 1.25 median nearest-neighbour distances of each other."""
    centre = centres_um(section)
    tree = KDTree(centre)
    near = NEAR * np.median(tree.query(centre, k=2)[0][:, 1])
    i, j = tree.query_pairs(near, output_type="ndarray").T
    ones = np.ones(2 * len(i))
    return csr_matrix((ones, (np.r_[i, j], np.r_[j, i])), shape=(len(centre), len(centre)))


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


@contextmanager
def _peak(device: str) -> Iterator[list[float]]:
    """Filled at the end: what the resident set of this process grew by at most, or the device's memory, in MB."""
    process, stop = psutil.Process(), threading.Event()
    start, found = process.memory_info().rss / 1e6, [0.0]
    on_device = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_device:
        torch.cuda.reset_peak_memory_stats()

    def watch() -> None:
        while not stop.wait(0.05):
            found[0] = max(found[0], process.memory_info().rss / 1e6 - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        if on_device:
            found[0] = torch.cuda.max_memory_allocated() / 1e6


def references(fold: str, panel: Sequence[str], test: Mapping[str, SpatialData], setting: Setting) -> pd.DataFrame:
    """Rows that belong to no model: "ceiling" and "log depth" (their pcc), and the mean and variance "measured"."""
    frames = []
    spec = setting.spec
    for name, sdata in test.items():
        rows, _ = _spatialdata.usable_rows(sdata, spec)
        table = sdata.tables[spec.table_name]
        matrix = _spatialdata.matrix_of(table, spec.layer, what=f"table {spec.table_name!r}")[rows]
        columns, _ = _spatialdata.match_genes(panel, list(table.var_names), what=f"section {name!r}", var=table.var)
        true = _spatialdata.target(matrix, target=spec.target, columns=columns, what=name).astype(np.float64)
        if other := setting.smooth_labels or setting.panel_totals:
            _, section = usable_spots(sdata, spec)
            expression = setting.labelled(
                replace(section, expression=true.astype(np.float32), genes=tuple(panel))
            ).expression
            assert expression is not None
            true = expression.astype(np.float64)
        found = {("measured", "mean"): true.mean(axis=0), ("measured", "variance"): true.var(axis=0)}
        if spec.target == "log1p_cp10k":
            depth, ceiling = nulls(matrix, columns, true, spec.target)
            found["log depth", "pcc"] = depth
            known = setting.raw_counts and not other  # thinned counts say nothing of a mean over spots
            found["ceiling", "pcc"] = ceiling if known else np.full(len(panel), np.nan)
        for (model, metric), values in found.items():
            head = {"model": model, "fold": fold, "section": name, "metric": metric}
            frames.append(pd.DataFrame({"gene": list(panel), "value": values}).assign(**head))
    return pd.concat(frames, ignore_index=True)


def rows_of(run: Run, result: Mapping[str, Any], diameters: Mapping[str, float]) -> pd.DataFrame:
    """The tidy rows of a run's result."""
    frames = []
    for section, by_metric in result["sections"].items():
        for metric, values in by_metric.items():
            head = {"section": section, "metric": metric, "diameter_um": diameters[section]}
            frames.append(pd.DataFrame({"gene": run.panel, "value": np.array(values, dtype=float)}).assign(**head))
    cost = {key: result[key] for key in ("seconds", "peak_mb", "n_parameters")}
    return pd.concat(frames, ignore_index=True).assign(model=run.name, seed=run.seed, fold=run.fold, **cost)
