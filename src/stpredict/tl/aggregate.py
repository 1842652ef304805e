"""Read a raster inside any shapes, and write the values into a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpredict import _spatialdata
from stpredict._arguments import check_arguments
from stpredict._link import TOTAL, link_of, linked
from stpredict._malloc import give_back
from stpredict.tl._predict._destination import TableDestination
from stpredict.tl._readout import find_raster, read_inside

if TYPE_CHECKING:
    from spatialdata import SpatialData


def aggregate(
    sdata: SpatialData | str | Path,
    raster_key: str,
    *,
    shapes_key: str,
    stat: Literal["mean", "sum"] = "mean",
    genes: str | Sequence[str] | None = None,
    table_name: str | None = None,
    table_added: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read a raster inside any shapes, every pixel weighted by the exact area that a shape covers of it.

    Writes a layer of the table that annotates the shapes, or a new table ``{shapes_key}_{key}``, with the covered share
    of each shape in ``obs[f"{key}_coverage"]``; shapes without any covered pixel are NaN. A map of rates ends with that
    of all RNA, the channel ``__total__``: means are log1p of 10,000 times the gene's over that, once, after pooling. Of
    a map without, the link is the one that its provenance names (see `PixNetConfig.link`).

    Parameters
    ----------
    sdata : SpatialData | str | Path
        A SpatialData object, or the path of a .zarr store.
    raster_key : str
        An image of gene maps: one that `stp.tl.predict` wrote, or any other (gene, y, x) image.
    shapes_key : str
        Circles, polygons, multipolygons; overlapping ones and those below a pixel too; or labels, every one of which is
        a shape of whole pixels. They may lie in another frame: any affine that both share a coordinate system for is
        honoured.
    stat : {"mean", "sum"}, default "mean"
        "mean": the area-weighted mean, in units of the target; "sum": the integral, values x square pixels of the
        raster, of rates before the link. Pixels that are NaN count as not covered.
    genes : str | Sequence[str], optional
        Which channels, in this order; None: all genes. With "sum" also ``__total__``.
    table_name, table_added : str, optional
        As for `stp.tl.predict`.
    key_added : str, optional
        Name of the layer; None: `raster_key`.
    overwrite : bool, default False
        As for `stp.tl.predict`.

    Raises
    ------
    ValueError
        For keys that are not there or taken, unknown genes, ``__total__`` as a mean, a map of rates that has lost it,
        and shapes that all lie off the raster.
    FileNotFoundError
        For a store that is not there.

    Examples
    --------
    >>> stp.pp.tile_grid(slide, diameter_um=50, shape="square", image_key="image")
    >>> stp.tl.aggregate(slide, "pixnet", shapes_key="tiles")
    >>> slide.tables["tiles_pixnet"].shape
    (256, 4)
    """
    check_arguments(aggregate, locals())
    sdata = _spatialdata.opened(sdata)
    raster = find_raster(sdata, raster_key)
    channels = [str(name) for name in raster.coords["c"].values]
    record = dict(sdata.attrs.get("stpredict", {}).get(f"images/{raster_key}", {}))
    link = _link(record, channels, raster_key) if stat == "mean" else "identity"
    named = [name for name in channels if name != TOTAL]
    wanted = named if genes is None else [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if link == "counts" and TOTAL in wanted:
        raise ValueError(f"{TOTAL!r}, the rate of all RNA, has no mean in units of the target. Pass stat='sum'.")
    positions, missing = _spatialdata.match_genes(wanted, channels, what=f"raster {raster_key!r}")
    if missing:
        raise ValueError(f"raster {raster_key!r} lacks {len(missing)} of {len(wanted)} genes: {missing[:5]}.")
    key = key_added or raster_key
    names = _spatialdata.NewNames(sdata, overwrite=overwrite)
    destination = TableDestination.resolve(
        sdata, key, shapes_key=shapes_key, table_name=table_name, table_added=table_added
    ).reserve(names, wanted)
    names.check()
    if link == "counts":
        positions = np.append(positions, channels.index(TOTAL))
    values, share = read_inside(sdata, raster_key, shapes_key, positions, stat=stat)
    give_back()  # the shapes in pixels
    values = linked(values, link)
    record |= {"genes": wanted, "raster": raster_key, "stat": stat}
    _spatialdata.commit(sdata, [destination.change(values, share, record)], overwrite=overwrite)


def _link(record: Mapping[str, Any], channels: Sequence[str], raster_key: str) -> str:
    """The link of a raster: its channels say it, or else its record."""
    said = "identity" if record.get("latent") else str(record.get("link", "identity"))  # genes alone have a link
    link = link_of(channels, said)
    if link == "counts" and TOTAL not in channels:
        raise ValueError(
            f"raster {raster_key!r} is a map of rates without that of all RNA, its channel {TOTAL!r}, by which they "
            "are divided inside shapes. Keep that channel where you choose some, or predict the raster again; "
            "stat='sum' needs none."
        )
    return link
