"""Predict more genes from a stored latent raster, without reading the image or running the image encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from spatialdata.transformations import get_transformation

from stpredict import _spatialdata
from stpredict._arguments import check_arguments
from stpredict._link import with_total
from stpredict._record import fields_of
from stpredict._section import array_of
from stpredict.models import Ensemble, load, load_recorded
from stpredict.models._base import weights_sha256
from stpredict.tl._predict._destination import find_table, raster_channels
from stpredict.tl._predict._provenance import model_record
from stpredict.tl._predict._request import Output, RasterDtype, add_embeddings, resolve_genes
from stpredict.tl._readout import find_raster, read_inside, warn_of_empty

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from torch import Tensor
    from xarray import DataArray

    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models import Model

Written = Literal["layer", "raster", "both"]
CHUNK_PX, SMALLEST_CHUNK_PX = 256, 16  # side of a stored chunk
REGION_BYTES = 2**28  # of latent and genes that are held together as float32, where chunks need not get tiny for it


def query(
    sdata: SpatialData | str | Path,
    latent_key: str,
    genes: str | Sequence[str],
    *,
    model: Model | str | Path | None = None,
    shapes_key: str | None = None,
    output: Written = "layer",
    dtype: RasterDtype = "float32",
    key_added: str | None = None,
    overwrite: bool = False,
    table_name: str | None = None,
    table_added: str | None = None,
    embeddings: GeneEmbeddings | str | Path | None = None,
) -> None:
    """More genes from a latent raster that was stored before; the image and the backbone are not touched.

    Writes what `stp.tl.predict` writes: its values up to the 11 bits of the stored latent. Shapes are cut at the border
    of the raster, whose last row and column of pixels may reach over the image.

    Parameters
    ----------
    sdata : SpatialData | str | Path
        A SpatialData object, or the path of a .zarr store.
    latent_key : str
        An image that `stp.tl.predict` wrote with output="latent".
    genes : str | Sequence[str]
        Which genes, in this order: of the model's panel or, where it answers by text, any gene that it has a text of.
    model : Model | str | Path, optional
        The model that made the latent raster: trained, or a name or folder as for `stp.models.load`. None: the one that
        the raster's provenance names; if that is one of a hub, from the cache, for no hub is asked for a name that you
        did not pass. Either way its weights must have the hash that the provenance says.
    shapes_key, table_name, table_added : str, optional
        As for `stp.tl.predict`.
    output : {"layer", "raster", "both"}, default "layer"
        "layer": values inside shapes; "raster": the map itself, at the latent raster's own step; "both".
    dtype : {"float32", "float16"}, default "float32"
        As for `stp.tl.predict`.
    key_added : str, optional
        Name of layer and image; None: the model class in lower case.
    overwrite : bool, default False
        As for `stp.tl.predict`.
    embeddings : GeneEmbeddings | str | Path, optional
        Texts of further genes: what `stp.tl.embed_genes` returned, or the file it wrote.

    Raises
    ------
    ValueError
        For an image that is not there or no latent raster, a model whose weights are not those that made it, genes
        without an answer, and keys, tables and shapes as `stp.tl.predict` does.
    FileNotFoundError
        For a store, a model or embeddings that are not there.

    Notes
    -----
    When it raises, nothing has changed.

    Examples
    --------
    >>> stp.tl.predict(slide, dense, output="latent", key_added="latent", progress=False)
    >>> stp.tl.query(slide, "latent", genes[0], model=dense, shapes_key="spots", key_added="later")
    >>> int(slide.tables["table"].var["later"].sum())
    1
    """
    check_arguments(query, locals())
    sdata = _spatialdata.opened(sdata)
    raster, made = _latent(sdata, latent_key)
    model = _model(model, made, latent_key)
    add_embeddings(model, embeddings)
    wanted, key = resolve_genes(model, genes), key_added or type(model).__name__.lower()
    reader = _Reader(model, wanted, raster, latent_key)
    record = _record(model, wanted, made) | {"raster": latent_key}
    with ExitStack() as stack:
        names = _spatialdata.NewNames(sdata, overwrite=overwrite)
        results = Output.parse(output)
        destination = find_table(
            results, sdata, key, shapes_key=shapes_key, table_name=table_name, table_added=table_added
        )
        if destination is not None:
            destination = destination.reserve(names, wanted, spread=isinstance(model, Ensemble))
        target = None if not results.raster else _target(names, latent_key, key, raster_channels(model, wanted), dtype)
        names.check()
        if target is not None:
            stack.enter_context(target)
        changes: list[_spatialdata.Change] = []
        if destination is not None:
            values, share, spread = reader.inside(sdata, destination.shapes_key, made)
            _warn_of_empty(values, latent_key, key)
            changes.append(destination.change(values, share, record, card=model.card, spread=spread))
        if target is not None:
            reader.map(target)
            map_record = record | {"raster_mpp": made["raster_mpp"], "latent": False, "dtype": dtype}
            changes.append(target.image(map_record))
        _spatialdata.commit(sdata, changes, overwrite=overwrite)


def _latent(sdata: SpatialData, latent_key: str) -> tuple[DataArray, Mapping[str, Any]]:
    """The latent raster and its provenance."""
    raster = find_raster(sdata, latent_key, argument="latent_key")
    records = sdata.attrs.get("stpredict", {})
    made = records.get(f"images/{latent_key}", {})
    channels = [str(name) for name in raster.coords["c"].values]
    if not made.get("latent") or channels != [f"latent{i}" for i in range(len(channels))]:
        others = [key for key in sdata.images if records.get(f"images/{key}", {}).get("latent")]
        raise ValueError(
            f"image {latent_key!r} is no latent raster: its channels are {channels[:4]} and its provenance says "
            f"latent={made.get('latent')}. Latent rasters of this object: {others}. Write one with "
            "stp.tl.predict(sdata, model, output='latent', key_added='...')."
        )
    return raster, made


def _model(model: Model | str | Path | None, made: Mapping[str, Any], latent_key: str) -> Model:
    """The model that made the latent raster; its weights are checked."""
    wanted, path = str(made["weights_sha256"]), made.get("model_path")
    if model is None:
        if path is None:
            raise ValueError(
                f"the provenance of {latent_key!r} does not say where its model is kept (it was predicted with one "
                f"that was in memory only). Pass model=, the {made['model']} with the weights {wanted[:12]}... ."
            )
        try:
            model = load_recorded(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the model that made {latent_key!r} is not where it was, {path!r}. Pass model=, the {made['model']} "
                f"with the weights {wanted[:12]}... ."
            ) from error
    model = load(model) if isinstance(model, str | Path) else model
    if (found := weights_sha256(model)) != wanted or model.card is None:
        where = f"model={path!r}" if path is not None else "model="
        raise ValueError(
            f"{latent_key!r} was made by another model: its provenance names a {made['model']} with the weights "
            f"{wanted[:12]}..., this {type(model).__name__} has {found[:12]}... . Pass the model that made it "
            f"({where}), or predict the latent raster again with this one."
        )
    return model.eval()


def _record(model: Model, genes: Sequence[str], made: Mapping[str, Any]) -> dict[str, Any]:
    """What `stp.tl.predict` would say: of the genes it is asked now, of all else how the latent raster was made."""
    record = model_record(model, genes, device=torch.device("cpu"), precision="32-true")
    kept = {*record, "image_digest"} - {*fields_of("genes")}
    return record | {name: made[name] for name in made if name in kept}


def _warn_of_empty(values: NDArray[np.float32], latent_key: str, key: str) -> None:
    n_empty, drop = int(np.isnan(values[:, 0]).sum()), f"t = t[t.obs['{key}_coverage'] > 0]"
    warn_of_empty(n_empty, len(values), where=f"raster {latent_key!r}", drop=drop)


def _target(
    names: _spatialdata.NewNames, latent_key: str, key: str, genes: Sequence[str], dtype: RasterDtype
) -> _spatialdata.RasterTarget:
    raster = _spatialdata.finest(names.sdata.images[latent_key])
    if key == latent_key:
        raise ValueError(
            f"the new raster would take the name of the latent raster {latent_key!r}, which it is read from. Pass "
            "another key_added=."
        )
    names.element("images", key)
    n_channels, side = raster.sizes["c"] + len(genes), CHUNK_PX
    while side > SMALLEST_CHUNK_PX and 4 * n_channels * side**2 > REGION_BYTES:
        side //= 2
    return _spatialdata.RasterTarget(
        names.store, key, genes=genes, shape=(raster.sizes["y"], raster.sizes["x"]), dtype=dtype, chunk_px=side,
        transformations=get_transformation(raster, get_all=True),
    )  # fmt: skip


class _Reader:
    """Applies a model's head to a latent raster, in float32: inside shapes after pooling, or pixel by pixel."""

    def __init__(self, model: Model, genes: Sequence[str], raster: DataArray, latent_key: str) -> None:
        with torch.inference_mode():
            self.query: Tensor = model.query(genes).float()
        if self.query.shape[1] != raster.sizes["c"]:
            raise ValueError(
                f"{latent_key!r} has {raster.sizes['c']} channels, and its model {self.query.shape[1]}: the image was "
                "changed after it was predicted. Predict it again."
            )
        self.model, self.raster, self.latent_key = model, raster, latent_key

    def inside(
        self, sdata: SpatialData, shapes_key: str, made: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32] | None]:
        """Values in target units (n, g), NaN where nothing is covered, covered shares (n,), an ensemble's spread."""
        channels = np.arange(self.query.shape[1])
        sums, share = read_inside(sdata, self.latent_key, shapes_key, channels, stat="sum")
        # the constant channel adds up to the covered area; sums are values x square micrometres
        pooled = sums / sums[:, -1:] if made["reduction"] == "mean" else sums * made["raster_mpp"] ** 2
        with torch.inference_mode():
            values = self.model.link(self._head(pooled)).cpu().numpy()
            spread = self.model.spread(self._rows(pooled), self.query) if isinstance(self.model, Ensemble) else None
            return values, share, None if spread is None else spread.cpu().numpy()

    def map(self, target: _spatialdata.RasterTarget) -> None:
        """Write values before the link, (g, h, w) region by region."""
        (height, width), side = target.shape, target.chunk_px
        for y in range(0, height, side):
            for x in range(0, width, side):
                rows, columns = slice(y, min(y + side, height)), slice(x, min(x + side, width))
                what = f"the raster {self.latent_key!r}, rows {rows.start} to {rows.stop},"
                latent = array_of(self.raster.data[:, rows, columns], what)
                with torch.inference_mode():
                    values = self._head(latent.reshape(len(latent), -1).T).T.cpu().numpy()
                values = values.reshape(-1, *latent.shape[1:])
                target.write(rows, columns, with_total(values, len(target.genes)))

    def _head(self, latent: NDArray[Any]) -> Tensor:
        """(n, g) values before the link, of latent rows (n, d)."""
        return self.model.head(self._rows(latent), self.query)

    def _rows(self, latent: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(latent, dtype=np.float32)).to(self.query.device)
