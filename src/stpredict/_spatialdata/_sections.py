"""Build a Section from a SpatialData object: image at the model's resolution, shapes in its pixels, target values."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import shapely

from stpredict import _coverage
from stpredict._messages import say_once
from stpredict._section import Section, take
from stpredict._spatialdata._elements import (
    is_predicted,
    resolve_image,
    resolve_shapes,
)
from stpredict._spatialdata._scale import image_mpp
from stpredict._spatialdata._shapes import check_some_inside, shapes_element, shapes_in_pixels, tissue
from stpredict._spatialdata._spec import SectionSpec, image_view
from stpredict._spatialdata._tables import match_genes, matrix_of, n_targeted_genes, table_rows
from stpredict._spatialdata._target import NoUsableShape, check_counts, check_target, totals, usable
from stpredict._spatialdata._target import target as target_of
from stpredict.metrics import MIN_COUNTS, default_min_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

TARGETED = (
    "%s: totals are of a targeted panel of %d genes; they and counts per 10,000 of them do not compare with those of a "
    "whole transcriptome"
)


def image_section(
    sdata: SpatialData, spec: SectionSpec | None = None, *, at_mpp: float, name: str | None = None
) -> Section:
    """A section without shapes: the image alone, at `at_mpp` micrometres per pixel.

    `spec.shapes_key` only helps to find the image and its own mpp.

    Raises ValueError as `section` does for the image, its mpp and the tissue.
    """
    spec = spec or SectionSpec()
    image_key = resolve_image(sdata, spec.image_key, shapes_key=spec.shapes_key)
    spec = dataclasses.replace(spec, image_key=image_key)
    view, step = image_view(sdata, spec, at_mpp)
    region = tissue(sdata, spec.tissue_key, spec.image, step=step)
    if region is not None and not shapely.intersects(region, shapely.box(0, 0, view.width, view.height)):
        raise ValueError(
            f"the tissue {spec.tissue_key!r} lies outside image {spec.image_key!r}. Check the transformations of both "
            "with spatialdata.transformations.get_transformation."
        )
    none = np.empty(0)
    return Section(
        name=name or section_name(sdata, spec.image),
        image=view,
        geometry=np.empty(0, dtype=object),
        radius=none,
        ids=np.empty(0, dtype=object),
        area=none,
        tissue=region,
    )


def section(sdata: SpatialData, spec: SectionSpec | None = None, *, at_mpp: float, name: str | None = None) -> Section:
    """An image and some shapes as a model sees them, at `at_mpp` micrometres per pixel.

    Returns a Section with rows in element order, the geometry clipped to image and tissue (empty where nothing is
    left), `area` that of the whole shapes.

    Raises ValueError for keys that are not there or not unique, an image that is not RGB uint8 or too coarse, no mpp,
    no common coordinate system, ids that are not unique, and shapes that all lie outside image and tissue.
    """
    spec = spec or SectionSpec()
    shapes_key = resolve_shapes(sdata, spec.shapes_key, tissue_key=spec.tissue_key)
    image_key = resolve_image(sdata, spec.image_key, shapes_key=shapes_key)
    spec = dataclasses.replace(spec, image_key=image_key, shapes_key=shapes_key)
    return _section_of_shapes(sdata, spec, at_mpp, name)[0]


def training_section(
    sdata: SpatialData,
    spec: SectionSpec | None = None,
    *,
    genes: Sequence[str],
    at_mpp: float,
    missing_genes: Literal["raise", "nan"] = "raise",
    name: str | None = None,
) -> Section:
    """A section with what was measured: only the shapes that the protocol lets into training and scoring.

    Parameters
    ----------
    genes : Sequence[str]
        Columns of `expression`, in this order.
    missing_genes : {"raise", "nan"}, default "raise"
        What to do for genes that the table lacks: raise, or leave a column of NaN.

    Returns
    -------
    Section
        A Section with rows in element order, `expression` (n, g) float32, of counts their `total`, `grid` from
        obs["array_row"] and obs["array_col"] where the table has them, the `min_counts` that were needed, and in
        `dropped` why shapes were left out, and how many.

    Raises
    ------
    ValueError
        Where `section` raises it, for tables that do not fit the shapes, for values that are no counts, for genes
        that are missing, and where no usable spot is left.
    """
    spec = (spec or SectionSpec()).resolved(sdata)
    whole, on_image = _section_of_shapes(sdata, spec, at_mpp, name)
    share = _share(whole.shapes, whole.area)
    least = _by_area(whole.area * at_mpp**2) if spec.min_counts is None else spec.min_counts
    spec = dataclasses.replace(spec, min_counts=least)
    rows, keep, dropped = _usable_rows(sdata, spec, on_image=on_image, share=share)
    table, what = sdata.tables[spec.table_name], _what(spec)
    columns, missing = match_genes(genes, list(table.var_names), what=f"table {spec.table_name!r}", var=table.var)
    if missing and missing_genes == "raise":
        raise ValueError(
            f"section {whole.name!r}: table {spec.table_name!r} lacks {len(missing)} of {len(genes)} genes: "
            f"{missing[:5]}. Choose a panel that all sections have, for example with pp.gene_panel."
        )
    matrix, of_counts = matrix_of(table, spec.layer, what=what)[rows], spec.target == "log1p_cp10k"
    values = target_of(matrix, target=spec.target, columns=columns, what=what)
    return dataclasses.replace(
        take(whole, keep), expression=values, genes=tuple(map(str, genes)), grid=_grid(table, rows), dropped=dropped,
        min_counts=least if of_counts else None, total=totals(matrix) if of_counts else None,
    )  # fmt: skip


def usable_rows(sdata: SpatialData, spec: SectionSpec | None = None) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The rows of a table that enter training and scoring, and how many shapes do not, for which reason.

    Returns rows (m,) in the order of the shapes they annotate, and {reason: count}. See `needed_counts` for an object
    whose scale is not known.

    Raises ValueError as `training_section` does.
    """
    spec = (spec or SectionSpec()).resolved(sdata)
    region = tissue(sdata, spec.tissue_key, spec.image)
    shapes, area, on_image = shapes_in_pixels(sdata, spec.image, spec.shapes, region=region)
    check_some_inside(shapes, shapes_key=spec.shapes, image_key=spec.image, tissue_key=spec.tissue_key)
    spec = dataclasses.replace(spec, min_counts=needed_counts(sdata, spec))
    rows, _, dropped = _usable_rows(sdata, spec, on_image=on_image, share=_share(shapes, area))
    return rows, dropped


def section_name(sdata: SpatialData, image_key: str) -> str:
    """What messages call a section: its own name, else its store's, else its image's."""
    if sdata.attrs.get("name"):
        return str(sdata.attrs["name"])
    return Path(sdata.path).stem if sdata.path is not None else image_key


def _section_of_shapes(
    sdata: SpatialData, spec: SectionSpec, at_mpp: float, name: str | None
) -> tuple[Section, NDArray[np.bool_]]:
    """The section of all shapes of a resolved spec, and which of them lie wholly on the image."""
    view, step = image_view(sdata, spec, at_mpp)
    region = tissue(sdata, spec.tissue_key, spec.image, step=step)
    shapes, area, on_image = shapes_in_pixels(sdata, spec.image, spec.shapes, region=region, step=step)
    check_some_inside(shapes, shapes_key=spec.shapes, image_key=spec.image, tissue_key=spec.tissue_key)
    ids = shapes_element(sdata, spec.shapes).index.to_numpy()
    name = name or section_name(sdata, spec.image)
    patient = sdata.attrs.get("patient")
    whole = Section(
        name=name, image=view, geometry=shapes.geometry, radius=shapes.radius, ids=ids, area=area,
        tissue=region, group=None if patient is None else str(patient),
    )  # fmt: skip
    return whole, on_image


def measured_shapes(sdata: SpatialData, table_name: str, shapes_key: str) -> NDArray[np.bool_] | None:
    """Which shapes (n,) a table has counts of: those it annotates, but for ``in_tissue`` of 0; None for predictions."""
    table = sdata.tables[table_name]
    if is_predicted(table):
        return None
    rows, positions = table_rows(sdata, table_name, shapes_key)
    inside = _in_tissue(table, rows)
    out = np.zeros(len(shapes_element(sdata, shapes_key)), bool)
    out[positions] = True if inside is None else inside
    return out


def needed_counts(sdata: SpatialData, spec: SectionSpec) -> float:
    """How many counts a spot of these shapes needs: `spec.min_counts`, else by their area.

    Where no scale is known, or no image, 500, as for spots of 55 um and more; that is logged.
    """
    if spec.min_counts is not None:
        return spec.min_counts
    try:
        area = areas_um2(sdata, spec)
    except ValueError as error:
        logger.info("no area of shapes %r is known, so they need %d counts: %s", spec.shapes_key, MIN_COUNTS, error)
        return float(MIN_COUNTS)
    return _by_area(area)


def areas_um2(sdata: SpatialData, spec: SectionSpec) -> NDArray[np.float64]:
    """(n,) areas of whole shapes in square micrometres, in element order.

    Raises ValueError as `section` does for the keys and for an image without mpp.
    """
    spec = spec.resolved(sdata)
    _, area, _ = shapes_in_pixels(sdata, spec.image, spec.shapes)
    return area * image_mpp(sdata, spec.image, spec.shapes_key, spec.mpp) ** 2


def _by_area(area_um2: NDArray[np.float64]) -> float:
    known = area_um2[area_um2 > 0]
    return default_min_counts(float(np.median(known))) if len(known) else float(MIN_COUNTS)


def _usable_rows(
    sdata: SpatialData, spec: SectionSpec, *, on_image: NDArray[np.bool_], share: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
    """Usable rows of the table, their shapes' positions (rising), and the reasons of the others.

    Parameters
    ----------
    on_image, share
        Of each shape: whether it lies wholly on the image, and which share of its area is tissue.
    """
    check_target(spec.target)
    rows, positions = table_rows(sdata, spec.table_name, spec.shapes)
    order = np.argsort(positions)
    rows, positions = rows[order], positions[order]
    table = sdata.tables[spec.table_name]
    total = None
    if spec.target == "log1p_cp10k":
        counts = matrix_of(table, spec.layer, what=_what(spec))[rows]
        check_counts(counts, what=_what(spec))
        total = totals(counts)
        if n_genes := n_targeted_genes(table):
            say_once(sdata, TARGETED, _what(spec), n_genes)
    keep, dropped = usable(
        total=total,
        on_image=on_image[positions],
        tissue_share=share[positions],
        in_tissue=_in_tissue(table, rows),
        min_counts=MIN_COUNTS if spec.min_counts is None else spec.min_counts,
    )
    if len(positions) < len(on_image):
        dropped = {f"without a row in table {spec.table_name!r}": len(on_image) - len(positions)} | dropped
    if not keep.any():
        raise NoUsableShape(
            f"no usable spot in shapes {spec.shapes_key!r} with table {spec.table_name!r}: of {len(on_image)}, dropped "
            f"{dropped}. Check min_counts=, layer= and tissue_key=, and that the spots lie on the image."
        )
    reasons = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
    name = section_name(sdata, spec.image)
    say_once(
        sdata, "%s: %d of %d shapes %r are used; dropped: %s", name, keep.sum(), len(on_image), spec.shapes_key, reasons
    )
    return rows[keep], positions[keep], dropped


def _share(shapes: _coverage.Shapes, area: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(_coverage.areas(shapes) / area)


def _in_tissue(table: AnnData, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    if "in_tissue" not in table.obs:
        return None
    flags = table.obs["in_tissue"].iloc[rows].astype(str).str.lower()
    known = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    if not flags.isin(list(known)).all():
        raise ValueError(
            f'obs["in_tissue"] must be 0 or 1, got {flags[~flags.isin(list(known))].unique()[:3].tolist()}.'
        )
    return flags.map(known).to_numpy(dtype=bool)


def _grid(table: AnnData, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    if not {"array_row", "array_col"} <= set(table.obs):
        return None
    grid = [pd.to_numeric(table.obs[column].iloc[rows]).to_numpy() for column in ("array_row", "array_col")]
    return np.rint(np.stack(grid, axis=1)).astype(np.int64)


def _what(spec: SectionSpec) -> str:
    return f"table {spec.table_name!r}, " + ("X" if spec.layer is None else f"layer {spec.layer!r}")
