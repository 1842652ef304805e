"""Every system on the same sections under one protocol that cannot leak."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from torch.nn import Module

from stpredict import _spatialdata, pp
from stpredict._arguments import check_arguments
from stpredict._messages import warn
from stpredict.tl._benchmark import _run as runs
from stpredict.tl._benchmark._folds import (
    Explicit,
    Fold,
    block_folds,
    diameter_um,
    groups_of,
    named_sections,
    section_folds,
    usable_spots,
)
from stpredict.tl._benchmark._labels import protocol_of
from stpredict.tl._cache import count_rules, count_summary, write_json

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict.models import Model

logger = logging.getLogger("stpredict")
RECORD, MADE = "protocol.json", "made.json"
REFERENCES = ("ceiling", "log depth", "measured")
SPOTS = ("image_key", "shapes_key", "table_name", "layer", "target", "tissue_key")  # which spots are usable


def benchmark(
    sdatas: Sequence[SpatialData | str | Path],
    models: Mapping[str, Callable[[Sequence[str]], Model]],
    *,
    cv: Literal["leave-one-section-out", "blocks"] | int | Explicit,
    groups: Sequence[str] | None = None,
    groups_reason: str | None = None,
    n_genes: int = 250,
    by: Literal["mean", "hvg_union"] = "mean",
    genes: Sequence[str] | None = None,
    target: _spatialdata.Target = "log1p_cp10k",
    raw_counts: bool = True,
    mpp: float | None = None,
    seeds: Sequence[int] | Mapping[str, Sequence[int]] = (0,),
    val: float = 0.0,
    margin_um: float = 300.0,
    max_epochs: int | None = None,
    path: str | Path | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str = "table",
    layer: str | None = None,
    tissue_key: str | None = None,
    min_counts: float | None = None,
    smooth_labels: bool = False,
    panel_totals: bool = False,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Train and score models on sections that they have not seen, all under the same stated protocol.

    Parameters
    ----------
    sdatas : Sequence[SpatialData | str | Path]
        Sections (objects, or paths of stores) with raw counts, each with a name of its own.
    models : Mapping[str, Callable[[Sequence[str]], Model]]
        Name -> function of the fold's panel that returns a fresh model. The first one is what others are compared with.
    cv : {"leave-one-section-out", "blocks"} | int | Mapping[str, tuple[Sequence[str], Sequence[str]]]
        "leave-one-section-out" (leave one group out, where groups have several sections); a number of folds; "blocks":
        three folds of spatial blocks within every section; or {fold: (names to train on, names to test on)}, such as
        two data sets for transfer.
    groups : Sequence[str], optional
        The patient of every section: a patient's sections stay together, and models that keep patients apart (`EGN`'s
        exemplars) are told them in place of ``sdata.attrs["patient"]``. None, with the reason in `groups_reason`:
        sections are told apart by nothing else. Blocks need no groups.
    groups_reason : str, optional
        Why there are no groups; the result keeps it.
    n_genes : int, default 250
        Size of the panel of every fold, chosen on its training part (`stp.pp.gene_panel`).
    by : {"mean", "hvg_union"}, default "mean"
        How the panel is chosen, see `stp.pp.gene_panel`.
    genes : Sequence[str], optional
        A published panel, which was chosen elsewhere, perhaps on the test sections; None: `n_genes` genes chosen on the
        training part of every fold.
    target : {"log1p_cp10k", "as_is"}, default "log1p_cp10k"
        As for `stp.tl.train`, the same for all sections.
    mpp : float, optional
        As for `stp.tl.train`, the same for all sections.
    image_key, shapes_key : str, optional
        As for `stp.tl.train`, the same for all sections.
    table_name : str, default "table"
        As for `stp.tl.train`, the same for all sections.
    layer, tissue_key : str, optional
        As for `stp.tl.train`, the same for all sections.
    min_counts : float, optional
        Total counts that a spot, bin or cell needs to be used. None: 500 from the area of a 55-um spot up, less in
        proportion to a smaller median area (`stp.metrics.default_min_counts`).
    raw_counts : bool, default True
        False for counts that are integers but not raw (normalised, then rounded): they have no noise ceiling.
    smooth_labels : bool, default False
        True to train on and to score labels that are means over 3 x 3 spots of the array, as TRIPLEX and its successors
        do: to approach published figures, not to judge models. The result is of another protocol.
    panel_totals : bool, default False
        True for counts per 10,000 of the panel's genes in place of all genes, as there; another protocol, too.
    seeds : Sequence[int] | Mapping[str, Sequence[int]], default (0,)
        Of training; for all models, or {model: seeds}.
    val : float, default 0.0
        Share of every training section that is held out, as blocks, to choose the epoch (and the share of
        a PixNet's context). 0: all epochs of the recipe.
    margin_um : float, default 300.0
        For blocks: training spots nearer than this (between centres) to a test spot are left out. The default is more
        than a patch of 256 um and a spot, so that no model sees a test patch in training.
    max_epochs : int, optional
        Number of epochs, the same for all models; None: each model's own recipe.
    path : str | Path, optional
        Folder where every finished run is kept at once (a model, fold and seed), `protocol.json`, and in the end
        `made.json` (configurations, seeds, versions, devices): an interrupted benchmark goes on where it was, and a
        failed run is tried again, with a warning where versions differ.
    device, precision : str, default "auto"
        As for `stp.tl.train`.
    progress : bool, default True
        Show progress bars.

    Returns
    -------
    DataFrame
        A tidy DataFrame, one row per model, seed, fold, section, gene and metric: value, diameter_um (of the shapes),
        seconds (training), peak_mb, n_parameters, error, protocol. Metrics are those of `stp.metrics.METRICS` (ssim is
        NaN where shapes are no array of spots). Three models are none: "ceiling" and "log depth" (their pcc by protocol
        stp-2; raw counts only), and "measured" (mean and variance of the target, by which HEG and HVG are told). A run
        that failed has one row, which says why in `error`. ``attrs["protocol"]`` says everything that was decided,
        among it how many counts a shape of each section needed, and which totals are those of a targeted panel (fewer
        than 7,000 genes). `stp.tables` makes tables of it.

    Raises
    ------
    ValueError
        For labels of another protocol without counts, names that are not unique, groups that do not cover the sections,
        too few sections or groups for `cv`, a panel larger than the common genes, and a folder of another protocol.
    FileNotFoundError
        For a store that is not there.

    References
    ----------
    Protocol stp-2; with `panel_totals` stp-2-panel, with `smooth_labels` stp-2-smooth, with both stp-2-panel-smooth.

    Examples
    --------
    >>> result["fold"].nunique(), sorted(result["model"].unique())
    (2, ['Mean', 'Ridge', 'ceiling', 'log depth', 'measured'])
    """
    check_arguments(benchmark, locals())
    spec = _spatialdata.SectionSpec(
        image_key=image_key, shapes_key=shapes_key, table_name=table_name, layer=layer, target=target, mpp=mpp,
        tissue_key=tissue_key, min_counts=min_counts,
    )  # fmt: skip
    _check_models(models)
    protocol = protocol_of(target, smooth_labels=smooth_labels, panel_totals=panel_totals)
    of_seeds = {name: list(_seeds(seeds, name)) for name in models}
    sections = named_sections(_spatialdata.all_opened(sdatas), spec)
    grouped = groups_of(sections, groups, groups_reason, cv)
    folds = _folds(sections, cv, grouped, margin_um, spec)
    panels = {fold.name: _panel(fold, sections, genes, n_genes, by, spec) for fold in folds}
    plan = {"max_epochs": max_epochs, "precision": precision}
    folder = None if path is None else Path(path)
    setting = runs.Setting(
        spec=spec, training=plan, val=val, device=device, path=folder, raw_counts=raw_counts, groups=grouped,
        smooth_labels=smooth_labels, panel_totals=panel_totals,
    )  # fmt: skip
    elements = ("image_key", "shapes_key", "table_name", "layer", "target", "tissue_key", "min_counts")
    record = {name: getattr(spec, name) for name in elements} | {
        "protocol": protocol, "raw_counts": raw_counts, "precision": precision, "mpp": mpp, "val": val,
        "max_epochs": max_epochs, "cv": cv if isinstance(cv, str | int) else "explicit", "groups": grouped,
        "groups_reason": groups_reason, "margin_um": margin_um if cv == "blocks" else None,
        "panel": "published" if genes is not None else f"{n_genes} by {by}, from the training part of each fold",
        "folds": {f.name: {"train": f.train, "test": f.test, "panel": panels[f.name]} for f in folds},
        "sections": {name: count_summary(sdata, spec) for name, sdata in sections.items()},
    } | count_rules(sections, spec)  # fmt: skip
    _check_record(record, setting.path)
    frame, made = _all(folds, panels, sections, models, of_seeds, setting, progress=progress)
    frame["protocol"] = protocol
    frame.attrs["protocol"] = record | {"models": made, "seeds": of_seeds}
    if setting.path is not None:
        write_json(setting.path / MADE, {"models": made, "seeds": of_seeds})
    _warn_of_failed(frame)
    return frame


def _check_models(models: Mapping[str, Any]) -> None:
    """Raise ValueError for no model, for models in place of functions of the panel, and for names that are taken."""
    if not models:
        raise ValueError("models= is empty: pass {name: function of the panel} with at least one.")
    taken = sorted(set(models) & {*REFERENCES})
    wrong = [
        name for name, build in models.items() if isinstance(build, Module)
    ]  # it can be called, but is no function
    if wrong or taken:
        what = f"{wrong} are no functions" if wrong else f"{taken} are names of reference rows"
        raise ValueError(
            f"models=: {what}. Every fold has a panel of its own, so pass a function of the panel that returns a fresh "
            'model, such as {"Ridge": stp.models.Ridge} or {"mine": lambda genes: stp.models.PixNet(genes)}.'
        )


def _warn_of_failed(frame: pd.DataFrame) -> None:
    failed = frame.dropna(subset="error")
    if len(failed):
        runs_of = {name: f"{name} ({len(part)}: {part['error'].iloc[0]})" for name, part in failed.groupby("model")}
        warn(
            f"{len(failed)} runs failed, and their models have no place in the tables: {'; '.join(runs_of.values())}. "
            "The column `error` has all of them; with path=, the next call tries these again.",
        )


def _folds(
    sections: Mapping[str, SpatialData],
    cv: Any,
    grouped: Mapping[str, str] | None,
    margin_um: float,
    spec: _spatialdata.SectionSpec,
) -> list[Fold]:
    if cv == "blocks":
        return block_folds(sections, margin_um=margin_um, spec=spec)
    return section_folds(list(sections), cv, grouped)


def _panel(
    fold: Fold,
    sections: Mapping[str, SpatialData],
    genes: Sequence[str] | None,
    n_genes: int,
    by: Literal["mean", "hvg_union"],
    spec: _spatialdata.SectionSpec,
) -> tuple[str, ...]:
    """The fold's panel. Of the test part only the names of its genes are used: what it lacks cannot be scored."""
    train, test = fold.parts(sections, spec.table_name)
    had = [set(s.tables[spec.table_name].var_names.astype(str)) for s in (*train.values(), *test.values())]
    common = set.intersection(*had)
    if genes is not None:
        missing = [g for g in genes if g not in common]
        if missing:
            raise ValueError(
                f"fold {fold.name!r}: {len(missing)} of the {len(genes)} genes are not in all of its sections: "
                f"{missing[:5]}. Leave them out of genes=."
            )
        return tuple(genes)
    return tuple(
        pp.gene_panel(
            list(train.values()), n_genes=n_genes, by=by, among=common, table_name=spec.table_name, layer=spec.layer,
            target=spec.target, image_key=spec.image_key, shapes_key=spec.shapes_key, tissue_key=spec.tissue_key,
            min_counts=spec.min_counts,
        )
    )  # fmt: skip


def _check_record(record: Mapping[str, Any], folder: Path | None) -> None:
    """Write the protocol beside the results, or raise where results of another lie."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(record))
    file = folder / RECORD
    if file.is_file():
        known = json.loads(file.read_text())
        other = sorted(key for key in plain.keys() | known.keys() if plain.get(key) != known.get(key))
        if other:
            raise ValueError(
                f"{folder} holds results of another protocol: {', '.join(other)} differ. Its {RECORD} says which. Name "
                "another path=."
            )
        return
    write_json(file, plain)


def _all(
    folds: Sequence[Fold],
    panels: Mapping[str, tuple[str, ...]],
    sections: Mapping[str, SpatialData],
    models: Mapping[str, Callable[[Sequence[str]], Model]],
    seeds: Mapping[str, Sequence[int]],
    setting: runs.Setting,
    *,
    progress: bool,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows, and of every model that could be built and trained its config, and what made it."""
    diameters = {n: diameter_um(usable_spots(s, setting.spec)[1]) for n, s in sections.items()}
    frames: list[pd.DataFrame] = []
    made: dict[str, Any] = {}
    for fold in folds:
        train, test = fold.parts(sections, setting.spec.table_name)
        reference = runs.references(fold.name, panels[fold.name], test, setting)
        frames.append(reference.assign(diameter_um=reference["section"].map(diameters)))
        for name, build in models.items():
            for seed in seeds[name]:
                run = runs.Run(
                    name=name, build=build, seed=seed, fold=fold.name, panel=panels[fold.name], train=train, test=test
                )
                frame, of = _one(run, setting, diameters, progress=progress)
                frames.append(frame)
                if of is not None:
                    known = made.setdefault(name, {"config": of["config"], "made_by": []})
                    known["made_by"] += [] if of["made_by"] in known["made_by"] else [of["made_by"]]
    mixed = [name for name, of in made.items() if len(of["made_by"]) > 1]
    if mixed:
        warn(
            f"runs of {mixed} were made by different versions, devices or thread counts (attrs and {MADE} say which): "
            "delete the older files of path= for a table of one make.",
        )
    return pd.concat(frames, ignore_index=True).reindex(columns=list(runs.COLUMNS)), made


def _one(
    run: runs.Run, setting: runs.Setting, diameters: Mapping[str, float], *, progress: bool
) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """The rows of a run, and its result; one row that says why, and None, where it failed."""
    what = f"{run.name}, fold {run.fold}, seed {run.seed}"
    try:
        result = runs.result_of(run, setting)
    except Exception as error:  # whatever one model does, the others go on, and its row says why
        logger.exception("%s failed", what)
        said = f"{type(error).__name__}: {error}"
        return pd.DataFrame([{"model": run.name, "seed": run.seed, "fold": run.fold, "error": said}]), None
    frame = runs.rows_of(run, result, diameters)
    if progress:
        mean = frame.loc[frame["metric"] == "pcc", "value"].mean()
        logger.info("%s: PCC@M %.3f, training %.0f s", what, mean, frame["seconds"].iloc[0])
    return frame, result


def _seeds(seeds: Sequence[int] | Mapping[str, Sequence[int]], name: str) -> Sequence[int]:
    if not isinstance(seeds, Mapping):
        return seeds
    if name not in seeds:
        raise ValueError(f"seeds= names no seeds for model {name!r}; it has {sorted(seeds)}.")
    return seeds[name]
