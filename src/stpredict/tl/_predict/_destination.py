"""Where predicted values are written: a layer of an existing table, a new table, and a raster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import shapely

from stpredict import _inference, _spatialdata
from stpredict._link import TOTAL, with_total

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

    from stpredict._card import Card
    from stpredict._record import Kind
    from stpredict._section import Section
    from stpredict.models import Model
    from stpredict.tl._predict._request import Output, PredictRequest


@dataclass(frozen=True, eq=False)
class TableDestination:
    """A key in a table of one object, which takes values inside shapes.

    Parameters
    ----------
    table_name
        An existing table that gets a layer, or the name of a new one.
    is_new
        Whether it is a new one.
    genes, columns
        Names of the genes, and their columns (g,) in the existing table; both once it is reserved.
    """

    kind: ClassVar[Kind] = "layer"
    sdata: SpatialData
    key: str
    shapes_key: str
    table_name: str
    is_new: bool
    genes: Sequence[str] = ()
    columns: NDArray[np.int64] | None = None

    @classmethod
    def resolve(
        cls, sdata: SpatialData, key: str, *, shapes_key: str | None, table_name: str | None, table_added: str | None,
        tissue_key: str | None = None,
    ) -> Self:  # fmt: skip
        """From the arguments of a verb: which shapes, and the table that is named, or the only one of these shapes.

        Raises ValueError for shapes or a table that are not there, and where they are several.
        """
        shapes_key = _spatialdata.resolve_shapes(sdata, shapes_key, table_name=table_name, tissue_key=tissue_key)
        if table_name is not None and table_added is not None:
            raise ValueError(
                f"table_name={table_name!r} asks for a layer of a table and table_added={table_added!r} for a new "
                "table; pass one of them."
            )
        or_else = ", or write a new one with table_added="
        existing = None
        if not table_added:
            existing = _spatialdata.resolve_table(sdata, table_name, shapes_key=shapes_key, or_else=or_else)
        return cls(sdata, key, shapes_key, existing or table_added or f"{shapes_key}_{key}", existing is None)

    def reserve(self, names: _spatialdata.NewNames, genes: Sequence[str], *, spread: bool = False) -> Self:
        """Register the names that are added, and check everything else that can be checked before the work.

        Raises ValueError for genes that the table lacks, layers that are too large, and a new table in a store that
        lacks the shapes.
        """
        sdata, name = self.sdata, self.table_name
        if self.is_new:
            names.check_stored(self.shapes_key)
            names.element("tables", name)
            _spatialdata.check_table_size(len(_spatialdata.shapes_element(sdata, self.shapes_key)), len(genes))
            return replace(self, genes=genes)
        _spatialdata.table_rows(sdata, name, self.shapes_key)
        names.layer(name, self.key, spread=spread)
        table = sdata.tables[name]
        columns, missing = _spatialdata.match_genes(genes, list(table.var_names), what=f"table {name!r}", var=table.var)
        if missing:
            raise ValueError(
                f"table {name!r} has {len(genes) - len(missing)} of the {len(genes)} genes to predict; it lacks "
                f"{missing[:5]} ({len(missing)}). Pass table_added='...' to write all of them as a new table, or "
                "genes= with those in both."
            )
        _spatialdata.check_layer_size(table.n_obs, (1 + spread) * table.n_vars, (1 + spread) * len(genes))
        return replace(self, genes=genes, columns=columns)

    def stored_record(self) -> Mapping[str, Any] | None:
        """The record of a result that is there under this name; None where there is none."""
        table = self.sdata.tables.get(self.table_name)
        return table.uns.get("stpredict", {}).get(self.key) if table is not None and self.key in table.layers else None

    def record(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record of the values, by that of the prediction: the same."""
        return record

    def change(
        self,
        values: NDArray[np.float32],
        share: NDArray[np.float64],
        record: Mapping[str, Any],
        *,
        card: Card | None = None,
        spread: NDArray[np.float32] | None = None,
        domain: NDArray[np.float64] | None = None,
    ) -> _spatialdata.Change:
        """The change that writes values (n, g) in element order, with covered shares (n,).

        Parameters
        ----------
        card
            Of the model: how reliable each gene is; None: nothing is said of that.
        spread
            (n, g) standard deviation over the members of an ensemble.
        domain
            (n,) percentile among left-out training shapes.
        """
        sdata, key, shapes_key = self.sdata, self.key, self.shapes_key
        known: dict[str, Any] = {"coverage": share, "spread": spread, "domain": domain, "record": self.record(record)}
        if card is not None:
            known["val_pcc"] = _of_genes(card.val_pcc, self.genes)
            known["held_out"] = {name: _of_genes(values, self.genes) for name, values in card.held_out.items()}
        if self.columns is not None:
            join = _spatialdata.table_rows(sdata, self.table_name, shapes_key)
            return _spatialdata.layer(
                sdata, self.table_name, key, values=values, join=join, columns=self.columns, **known
            )
        table = _spatialdata.new_table(
            values, key=key, genes=self.genes, region=shapes_key, centroids=_centroids(sdata, shapes_key),
            instance_ids=_spatialdata.shapes_element(sdata, shapes_key).index.to_numpy(), **known,
        )  # fmt: skip
        return _spatialdata.TableElement(self.table_name, key, table, record=record)


def find_table(
    output: Output, sdata: SpatialData, key: str, *, shapes_key: str | None, table_name: str | None,
    table_added: str | None, tissue_key: str | None = None,
) -> TableDestination | None:  # fmt: skip
    """Where values inside shapes go; None where only a raster is written. Raises as `TableDestination.resolve`."""
    if not output.layer:
        return None
    return TableDestination.resolve(
        sdata, key, shapes_key=shapes_key, table_name=table_name, table_added=table_added, tissue_key=tissue_key
    )


@dataclass(frozen=True, eq=False)
class RasterDestination:
    """An image of one object, which takes the map before the model's link: of genes, or without any of the latent."""

    kind: ClassVar[Kind] = "raster"
    sdata: SpatialData
    request: PredictRequest

    def reserve(self, names: _spatialdata.NewNames) -> None:
        """Register the name of the image, and check the pixel size.

        Raises ValueError for a model without a map, and for a pixel size that it cannot have.
        """
        self.factor()
        names.element("images", self.request.key)

    def stored_record(self) -> Mapping[str, Any] | None:
        """The record of a result that is there under this name; None where there is none."""
        key = self.request.key
        record: Mapping[str, Any] | None = self.sdata.attrs.get("stpredict", {}).get(f"images/{key}")
        return record if key in self.sdata.images else None

    def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record of the raster, by that of the prediction: it is of no shapes."""
        of_image = {name: value for name, value in record.items() if name != "shapes_digest"}
        latent = not self.request.inferred_genes
        return of_image | {"raster_mpp": self._step_um * self.factor(), "latent": latent, "dtype": self.request.dtype}

    def factor(self) -> int:
        """How many of the model's cells a pixel of the raster is wide.

        Raises
        ------
        ValueError
            For a model without a raster, and where `raster_mpp` is no multiple of its step that divides its tiles.
        """
        model, raster_mpp = self.request.model, self.request.raster_mpp
        if model.output != "raster":
            raise ValueError(f"{type(model).__name__} predicts shapes one by one and has no map; use output='layer'.")
        cells, step = round(_inference.tiling_of(model).core_px / model.stride), self._step_um
        factor = 1 if raster_mpp is None else raster_mpp / step
        allowed = [k for k in range(1, cells + 1) if cells % k == 0]
        close = min(allowed, key=lambda k: abs(k - factor))
        if abs(close - factor) > 1e-6 * close:
            raise ValueError(
                f"raster_mpp={raster_mpp} is no step of this model: it maps at {step:g} um, and coarser by a "
                f"factor of {allowed[1:8]} ... . Use raster_mpp={close * step:g}."
            )
        return close

    def open(
        self, store: _spatialdata.Store | None, section: Section, stack: ExitStack, folder: Path | None
    ) -> RasterWriter:
        """The writer of the raster of this section, entered into `stack`.

        Parameters
        ----------
        folder : Path | None
            Where it is built, next to the store; None: in memory, or in a scratch folder.
        """
        sdata, request, factor = self.sdata, self.request, self.factor()
        model, spec = request.model, request.spec
        height, width = _inference.raster_shape(model, section)
        image_key = _spatialdata.resolve_image(sdata, spec.image_key, shapes_key=spec.shapes_key)
        pixel = self._step_um * factor / _spatialdata.image_mpp(sdata, image_key, spec.shapes_key, spec.mpp)
        target = _spatialdata.RasterTarget(
            store,
            request.key,
            genes=raster_channels(model, request.inferred_genes),
            shape=(-(-height // factor), -(-width // factor)),
            transformations=_spatialdata.raster_transformations(sdata.images[image_key], scale=(pixel, pixel)),
            dtype=request.dtype,
            chunk_px=round(_inference.tiling_of(model).core_px / model.stride) // factor,
            folder=folder,
        )
        pixels = model.stride * factor
        tissue = None if section.tissue is None else shapely.transform(section.tissue, lambda xy: xy / pixels)
        return RasterWriter(self, stack.enter_context(target), factor, tissue)

    @property
    def _step_um(self) -> float:
        return self.request.model.stride * self.request.model.mpp


class RasterWriter:
    """Downsamples tile cores to the raster's pixel size, cuts them by the tissue, and writes them.

    Parameters
    ----------
    factor
        Cells of the model along a pixel of the raster.
    tissue
        In pixels of the raster: pixels whose centre lies outside are NaN. None: the whole image.
    """

    def __init__(
        self, destination: RasterDestination, target: _spatialdata.RasterTarget, factor: int,
        tissue: BaseGeometry | None = None,
    ) -> None:  # fmt: skip
        self.destination, self.target, self.factor, self.tissue = destination, target, factor, tissue
        if tissue is not None:
            shapely.prepare(tissue)

    def __call__(self, y: slice, x: slice, values: np.ndarray) -> None:
        k = self.factor
        if k > 1:
            g, h, w = values.shape
            values = np.pad(values, ((0, 0), (0, -h % k), (0, -w % k)), mode="edge")
            values = values.reshape(g, -(-h // k), k, -(-w // k), k).mean(axis=(2, 4))
        values = with_total(values, len(self.target.genes))
        y0, x0 = y.start // k, x.start // k
        y, x = slice(y0, y0 + values.shape[1]), slice(x0, x0 + values.shape[2])
        self.target.write(y, x, self._cut(y, x, values))

    def change(self, record: Mapping[str, Any]) -> _spatialdata.Change:
        """The change that adds the image; `record` is that of the prediction."""
        return self.target.image(self.destination.record(record))

    def _cut(self, y: slice, x: slice, values: np.ndarray) -> np.ndarray:
        """Values (g, h, w), NaN off the tissue."""
        if self.tissue is None or shapely.contains(self.tissue, shapely.box(x.start, y.start, x.stop, y.stop)):
            return values
        down, right = np.mgrid[y, x] + 0.5
        return np.where(shapely.contains_xy(self.tissue, right, down), values, np.float32(np.nan))


def raster_channels(model: Model, genes: Sequence[str]) -> list[str]:
    """Channels of a raster of these genes, where a map of rates ends with that of all RNA; of none: of the latent."""
    if not genes:
        return [f"latent{i}" for i in range(model.query(model.genes[:1]).shape[1])]
    channels = model.channels(genes)
    return [*channels, TOTAL] if getattr(model.config, "link", "identity") == "log1p" else channels


def _centroids(sdata: SpatialData, shapes_key: str) -> NDArray[np.float64]:
    """(n, 2) x and y in "global", or in the first coordinate system where there is no such one."""
    known = _spatialdata.affines(sdata, shapes_key)
    affine = known["global"] if "global" in known else next(iter(known.values()))
    centre = _spatialdata.shapes_element(sdata, shapes_key).geometry.centroid
    return np.column_stack([centre.x, centre.y]) @ affine[:2, :2].T + affine[:2, 2]


def _of_genes(known: Mapping[str, float | None], genes: Sequence[str]) -> NDArray[np.float64]:
    """(g,) what a card knows of each gene; NaN where that is nothing."""
    values = [known.get(gene) for gene in genes]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
