"""Train a model on measured sections."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _spatialdata, _training
from stpredict._arguments import check_arguments
from stpredict._section import Section
from stpredict._spatialdata import Target
from stpredict.models import Ensemble
from stpredict.tl._domain import about, domain_record
from stpredict.tl._references import add_references

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpredict.models import Model

logger = logging.getLogger("stpredict")


def train(
    sdatas: SpatialData | str | Path | Sequence[SpatialData | str | Path],
    model: Model,
    *,
    val: Sequence[SpatialData | str | Path] | float | Literal["sections"] | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str = "table",
    layer: str | None = None,
    target: Target = "log1p_cp10k",
    mpp: float | None = None,
    tissue_key: str | None = None,
    min_counts: float | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    licence: str = "not stated",
) -> pd.DataFrame:
    """Train a model, or the members of an ensemble, in place on measured sections.

    Parameters
    ----------
    sdatas : SpatialData | str | Path | Sequence[SpatialData | str | Path]
        Training sections (objects, or paths of .zarr stores), each with an H&E image, shapes, and a table of raw counts
        that annotates them.
    model : Model
        A model of `stp.models`, fresh or loaded (then its weights are trained on). The members of an ensemble are
        trained one after the other, with the seeds `seed`, `seed + 1`, ... .
    val : Sequence[SpatialData | str | Path] | float | {"sections"}, optional
        Where validation loss, early stopping, and what the card says of each gene (correlation, errors) come from:
        other sections; a share in (0, 1) of each training section, held out as spatial blocks; None: 0.15. 0 trains on
        everything, with no early stopping and no evidence. "sections", for an ensemble: each member leaves out one
        section, in turn, so that its errors are those on tissue that it has not seen.
    image_key : str, optional
        Which image, one name for all sections; None: the only one there is.
    shapes_key : str, optional
        Which shapes, one name for all sections; None: the only ones there are.
    table_name : str, default "table"
        Which table, one name for all sections.
    layer : str, optional
        Layer of the table that holds raw counts, one name for all sections; None: X.
    target : {"log1p_cp10k", "as_is"}, default "log1p_cp10k"
        "log1p_cp10k": natural log1p of counts per 10,000 over all genes of the table; "as_is": values as they are.
    mpp : float, optional
        Micrometres per pixel of the full-resolution image, one number for all sections; None: found from the object.
    tissue_key : str, optional
        Shapes or labels that outline the tissue, one name for all sections; None: the whole image.
    min_counts : float, optional
        Total counts that a spot, bin or cell needs to be used. None: 500 from the area of a 55-um spot up, less in
        proportion to a smaller median area (`stp.metrics.default_min_counts`).
    max_epochs : int, optional
        Number of epochs; None: the model's own recipe (`model.recipe`).
    batch_size : int, optional
        Samples a step, of all `devices` together; None: the model's own recipe.
    lr : float, optional
        Peak learning rate; None: the model's own recipe.
    seed : int, default 0
        Of the training windows and the held-out blocks; of an ensemble that of the first member.
    device : str, default "auto"
        Passed to Lightning; "auto" takes CUDA if it is there, and logs it.
    precision : str, default "auto"
        Passed to Lightning; "auto" takes bf16 where the processor has it, and logs it.
    devices : int, default 1
        How many devices of one machine. Several are processes that hand the trained model back.
    strategy : str, default "auto"
        Lightning's strategy, such as "ddp". With several devices and outside a notebook, "auto" is "ddp_spawn": guard a
        script with ``if __name__ == "__main__"``.
    num_nodes : int, default 1
        How many machines.
    checkpoint_dir : str | Path, optional
        Folder for `last.ckpt` and `log/metrics.csv`.
    resume : bool, default False
        Go on from the checkpoint in `checkpoint_dir`, to the same result.
    progress : bool, default True
        Show progress bars.
    licence : str, default "not stated"
        Terms under which the trained weights may be used; written into the card.

    Returns
    -------
    DataFrame
        The history, one row an epoch: epoch, train_loss, val_loss (with validation), lr. Of an ensemble also member.

    Raises
    ------
    ValueError
        Before any work, for settings with which nothing could be trained, for what is no section and for one that is
        given twice; for sections that cannot be used (see `stp.pp.gene_panel` for a panel that all have); and for a
        training that diverged, after which the model has no card.
    FileNotFoundError
        For a store that is not there, and for `resume` without a checkpoint.

    Notes
    -----
    With validation, the card keeps for each gene the correlation, the root mean squared error and the absolute errors
    that 80 and 90 % of the held-out shapes do not exceed; the correlation that Ridge reaches with the same training and
    held-out shapes (of at most 2,000 each; not for models that are a closed form themselves); and, of raw counts, the
    ceiling of the measurement (`stp.metrics.ceiling`). `stp.tl.predict` hands them on, see `stp.tl.reliability`.
    """
    check_arguments(train, locals())
    plan = _training.TrainOptions(
        max_epochs=max_epochs, batch_size=batch_size, lr=lr, seed=seed, device=device, precision=precision,
        devices=devices, strategy=strategy, num_nodes=num_nodes, checkpoint_dir=checkpoint_dir, resume=resume,
        progress=progress,
    )  # fmt: skip
    given = _spatialdata.all_opened(sdatas)
    others = _spatialdata.all_opened(val, "val") if isinstance(val, Sequence) and not isinstance(val, str) else None
    _check_distinct(given, others or [])
    spec = _spatialdata.SectionSpec(
        image_key=image_key, shapes_key=shapes_key, table_name=table_name, layer=layer, target=target, mpp=mpp,
        tissue_key=tissue_key, min_counts=min_counts,
    )  # fmt: skip
    ensemble = _to_leave_out(model, len(given)) if val == "sections" else None
    sections = _training.in_memory(_sections(given, spec, model))  # for every member, and for Ridge
    if ensemble is not None:
        folds = [([s for s in sections if s is not one], [one]) for one in sections[: len(ensemble.models)]]
        source = "sections left out in turn: " + ", ".join(held[0].name for _, held in folds)
    elif others is None:
        share = 0.15 if val is None else float(val)  # type: ignore[arg-type]
        parts = [_training.split_spatial_blocks(s, share=share, seed=seed) for s in sections]
        folds = [([p[0] for p in parts], [p[1] for p in parts if p[1] is not None])]
        source = "spatial blocks held out of the training sections" if folds[0][1] else ""
    else:
        folds = [(sections, _sections(others, spec, model))]
        source = "validation sections: " + ", ".join(s.name for s in folds[0][1])
    card: dict[str, Any] = {
        "target": target, "sections": tuple(s.name for s in sections), "val_source": source, "licence": licence,
        "n_target_genes": min(sdata.tables[table_name].n_vars for sdata in given) if target != "as_is" else None,
    }  # fmt: skip
    card |= {"domain": domain_record(given, sections, spec, seed=seed), "about": about(given)}
    if ensemble is None:
        history = _training.fit(model, *folds[0], plan, **card)
    else:
        history = _training.fit_leaving_out(ensemble, sections, plan, **card)
    add_references(model, folds, given if others is None else others, spec, plan)
    return history


def _to_leave_out(model: Model, n_sections: int) -> Ensemble:
    """The model, where its members can leave out one section each; else ValueError."""
    if isinstance(model, Ensemble) and n_sections > 1:
        return model
    raise ValueError(
        f"val='sections' leaves out one section for each member of an ensemble; got a {type(model).__name__} and "
        f"{n_sections} sections. Pass stp.models.Ensemble([...]) and at least two sections, or val as a share or as "
        "other sections."
    )


def _check_distinct(sdatas: Sequence[SpatialData], val: Sequence[SpatialData]) -> None:
    """Raise ValueError for a section that is given twice, or to train on and to validate with."""
    given = [("sdatas", i, sdata) for i, sdata in enumerate(sdatas)]
    given += [("val", i, sdata) for i, sdata in enumerate(val)]
    for k, (name, i, sdata) in enumerate(given):
        for other, j, same in given[:k]:
            if sdata is same or (sdata.path is not None and sdata.path == same.path):
                raise ValueError(
                    f"{name}[{i}] is the same section as {other}[{j}]. Give every section once; to validate "
                    "on a part of the training sections, pass val as a share such as 0.15."
                )


def _sections(sdatas: Sequence[SpatialData], spec: _spatialdata.SectionSpec, model: Model) -> list[Section]:
    sections = [_spatialdata.training_section(sdata, spec, genes=model.genes, at_mpp=model.mpp) for sdata in sdatas]
    for sdata, section in zip(sdatas, sections, strict=True):
        if spec.tissue_key is None:
            everything = np.ones(section.n_shapes, bool)
            _spatialdata.warn_of_background(sdata, spec.resolved(sdata), section, measured=everything)
        logger.info("section %s: %d shapes; dropped: %s", section.name, section.n_shapes, dict(section.dropped))
    return sections
