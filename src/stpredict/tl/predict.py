"""Prediction on SpatialData objects."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm.auto import tqdm

from stpredict import _infer, _sdata
from stpredict._section import Section
from stpredict.models import load
from stpredict.tl._asked import asked_genes, tell
from stpredict.tl._place import Place, choose_place, table_change
from stpredict.tl._record import record_of, reliability

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models import Model

logger = logging.getLogger("stpredict")
Output = Literal["layer", "raster", "both", "latent"]
_OUTPUTS = ("layer", "raster", "both", "latent")


def predict(
    sdata: SpatialData | str | Path | Sequence[SpatialData | str | Path],
    model: Model | str | Path,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_name: str | None = None,
    genes: Sequence[str] | None = None,
    mpp: float | None = None,
    tissue_key: str | None = None,
    output: Output = "layer",
    raster_mpp: float | None = None,
    key_added: str | None = None,
    table_added: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    embeddings: GeneEmbeddings | str | Path | None = None,
    progress: bool = True,
) -> None:
    """Predict expression from the H&E image, and write it into the object (and its store, if it has one).

    sdata
        A SpatialData object, the path of a .zarr store, or a list of either.
    model
        A trained model, the name of a shipped one, or the folder of a saved one.
    image_key, shapes_key, table_name
        Which image, shapes (spots, bins, cells) and table; None: the only ones, or those that belong together.
    genes
        Which genes, in this order; None: the model's panel. A model that answers by text takes any gene that it has an
        embedding of.
    mpp
        Micrometres per pixel of the full-resolution image; None: from a coordinate system in micrometres, or from
        known spot geometry.
    tissue_key
        Shapes or labels that outline the tissue; what lies outside is not read out. None: the whole image.
    output
        "layer": values inside shapes; "raster": the map itself (dense models); "both"; "latent": the map of the
        model's last features, for more genes later.
    raster_mpp
        Micrometres per raster pixel: the model's own step (None) or a multiple of it.
    key_added
        Name of layer and image; None: the model class in lower case.
    table_added
        Write a new table of the predicted genes with this name, instead of a layer of an existing one.
    overwrite
        Replace results of the same name; otherwise they raise.
    device, precision, batch_size
        "auto" takes CUDA if it is there and bf16 where the processor has it, and logs both; precision="32" computes in
        float32. `batch_size` is in tiles (dense models) or patches.

    embeddings
        Of further genes, for a model that answers by text: what `stp.tl.embed_genes` returns, or its file.

    Writes, in target units (the card says which; usually natural log1p of counts per 10,000):

    - ``tables[table].layers[key]`` float32 (n_obs, n_vars), NaN outside the panel and for shapes off image or tissue;
      ``var[key]``, ``var[f"{key}_val_pcc"]``, ``obs[f"{key}_coverage"]``, ``uns["stpredict"][key]``; or a new table;
    - ``images[key]`` float16 (gene, y, x) with the image's transformations, before the model's link.

    When it raises, nothing of that object has changed; the objects of a list are done one after the other.

    Raises ValueError for keys that are missing, not unique or taken, no mpp, an image too coarse or not RGB, shapes
    that all lie off image or tissue, genes the model or the table lacks, results too large (with the ways out);
    FileNotFoundError for an unknown model or store.
    """
    if output not in _OUTPUTS:
        raise ValueError(f"output={output!r} is unknown: use one of {_OUTPUTS}.")
    model = load(model) if isinstance(model, str | Path) else model
    if model.card is None:
        raise ValueError(
            f"this {type(model).__name__} was never trained. Call tl.train first, or load a trained model."
        )
    tell(model, embeddings)
    asked = _Asked(
        model, asked_genes(model, genes), key_added or type(model).__name__.lower(), output, image_key, shapes_key,
        table_name, table_added, mpp, raster_mpp, tissue_key, overwrite,
        _infer.Runtime(device=device, precision=precision, batch_size=batch_size, progress=progress),
    )  # fmt: skip
    many = list(sdata) if isinstance(sdata, Sequence) and not isinstance(sdata, str) else [sdata]
    for each in tqdm(many, desc="sections", disable=not progress or len(many) == 1):
        _predict_one(_opened(each), asked)


@dataclass(frozen=True)
class _Asked:
    """What the caller wants of every object."""

    model: Model
    genes: list[str]
    key: str
    output: Output
    image_key: str | None
    shapes_key: str | None
    table_name: str | None
    table_added: str | None
    mpp: float | None
    raster_mpp: float | None
    tissue_key: str | None
    overwrite: bool
    runtime: _infer.Runtime


def _predict_one(sdata: SpatialData, asked: _Asked) -> None:
    place = _place(sdata, asked)
    section = _section(sdata, asked, place)
    record = record_of(asked.model, asked.genes, asked.runtime)
    with ExitStack() as stack:
        raster = _raster(sdata, section, asked, stack)
        values, share = _infer.predict(
            asked.model,
            section,
            asked.genes,
            runtime=asked.runtime,
            raster=raster,
            latent=asked.output == "latent",
        )
        changes: list[Any] = []
        if place is not None:
            _warn_of_empty(values, section, asked)
            quality = reliability(asked.model, asked.genes)
            changes.append(table_change(sdata, place, values, share, asked.genes, quality, record))
        if raster is not None:
            changes.append(raster.target.image(record | {"raster_mpp": raster.mpp, "latent": asked.output == "latent"}))
        _sdata.commit(sdata, changes, overwrite=asked.overwrite)
    logger.info("wrote %s", ", ".join(type(change).__name__.lower() for change in changes))


def _opened(sdata: SpatialData | str | Path) -> SpatialData:
    if not isinstance(sdata, str | Path):
        return sdata
    if not Path(sdata).exists():
        raise FileNotFoundError(f"there is no store {str(sdata)!r}.")
    from spatialdata import read_zarr

    return read_zarr(sdata)


def _place(sdata: SpatialData, asked: _Asked) -> Place | None:
    """Where a table result goes, checked before any work is done; None where only a raster is asked."""
    if asked.output in ("raster", "latent"):
        _sdata.check_element_key(sdata, asked.key, kind="images", overwrite=asked.overwrite)
        return None
    return choose_place(
        sdata, asked.genes, key=asked.key, shapes_key=asked.shapes_key, table_name=asked.table_name,
        table_added=asked.table_added, tissue_key=asked.tissue_key, overwrite=asked.overwrite,
    )  # fmt: skip


def _section(sdata: SpatialData, asked: _Asked, place: Place | None) -> Section:
    if place is None:
        return _sdata.image_section(
            sdata, at_mpp=asked.model.mpp, image_key=asked.image_key, shapes_key=asked.shapes_key, mpp=asked.mpp
        )
    return _sdata.section(
        sdata, at_mpp=asked.model.mpp, image_key=asked.image_key, shapes_key=place.shapes_key, mpp=asked.mpp,
        tissue_key=asked.tissue_key,
    )  # fmt: skip


class _Raster:
    """Takes cores from inference, averages them down to the raster's step, and writes them."""

    def __init__(self, target: Any, factor: int, mpp: float) -> None:
        self.target, self.factor, self.mpp = target, factor, mpp

    def __call__(self, y: slice, x: slice, values: np.ndarray) -> None:
        k = self.factor
        if k > 1:
            g, h, w = values.shape
            values = np.pad(values, ((0, 0), (0, -h % k), (0, -w % k)), mode="edge")
            values = values.reshape(g, -(-h // k), k, -(-w // k), k).mean(axis=(2, 4))
        y0, x0 = y.start // k, x.start // k
        self.target.write(slice(y0, y0 + values.shape[1]), slice(x0, x0 + values.shape[2]), values)


def _raster(sdata: SpatialData, section: Section, asked: _Asked, stack: ExitStack) -> _Raster | None:
    if asked.output == "layer":
        return None
    model = asked.model
    if model.output != "raster":
        raise ValueError(f"{type(model).__name__} predicts shapes one by one and has no map; use output='layer'.")
    step = model.stride * model.mpp
    factor = _factor(model, asked.raster_mpp, step)
    height, width = _infer.raster_shape(model, section)
    image_key = _sdata.resolve_image(sdata, asked.image_key)
    pixel = step * factor / _sdata.image_mpp(sdata, image_key, asked.shapes_key, asked.mpp)
    n_latent = model.query(asked.genes[:1]).shape[1]
    names = [f"latent{i}" for i in range(n_latent)] if asked.output == "latent" else asked.genes
    target = _sdata.RasterTarget(
        sdata,
        asked.key,
        genes=names,
        shape=(-(-height // factor), -(-width // factor)),
        transformations=_sdata.raster_transformations(sdata.images[image_key], scale=(pixel, pixel)),
        chunk_px=round(model.config.core_px / model.stride) // factor,
        overwrite=asked.overwrite,
    )
    return _Raster(stack.enter_context(target), factor, step * factor)


def _factor(model: Model, raster_mpp: float | None, step: float) -> int:
    cells = round(model.config.core_px / model.stride)
    factor = 1 if raster_mpp is None else raster_mpp / step
    allowed = [k for k in range(1, cells + 1) if cells % k == 0]
    close = min(allowed, key=lambda k: abs(k - factor))
    if abs(close - factor) > 1e-6 * close:
        raise ValueError(
            f"raster_mpp={raster_mpp} is no step of this model: it maps at {step:g} um, and coarser by a factor of "
            f"{allowed[1:8]} ... . Use raster_mpp={close * step:g}."
        )
    return close


def _warn_of_empty(values: np.ndarray, section: Section, asked: _Asked) -> None:
    empty = int(np.isnan(values[:, 0]).sum())
    if empty:
        warnings.warn(
            f"{empty} of {section.n_shapes} shapes have nothing on the image"
            + (" and tissue" if asked.tissue_key else "")
            + ", so their predictions are NaN. Drop them before scanpy or squidpy: "
            f"t = t[t.obs['{asked.key}_coverage'] > 0].",
            stacklevel=4,
        )
