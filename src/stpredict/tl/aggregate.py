"""Reading a raster inside shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _coverage, _sdata
from stpredict._window import Window
from stpredict.tl._place import choose_place, table_change

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

STRIP_CELLS = 2**22  # cells of the raster that are looked at together
VALUE_BYTES = 2**29  # of a strip's genes that are held as float64


def aggregate(
    sdata: SpatialData,
    raster_key: str,
    *,
    shapes_key: str,
    stat: Literal["mean", "sum"] = "mean",
    genes: Sequence[str] | None = None,
    table_name: str | None = None,
    table_added: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read a raster inside any shapes, every pixel weighted by the exact area that a shape covers of it.

    raster_key
        An image of gene maps: one that `stp.tl.predict` wrote, or any other (gene, y, x) image.
    shapes_key
        Circles, polygons, multipolygons; overlapping ones and those below a pixel too. They may lie in another frame:
        any affine that both share a coordinate system for is honoured.
    stat
        "mean": the area-weighted mean; "sum": the integral, values x square pixels of the raster. Pixels that are NaN
        count as not covered.
    genes
        Which channels, in this order; None: all.
    table_name, table_added, key_added, overwrite
        As for `stp.tl.predict`; `key_added` defaults to `raster_key`.

    Writes a layer of the table that annotates the shapes, or a new table ``{shapes_key}_{key}``, with the covered share
    of each shape in ``obs[f"{key}_coverage"]``; shapes without any covered pixel are NaN. Where the raster's
    provenance names a link (see `PixNetConfig.link`), it is applied to means, once, after pooling.

    Raises ValueError for keys that are not there or taken, unknown genes, and shapes that all lie off the raster.
    """
    if stat not in ("mean", "sum"):
        raise ValueError(f"stat={stat!r} is unknown: use 'mean' or 'sum'.")
    raster = _raster(sdata, raster_key)
    channels = [str(name) for name in raster.coords["c"].values]
    wanted = channels if genes is None else [str(gene) for gene in genes]
    positions, missing = _sdata.match_genes(wanted, channels, what=f"raster {raster_key!r}")
    if missing:
        raise ValueError(f"raster {raster_key!r} lacks {len(missing)} of {len(wanted)} genes: {missing[:5]}.")
    key = key_added or raster_key
    place = choose_place(
        sdata, wanted, key=key, shapes_key=shapes_key, table_name=table_name, table_added=table_added, tissue_key=None,
        overwrite=overwrite,
    )  # fmt: skip
    record = dict(sdata.attrs.get("stpredict", {}).get(f"images/{raster_key}", {}))
    geometry, radius, area = _placed(sdata, raster_key, shapes_key)
    values, covered = _read(raster, positions, geometry, radius, stat)
    if stat == "mean" and record.get("link") == "log1p":
        values = np.log1p(values)
    record |= {"genes": wanted, "raster": raster_key, "stat": stat}
    share = np.clip(covered / area, 0.0, 1.0)
    change = table_change(sdata, place, values.astype(np.float32), share, wanted, None, record)
    _sdata.commit(sdata, [change], overwrite=overwrite)


def _raster(sdata: SpatialData, raster_key: str) -> Any:
    if raster_key not in sdata.images:
        raise _sdata.missing_key(raster_key, sdata.images, what="image", argument="raster_key")
    return _sdata.finest(sdata.images[raster_key])


def _placed(
    sdata: SpatialData, raster_key: str, shapes_key: str
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """The shapes in raster pixels, cut at its border, and their whole areas."""
    geometry, radius, area, _ = _sdata.place(sdata, raster_key, shapes_key, tissue_key=None)
    _sdata.check_some_inside(geometry, shapes_key=shapes_key, image_key=raster_key, tissue_key=None)
    return geometry, radius, area


def _read(
    raster: Any,
    channels: NDArray[np.int64],
    geometry: NDArray[np.object_],
    radius: NDArray[np.float64],
    stat: Literal["mean", "sum"],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values (n, g) and covered areas (n,), strip by strip and some genes at a time."""
    height, width = raster.sizes["y"], raster.sizes["x"]
    sums, areas = np.zeros((len(geometry), len(channels))), np.zeros((len(geometry), len(channels)))
    bounds = _coverage.bounds(geometry, radius)
    rows = max(1, STRIP_CELLS // width)
    for y in range(0, height, rows):
        strip = Window(y, 0, min(rows, height - y), width)
        hit = np.flatnonzero((bounds[:, 0] < strip.y1) & (bounds[:, 2] > strip.y0))
        if len(hit):
            covered = _coverage.coverage(geometry[hit], radius[hit], strip)
            _add(raster, channels, strip, covered, sums, areas, hit)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(areas > 0, sums / areas if stat == "mean" else sums, np.nan)
    return values, areas.max(axis=1, initial=0.0)


def _add(
    raster: Any,
    channels: NDArray[np.int64],
    strip: Window,
    covered: Any,
    sums: NDArray[np.float64],
    areas: NDArray[np.float64],
    hit: NDArray[np.int64],
) -> None:
    n_cells = strip.height * strip.width
    step = max(1, VALUE_BYTES // (8 * n_cells))
    for k in range(0, len(channels), step):
        block = raster.data[channels[k : k + step], strip.y0 : strip.y1].compute()
        cells = block.reshape(len(block), n_cells).T.astype(np.float64)  # (cells, g)
        empty = np.isnan(cells)
        sums[hit, k : k + step] += covered @ np.where(empty, 0.0, cells)
        areas[hit, k : k + step] += covered @ (~empty).astype(np.float64)
