"""Train a model on measured sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _spatialdata, _training
from stpredict._arguments import check_arguments
from stpredict._frames import HistoryFrame, named
from stpredict._places import lies_on, tissues
from stpredict._section import Section
from stpredict._spatialdata import Target
from stpredict.models import Ensemble
from stpredict.tl._domain import about, domain_record
from stpredict.tl._references import add_references

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpredict.models import Model
    from stpredict.tl._domain import Source


def train(
    sdatas: SpatialData | str | Path | Sequence[SpatialData | str | Path],
    model: Model,
    *,
    val: Sequence[SpatialData | str | Path] | float | Literal["sections"] | None = None,
    image_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    table_name: str | Sequence[str] = "table",
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
        that annotates them. An object may hold several: see `shapes_key`.
    model : Model
        A model of `stp.models`, fresh or loaded (then its weights are trained on). The members of an ensemble are
        trained one after the other, with the seeds `seed`, `seed + 1`, ... .
    val : Sequence[SpatialData | str | Path] | float | {"sections"}, optional
        Where validation loss, early stopping, what a model leaves to held-out shapes (the share of a PixNet's
        context), and what the card says of each gene (correlation, errors) come from:
        other sections; a share in (0, 1) of each training section, held out as spatial blocks; None: 0.15. 0 trains on
        everything, with no early stopping and no evidence. Sections of one image have the same blocks held out, and a
        shape across the border of one is left out. "sections", for an ensemble: each member leaves out one
        section, in turn, so that its errors are those on tissue that it has not seen.
    image_key : str | Sequence[str], optional
        Which image, one name for all sections; None: the only one there is, or of several the one that shares a
        coordinate system with the shapes. Or one for each entry of `shapes_key`.
    shapes_key : str | Sequence[str], optional
        Which shapes, one name for all objects; None: the only ones there are. Several names make as many sections of
        every object: its scales (bins of 16, 8 and 2 um, spots, cells), or its samples (the regions of one table).
    table_name : str | Sequence[str], default "table"
        Which table, one name for all sections, or one for each entry of `shapes_key`.
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
        Number of epochs; None: the model's own recipe (`model.recipe`), in more epochs where these have so few windows
        that it would end before its `min_steps`.
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
        given twice; for keys as lists of different lengths; for sections that cannot be used (see `stp.pp.gene_panel`
        for a panel that all have), one without a usable shape among several by its name; for validation sections on
        tissue that is trained on; and for a training that diverged, after which the model has no card.
    FileNotFoundError
        For a store that is not there, and for `resume` without a checkpoint.

    Notes
    -----
    With validation, the card keeps for each gene the correlation, the root mean squared error and the absolute errors
    that 80 and 90 % of the held-out shapes do not exceed; the correlation that Ridge reaches with the same training and
    held-out shapes (of at most 2,000 each; not for models that are a closed form themselves); and, of raw counts, the
    ceiling of the measurement (`stp.metrics.ceiling`). `stp.tl.predict` hands them on, see `stp.tl.reliability`.

    Examples
    --------
    >>> model = stp.models.Mean(genes)
    >>> history = stp.tl.train(train, model, shapes_key="spots", progress=False)
    >>> model.card.n_target_genes
    20
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
    spec = _spatialdata.SectionSpec(layer=layer, target=target, mpp=mpp, tissue_key=tissue_key, min_counts=min_counts)
    specs = _spatialdata.specs_of(spec, image_key=image_key, shapes_key=shapes_key, table_name=table_name)
    sections = _spatialdata.training_sections(given, specs, genes=model.genes, at_mpp=model.mpp)
    sources = [(sdata, each.resolved(sdata)) for sdata in given for each in specs]  # of the sections, in their order
    ensemble = _to_leave_out(model, sections) if val == "sections" else None
    _warn_of_shifts(sources, sections)
    sections = _training.in_memory(sections)  # for every member, and for Ridge
    if ensemble is not None:
        folds = [([s for s in sections if s is not one], [one]) for one in sections[: len(ensemble.models)]]
        source = "sections left out in turn: " + ", ".join(held[0].name for _, held in folds)
    elif others is None:
        share = 0.15 if val is None else float(val)  # type: ignore[arg-type]
        folds = [_training.hold_out_places(sections, share=share, seed=seed)]
        source = "spatial blocks held out of the training sections" if folds[0][1] else ""
    else:
        folds = [(sections, _spatialdata.training_sections(others, specs, genes=model.genes, at_mpp=model.mpp))]
        _check_apart(*folds[0])
        source = "validation sections: " + ", ".join(s.name for s in folds[0][1])
    card: dict[str, Any] = {
        "target": target, "sections": tuple(s.name for s in sections), "val_source": source, "licence": licence,
        "image_digests": tuple(dict.fromkeys(_spatialdata.picture_digest(s, each.image) for s, each in sources)),
        "n_target_genes": _n_target_genes(given, specs) if target != "as_is" else None,
        "min_counts": tuple(float(s.min_counts) for s in sections if s.min_counts is not None),
        "about": about(given),
    }  # fmt: skip
    with _training.stage("description of the training tissue", progress=progress):
        card["domain"] = domain_record(sources, sections, seed=seed)
    if ensemble is None:
        history = _training.fit(model, *folds[0], plan, **card)
    else:
        history = _training.fit_leaving_out(ensemble, sections, plan, **card)
    measured = sources if others is None else [(sdata, each.resolved(sdata)) for sdata in others for each in specs]
    beside = "Ridge and ceiling" if any(p.requires_grad for p in model.parameters()) else "ceiling"
    with _training.stage(f"{beside} on held-out shapes", progress=progress and any(held for _, held in folds)):
        add_references(model, folds, measured, plan)
    return named(history, HistoryFrame)


def _to_leave_out(model: Model, sections: Sequence[Section]) -> Ensemble:
    """The model, where its members can leave out one section each; else ValueError."""
    if isinstance(model, Ensemble) and len(sections) > 1:
        together = next((group for group in tissues(sections) if len(group) > 1), None)
        if together is None:
            return model
        raise ValueError(
            f"val='sections' leaves out one section in turn, but {[sections[i].name for i in together]} are of one "
            "tissue, which would be trained on as well. Pass val as a share, which holds out the same places of all."
        )
    raise ValueError(
        f"val='sections' leaves out one section for each member of an ensemble; got a {type(model).__name__} and "
        f"{len(sections)} sections. Pass stp.models.Ensemble([...]) and at least two sections, or val as a share or as "
        "other sections."
    )


def _warn_of_shifts(sources: Sequence[Source], sections: Sequence[Section]) -> None:
    for (sdata, spec), section in zip(sources, sections, strict=True):
        if spec.tissue_key is None:
            _spatialdata.warn_of_background(sdata, spec, section, measured=np.ones(section.n_shapes, bool))


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


def _check_apart(sections: Sequence[Section], val: Sequence[Section]) -> None:
    """Raise ValueError for a validation section that shows tissue which is trained on, perhaps at another scale."""
    together = [*sections, *val]
    for group in tissues(together):
        for k in (k for k in group if k >= len(sections)):
            for i in (i for i in group if i < len(sections)):
                held, fitted = together[k], together[i]
                n = int(lies_on(held, fitted).sum())
                if n:
                    raise ValueError(
                        f"validation section {held.name!r} shows the image of training section {fitted.name!r}, and "
                        f"{n} of its {held.n_shapes} shapes lie on shapes that are trained on. Validate on other "
                        "tissue, or pass val as a share such as 0.15, which holds out the same places at every scale."
                    )


def _n_target_genes(sdatas: Sequence[SpatialData], specs: Sequence[_spatialdata.SectionSpec]) -> int:
    """How many genes stand behind the totals of the narrowest table."""
    return min(sdata.tables[spec.table_name].n_vars for sdata in sdatas for spec in specs)
