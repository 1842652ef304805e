"""What a report is of: the predicted layer or map of a key, and the image, shapes and tissue that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _spatialdata
from stpredict._embeddings import closest
from stpredict.tl._predicted import PredictedLayer, predicted_layer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

PLACE = "images/{}"  # where the record of a raster is kept


@dataclass(frozen=True)
class Source:
    """Where everything of a report comes from.

    Parameters
    ----------
    layer, raster_key
        The predicted layer and the map of this key; one of them may be missing.
    image_key, shapes_key, table_name, tissue_key
        Of the H&E, of the shapes that are drawn and the table that annotates them, and of the outline; None: not there.
    um
        Micrometres of a pixel of the full-resolution image; None where nothing tells.
    why_no_um
        What was tried to find them, where nothing tells.
    scored_tissue
        The outline by which shapes are scored or left out: the one that was named, as in `tl.evaluate`.
    """

    sdata: SpatialData
    key: str
    layer: PredictedLayer | None
    raster_key: str | None
    image_key: str
    shapes_key: str | None
    table_name: str | None
    tissue_key: str | None
    um: float | None
    why_no_um: str = ""
    scored_tissue: str | None = None

    @property
    def record(self) -> Mapping[str, Any]:
        """The provenance of layer or map; empty where there is none."""
        return self.raster_record if self.layer is None else _plain(self.layer.record)

    @property
    def raster_record(self) -> Mapping[str, Any]:
        """The provenance of the map."""
        return _plain(self.sdata.attrs.get("stpredict", {}).get(PLACE.format(self.raster_key), {}))

    @property
    def target(self) -> _spatialdata.Target:
        """In which target the values are."""
        return self.record.get("target", "log1p_cp10k")

    @property
    def genes(self) -> list[str]:
        """All predicted genes, in the order of the table, or of the map where there is no layer."""
        return self.raster_genes if self.layer is None else self.layer.genes

    @property
    def raster_genes(self) -> list[str]:
        """The channels of the map; none where there is none."""
        if self.raster_key is None:
            return []
        return [str(name) for name in _spatialdata.finest(self.sdata.images[self.raster_key]).coords["c"].to_numpy()]

    def spec(self, *, layer: str | None, min_counts: float | None) -> _spatialdata.SectionSpec:
        """Image, shapes, table and tissue for those who score; `layer` is that of the counts."""
        return _spatialdata.SectionSpec(
            image_key=self.image_key, shapes_key=self.shapes_key, table_name=self.table_name or "table", layer=layer,
            target=self.target, mpp=self.um, tissue_key=self.scored_tissue, min_counts=min_counts,
        )  # fmt: skip

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows (m,) of the table, and for each the position of its shape."""
        assert self.table_name is not None and self.shapes_key is not None
        return _spatialdata.table_rows(self.sdata, self.table_name, self.shapes_key)


def find_source(
    sdata: SpatialData, key: str, *, image_key: str | None, shapes_key: str | None, table_name: str | None,
    tissue_key: str | None, mpp: float | None,
) -> Source:  # fmt: skip
    """What the keys mean, where they are given, and what else is found.

    Raises
    ------
    ValueError
        For a key that is neither a predicted layer nor a map (with those that there are), for a latent map, and where
        image, shapes, table or tissue are not there or not unique.
    """
    layers = [name for name, table in sdata.tables.items() if key in table.layers and key in table.var]
    raster_key = key if _is_map(sdata, key, alone=not layers) else None
    if not layers and raster_key is None:
        raise _spatialdata.missing_key(key, _known(sdata), what="predicted layer or map", argument="key")
    layer = predicted_layer(sdata, key, table_name) if layers else None
    table_name = layer.table_name if layer is not None else table_name
    shapes_key, table_name = _shapes_and_table(sdata, layer, shapes_key, table_name, tissue_key)
    image_key = _spatialdata.resolve_image(sdata, image_key, shapes_key=shapes_key)
    um, why = _scale(sdata, image_key, shapes_key, mpp)
    return Source(
        sdata, key, layer, raster_key, image_key, shapes_key, table_name, _tissue(sdata, tissue_key), um, why,
        scored_tissue=tissue_key,
    )  # fmt: skip


def chosen_genes(
    source: Source, genes: Sequence[str] | None, n_genes: int, evidence: NDArray[np.float64]
) -> tuple[list[str], str]:
    """Which genes are drawn, and in words why these.

    Parameters
    ----------
    evidence : ndarray of float64
        (g,) held-out correlation of every predicted gene, NaN where it is not known.

    Raises
    ------
    ValueError
        For genes that were not predicted.
    """
    known = source.genes
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
        lacking = sorted(set(wanted) - set(known))
        if lacking or not wanted:
            raise ValueError(
                f"genes that {source.key!r} was not predicted for: {lacking[:5]} ({len(lacking)}). It has "
                f"{len(known)}, such as {known[:3]}.{closest(lacking, known)}"
            )
        return list(dict.fromkeys(wanted)), "" if len(wanted) == len(known) else "those that were asked for"
    order = np.argsort(-np.where(np.isnan(evidence), -np.inf, evidence), kind="stable")
    if len(known) <= n_genes:
        return [known[i] for i in order], ""
    if np.isfinite(evidence).any():
        return [known[i] for i in order[:n_genes]], "those with the highest correlation on held-out data"
    if source.layer is None:
        return known[:n_genes], "the first of the map, as nothing is known of how far each can be trusted"
    spread = _spread(source.layer)
    order = np.argsort(-spread, kind="stable")
    return (
        [known[i] for i in order[:n_genes]],
        "those whose prediction varies most, as nothing is known of how far each can be trusted",
    )


def _spread(layer: PredictedLayer) -> NDArray[np.float64]:
    """(g,) variance of every predicted gene over the rows that have values."""
    values = layer.values(layer.key)
    assert values is not None
    there = np.isfinite(values).all(axis=1)
    return values[there].var(axis=0, dtype=np.float64) if there.any() else np.zeros(values.shape[1])


def _is_map(sdata: SpatialData, key: str, *, alone: bool) -> bool:
    """Whether images[key] is a map of genes. Raises ValueError for a latent one that has no layer beside it."""
    if key not in sdata.images:
        return False
    record = sdata.attrs.get("stpredict", {}).get(PLACE.format(key), {})
    if record.get("latent"):
        if alone:
            raise ValueError(
                f"key={key!r} is a latent map, which holds no gene. Read genes out of it first: "
                f"stp.tl.query(sdata, {key!r}, genes, output='both', key_added='...')."
            )
        return False
    return bool(record) or _spatialdata.finest(sdata.images[key]).dtype.kind == "f"


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it was written: a table gives its lists back as arrays."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in record.items()}


def _known(sdata: SpatialData) -> set[str]:
    layers = {
        str(name)
        for table in sdata.tables.values()
        for name in table.layers
        if name is not None and name in table.var and table.var[name].dtype == bool
    }
    written = sdata.attrs.get("stpredict", {})
    return layers | {name for name in sdata.images if PLACE.format(name) in written}


def _shapes_and_table(
    sdata: SpatialData, layer: PredictedLayer | None, shapes_key: str | None, table_name: str | None,
    tissue_key: str | None,
) -> tuple[str | None, str | None]:  # fmt: skip
    """The shapes and the table that annotates them; (None, None) for a map on an object without measured shapes."""
    if layer is not None:
        annotated = [name for name in _spatialdata.regions(layer.table) if name in sdata.shapes or name in sdata.labels]
        if shapes_key is None and len(annotated) != 1:
            raise ValueError(
                f"table {layer.table_name!r} annotates {annotated or 'no shapes'}. Choose one with shapes_key=."
            )
        shapes_key = annotated[0] if shapes_key is None else shapes_key
        return _spatialdata.resolve_shapes(sdata, shapes_key), layer.table_name
    if shapes_key is None:
        measured = {name for table in sdata.tables.values() for name in _spatialdata.regions(table)}
        measured &= {*sdata.shapes, *sdata.labels} - {tissue_key}
        if len(measured) != 1:
            return None, None
        shapes_key = measured.pop()
    shapes_key = _spatialdata.resolve_shapes(sdata, shapes_key)
    table_name = _spatialdata.resolve_table(sdata, table_name, shapes_key=shapes_key)
    return (None, None) if table_name is None else (shapes_key, table_name)


def _tissue(sdata: SpatialData, tissue_key: str | None) -> str | None:
    """The outline: the one that is named, else the only one of `pp.tissue`."""
    if tissue_key is not None:
        if tissue_key not in sdata.shapes and tissue_key not in sdata.labels:
            known = [*sdata.shapes, *sdata.labels]
            raise _spatialdata.missing_key(tissue_key, known, what="tissue shapes or labels", argument="tissue_key")
        return tissue_key
    outlines = [name for name, frame in sdata.shapes.items() if _spatialdata.TISSUE_COLUMN in frame]
    return outlines[0] if len(outlines) == 1 else None


def _scale(sdata: SpatialData, image_key: str, shapes_key: str | None, mpp: float | None) -> tuple[float | None, str]:
    """Micrometres of a pixel, or None and why: a report without a scale bar is better than none, and says so."""
    if mpp is not None:
        return _spatialdata.image_mpp(sdata, image_key, shapes_key, mpp), ""
    try:
        return _spatialdata.image_mpp(sdata, image_key, shapes_key), ""
    except ValueError as error:
        return None, str(error)
