"""Unseen genes as a protocol: train on some genes of a panel, ask for all, and score beside every null."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from stpredict import _spatialdata, _training, metrics
from stpredict._arguments import check_arguments
from stpredict._record import hashed_settings, stable_hash
from stpredict.models._base import weights_sha256
from stpredict.tl._benchmark import _steps
from stpredict.tl._cache import count_summary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._section import Section
    from stpredict.models import Model

logger = logging.getLogger("stpredict")


def unseen_genes(
    train: Sequence[SpatialData | str | Path],
    test: Sequence[SpatialData | str | Path],
    models: Mapping[str, Callable[[Sequence[str]], Model]],
    *,
    genes: Sequence[str],
    shares: Sequence[float] = (0.2, 0.4, 0.6),
    seeds: Sequence[int] = (0, 1, 2),
    chromosomes: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str = "table",
    layer: str | None = None,
    target: _spatialdata.Target = "log1p_cp10k",
    mpp: float | None = None,
    min_counts: float | None = None,
    max_epochs: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Score text-queried models on genes whose counts they never saw.

    Parameters
    ----------
    train, test : Sequence[SpatialData | str | Path]
        Sections to train on, and others to score on.
    models : Mapping[str, Callable[[Sequence[str]], Model]]
        Name -> function of the seen genes that returns a fresh model, which must have an embedding of all `genes`.
    genes : Sequence[str]
        The panel that is split.
    shares : Sequence[float], default (0.2, 0.4, 0.6)
        Which shares of the panel are seen, each above 0 and below 1.
    seeds : Sequence[int], default (0, 1, 2)
        Seeds of the random splits, of first weights and of training.
    chromosomes : Mapping[str, str], optional
        Gene -> chromosome: whole chromosomes are seen or unseen, in an order drawn by the seed. None: random genes.
    path : str | Path, optional
        Folder for one file a (model, share, seed), so that an interrupted run goes on where it was. The files of other
        genes, counts, settings or first weights of the model are refused.
    image_key, shapes_key : str, optional
        As for `stp.tl.train`, the same for all sections.
    table_name : str, default "table"
        As for `stp.tl.train`, the same for all sections.
    layer : str, optional
        As for `stp.tl.train`, the same for all sections.
    target : {"log1p_cp10k", "as_is"}, default "log1p_cp10k"
        As for `stp.tl.train`, the same for all sections.
    mpp : float, optional
        As for `stp.tl.train`, the same for all sections.
    min_counts : float, optional
        Total counts that a spot, bin or cell needs to be used. None: 500 from the area of a 55-um spot up, less in
        proportion to a smaller median area (`stp.metrics.default_min_counts`).
    max_epochs : int, optional
        Number of epochs, the same for all models; None: each model's own recipe.
    device : str, default "auto"
        As for `stp.tl.train`.
    progress : bool, default True
        Show progress bars.

    Returns
    -------
    DataFrame
        One row per model, share, seed, section, predictor and kind of genes ("seen", "unseen", "all"): pcc_f, pcc_s,
        pcc_m (ALL), heg, hvg, spearman (mean over genes), n_genes. Predictors are the model itself and, for unseen
        genes, the nulls of protocol stp-2: "mean of seen" predictions; "nearest text", the prediction of the seen gene
        whose embedding is nearest (cosine); "permuted", the model asked with the text of another unseen gene, averaged
        over all others; "log depth" of the spot. MSE is not given: an unseen gene has no scale.

    Raises
    ------
    ValueError
        For a share that leaves no gene on one side, a model that does not answer by text, and a section on both sides.
    FileNotFoundError
        For a store that is not there.

    References
    ----------
    Protocol stp-2, "Unseen genes"; the shares of GeneQuery (arXiv 2411.18391, Table 3).
    """
    check_arguments(unseen_genes, locals())
    to_train, to_test = _spatialdata.all_opened(train, "train"), _spatialdata.all_opened(test, "test")
    spec = _spatialdata.SectionSpec(
        image_key=image_key, shapes_key=shapes_key, table_name=table_name, layer=layer, target=target, mpp=mpp,
        min_counts=min_counts,
    )  # fmt: skip
    _check_apart(to_train, to_test, spec)
    splits = [_Split(share, seed, *_split(genes, share, seed, chromosomes)) for share in shares for seed in seeds]
    frames = []
    for split in splits:
        for name, build in models.items():
            run = _Run(
                name=name, build=build, split=split, genes=tuple(genes), spec=spec, max_epochs=max_epochs,
                device=device, progress=progress,
            )  # fmt: skip
            frames.append(_rows_of(run, to_train, to_test, path))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class _Split:
    share: float
    seed: int
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Run:
    name: str
    build: Callable[[Sequence[str]], Model]
    split: _Split
    genes: tuple[str, ...]
    spec: _spatialdata.SectionSpec
    max_epochs: int | None
    device: str
    progress: bool


def _check_apart(train: Sequence[SpatialData], test: Sequence[SpatialData], spec: _spatialdata.SectionSpec) -> None:
    """Raise ValueError where a section is trained and scored on: its spots are known, whatever the genes."""
    counts = [[count_summary(sdata, spec)["counts"] for sdata in part] for part in (train, test)]
    both = [i for i, held in enumerate(counts[1]) if held in counts[0]]
    if both:
        raise ValueError(
            f"test sections {both} are training sections, too (the same counts). Score on sections that no model was "
            "trained on."
        )


def _split(
    genes: Sequence[str], share: float, seed: int, chromosomes: Mapping[str, str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Seen and unseen genes, both in panel order."""
    rng = np.random.default_rng([seed, round(share * 1000)])
    n = round(share * len(genes))
    if chromosomes is None:
        seen = set(rng.choice(len(genes), n, replace=False).tolist()) if 0 < n <= len(genes) else set()
    else:
        missing = [gene for gene in genes if gene not in chromosomes]
        if missing:
            raise ValueError(f"chromosomes lacks {len(missing)} of {len(genes)} genes: {missing[:5]}.")
        order = rng.permutation(sorted({chromosomes[gene] for gene in genes}))
        reached = np.cumsum([sum(chromosomes[gene] == c for gene in genes) for c in order])
        wanted = set(order[: max(1, int(np.argmin(np.abs(reached - n))) + 1)])
        seen = {i for i, gene in enumerate(genes) if chromosomes[gene] in wanted}
    if not 1 < len(seen) < len(genes):
        raise ValueError(f"a share of {share} of {len(genes)} genes leaves {len(seen)} seen; both sides need some.")
    parts = [i in seen for i in range(len(genes))]
    return (
        tuple(g for g, s in zip(genes, parts, strict=True) if s),
        tuple(g for g, s in zip(genes, parts, strict=True) if not s),
    )


def _rows_of(
    run: _Run, train: Sequence[SpatialData], test: Sequence[SpatialData], path: str | Path | None
) -> pd.DataFrame:
    """The rows of one run, from its file if there is one."""

    def key_of(model: Model) -> str:
        sections = [count_summary(sdata, run.spec) for sdata in (*train, *test)]
        settings = (hashed_settings(asdict(model.config)), weights_sha256(model), _elements(run.spec), run.max_epochs)
        return stable_hash(run.split.seen, run.genes, len(train), sections, *settings)

    made = _steps.cached_run(
        lambda: run.build(run.split.seen),
        run.split.seed,
        None if path is None else Path(path) / f"{run.name}_{run.split.share:g}_seed{run.split.seed}.json",
        key_of,
        lambda model: {"rows": _scored(run, model, train, test).to_dict("records")},
        name=run.name,
    )
    return pd.DataFrame(made["rows"])


def _scored(run: _Run, model: Model, train: Sequence[SpatialData], test: Sequence[SpatialData]) -> pd.DataFrame:
    if not model.is_text_queried or model.genes != run.split.seen:
        raise ValueError(
            f"models[{run.name!r}] must return a model that answers by text, with the genes it is given as its panel."
        )
    sections = [_spatialdata.training_section(s, run.spec, genes=model.genes, at_mpp=model.mpp) for s in train]
    options = _training.TrainOptions(
        seed=run.split.seed, max_epochs=run.max_epochs, device=run.device, progress=run.progress
    )
    _steps.fit(model, sections, options, target=run.spec.target)
    rows = []
    for sdata in test:
        section = _spatialdata.training_section(sdata, run.spec, genes=run.genes, at_mpp=model.mpp)
        for row in _rows(model, section, _log_depth(sdata, run.spec), run):
            head = {"model": run.name, "share": run.split.share, "seed": run.split.seed, "section": section.name}
            rows.append(head | row)
    logger.info("%s, %g of the genes seen, seed %d: done", run.name, run.split.share, run.split.seed)
    return pd.DataFrame(rows)


def _elements(spec: _spatialdata.SectionSpec) -> dict[str, Any]:
    """What a finished run is compared by, as it stands in its file."""
    elements = asdict(spec)
    del elements["tissue_key"]
    if elements["min_counts"] is None:  # as in files of the time before it could be given
        del elements["min_counts"]
    return elements


def _log_depth(sdata: SpatialData, spec: _spatialdata.SectionSpec) -> NDArray[np.float64]:
    """(n,) log of the total count of every scored spot."""
    rows, _ = _spatialdata.usable_rows(sdata, spec)
    table = sdata.tables[spec.table_name]
    return np.log(_spatialdata.totals(_spatialdata.matrix_of(table, spec.layer, what="table")[rows]))


def _rows(model: Model, section: Section, depth: NDArray[np.float64], run: _Run) -> Iterator[dict[str, Any]]:
    pred, measured = _steps.predict_and_measure(model, section, run.genes, device=run.device)
    true = measured.astype(np.float64)
    seen = np.isin(run.genes, run.split.seen)
    for kind, columns in (("seen", seen), ("unseen", ~seen), ("all", np.ones_like(seen))):
        yield _row("model", kind, pred[:, columns], true[:, columns])
    unseen = true[:, ~seen]
    mean = pred[:, seen].mean(axis=1, keepdims=True)
    yield _row("mean of seen", "unseen", np.broadcast_to(mean, unseen.shape), unseen)
    nearest = _nearest(model, run.split)
    yield _row("nearest text", "unseen", pred[:, seen][:, nearest], unseen)
    yield _row("log depth", "unseen", np.broadcast_to(depth[:, None], unseen.shape), unseen)
    yield _permuted(pred[:, ~seen], unseen)


def _row(predictor: str, kind: str, pred: NDArray[Any], true: NDArray[np.float64]) -> dict[str, Any]:
    scores = metrics.correlation_summary(metrics.pcc(pred, true), true)
    return (
        {"predictor": predictor, "genes": kind}
        | scores
        | {
            "spearman": _mean(metrics.spearman(pred, true)),
            "n_genes": true.shape[1],
        }
    )


def _mean(r: NDArray[np.float64]) -> float:
    """The mean of the correlations that are defined; NaN where none is."""
    known = r[np.isfinite(r)]
    return float(known.mean()) if len(known) else float("nan")


def _permuted(pred: NDArray[Any], true: NDArray[np.float64]) -> dict[str, Any]:
    """Each gene asked with the text of every other unseen gene, the correlations averaged."""
    by_rank = _of_others(rankdata(pred, axis=0), rankdata(true, axis=0))
    scores = metrics.correlation_summary(_of_others(pred, true), true)
    return (
        {"predictor": "permuted", "genes": "unseen"} | scores | {"spearman": _mean(by_rank), "n_genes": true.shape[1]}
    )


def _of_others(pred: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """(g,) mean correlation of every true gene with the predictions of all others."""
    by_shift = [metrics.pcc(np.roll(pred, shift, axis=1), true) for shift in range(1, true.shape[1])]
    return np.array([_mean(column) for column in np.transpose(by_shift)])


def _nearest(model: Model, split: _Split) -> NDArray[np.int64]:
    """For every unseen gene the position of the seen gene whose text is nearest, by cosine."""
    seen, unseen = (model.text_vectors(genes) for genes in (split.seen, split.unseen))
    seen, unseen = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (seen, unseen))
    return np.argmax(unseen @ seen.T, axis=1)
