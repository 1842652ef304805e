"""Write a model's latent features of every shape into obsm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _inference, _spatialdata
from stpredict._arguments import check_arguments
from stpredict._card import find_model, is_hub_name
from stpredict.models import load
from stpredict.nn.architecture import is_encoder_name
from stpredict.tl._predict._provenance import model_record
from stpredict.tl._readout import warn_of_empty

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict.models import Model


MPP, PATCH_PX = 0.5, 224  # of a plain encoder: 20x, and what most are trained on


def embed(
    sdata: SpatialData | str | Path,
    model: Model | str | Path,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str | None = None,
    mpp: float | None = None,
    tissue_key: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    encoder_weights: str | Path | None = None,
    encoder_mpp: float | None = None,
    patch_px: int | None = None,
    progress: bool = True,
) -> None:
    """Write what a model, or a plain encoder, sees of each shape before any gene is asked: its latent.

    Writes ``tables[table].obsm[key]`` float32 (n_obs, d), in the table that annotates the shapes: a model's latent,
    that of a dense one pooled inside the shape, or the mean of an encoder's last map over the patch around the shape.
    Rows whose shape has nothing on image or tissue are NaN, and so are rows of other shapes. The constant channel of a
    dense model is left out. scanpy goes on with use_rep=key once NaN rows are dropped; `stp.pl.latent` shows it.

    Parameters
    ----------
    sdata : SpatialData | str | Path
        A SpatialData object, or the path of a .zarr store.
    model : Model | str | Path
        A trained model, the name of a shipped one, or the folder of a saved one; or the name of an image encoder, of
        timm ("resnet50") or of a hub ("hf-hub:owner/name"), to show what a model adds to it.
    image_key, shapes_key, table_name : str, optional
        As for `stp.tl.predict`.
    mpp : float, optional
        As for `stp.tl.predict`.
    tissue_key : str, optional
        As for `stp.tl.predict`.
    overwrite : bool, default False
        As for `stp.tl.predict`.
    device, precision : str, default "auto"
        As for `stp.tl.predict`.
    batch_size : int | {"auto"}, default "auto"
        As for `stp.tl.predict`.
    key_added : str, optional
        Name of the obsm entry; None: ``X_`` and the model class, or the name of the encoder, in lower case, as in
        ``X_pixnet`` and ``X_resnet50``.
    encoder_weights : str | Path, optional
        Of a plain encoder: a local .safetensors state dict of timm; None: those that timm fetches for the name.
    encoder_mpp : float, optional
        Micrometres per pixel at which a plain encoder sees the image; None: 0.5.
    patch_px : int, optional
        Side of the patch that a plain encoder sees around each shape, in pixels; None: 224.
    progress : bool, default True
        Show progress bars.

    Raises
    ------
    ValueError
        Where no table annotates the shapes, for a key that is taken, for image, shapes, table and mpp as
        `stp.tl.predict` does, for a patch that an encoder does not take, and for settings of an encoder beside a model.
    FileNotFoundError
        For an unknown model or store.
    ConnectionError
        For an encoder whose weights, or whose description on a hub, are neither here nor to be had.

    Notes
    -----
    When it raises, nothing has changed.

    Examples
    --------
    >>> stp.tl.embed(slide, dense, shapes_key="spots", progress=False)
    >>> slide.tables["table"].obsm["X_pixnet"].shape[0] == slide.tables["table"].n_obs
    True
    """
    check_arguments(embed, locals())
    sdata = _spatialdata.opened(sdata)
    settings = {"encoder_weights": encoder_weights, "encoder_mpp": encoder_mpp, "patch_px": patch_px}
    model, name = _seer(model, {key: value for key, value in settings.items() if value is not None})
    if model.card is None:
        raise ValueError(f"this {name} was never trained. Call tl.train first, or load a trained model.")
    key = key_added or f"X_{name.lower()}"
    shapes_key = _spatialdata.resolve_shapes(sdata, shapes_key, table_name=table_name, tissue_key=tissue_key)
    table_name = _table(sdata, table_name, shapes_key)
    rows, positions = _spatialdata.table_rows(sdata, table_name, shapes_key)
    names = _spatialdata.NewNames(sdata, overwrite=overwrite)
    names.entry(table_name, key, group="obsm")
    names.check()
    spec = _spatialdata.SectionSpec(image_key=image_key, shapes_key=shapes_key, mpp=mpp, tissue_key=tissue_key)
    section = _spatialdata.section(sdata, spec, at_mpp=model.mpp)
    runtime = _inference.RuntimeOptions(
        device=device, precision=precision, batch_size=batch_size, progress=progress
    ).resolve(model.output)
    values, share = _inference.embed(model, section, runtime=runtime)
    where = "image and tissue" if tissue_key else "image"
    drop = f"t = t[~np.isnan(t.obsm[{key!r}][:, 0])]"
    warn_of_empty(int((share <= 0).sum()), len(share), where=where, drop=drop)
    wide = np.full((sdata.tables[table_name].n_obs, values.shape[1]), np.nan, dtype=np.float32)
    wide[rows] = values[positions]
    record = model_record(model, [], device=runtime.device, precision=runtime.precision)
    record = {name: value for name, value in record.items() if name not in ("genes", "link")}
    _spatialdata.commit(
        sdata, [_spatialdata.TableEntry(table_name, key, wide, place="obsm", record=record)], overwrite=overwrite
    )


def _seer(model: Model | str | Path, settings: Mapping[str, Any]) -> tuple[Model, str]:
    """The model or the plain encoder that is meant, and what its entry is called after."""
    if isinstance(model, str) and is_encoder_name(model) and not _is_saved(model):
        weights = settings.get("encoder_weights", "timm")
        size = {"mpp": settings.get("encoder_mpp", MPP), "patch_px": settings.get("patch_px", PATCH_PX)}
        return _inference.PlainEncoder(model, weights=weights, **size), re.sub(
            "[^A-Za-z0-9_.-]", "-", model.rpartition("/")[2]
        )
    if settings:
        raise ValueError(
            f"{', '.join(settings)} are for the name of a plain encoder, such as 'resnet50'; a trained model has its "
            "own. Leave them out."
        )
    made = load(model) if isinstance(model, str | Path) else model
    return made, type(made).__name__


def _is_saved(name: str) -> bool:
    if is_hub_name(name):
        return True
    try:
        find_model(name)
    except FileNotFoundError:
        return False
    return True


def _table(sdata: SpatialData, table_name: str | None, shapes_key: str) -> str:
    found = _spatialdata.resolve_table(sdata, table_name, shapes_key=shapes_key)
    if found is None:
        raise ValueError(
            f"no table annotates the shapes {shapes_key!r}, so there is no obsm to write to. "
            f"stp.tl.predict(sdata, model, shapes_key={shapes_key!r}) makes such a table."
        )
    return found
