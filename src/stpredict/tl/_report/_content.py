"""What the page draws: pictures and values of every gene, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
import shapely.affinity

from stpredict import _coverage, _spatialdata
from stpredict.tl._report import _facts, _pictures
from stpredict.tl._report._measured import SCORES, predicted
from stpredict.tl._report._page import colour_maps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from stpredict.tl._report._measured import Measured, Scores
    from stpredict.tl._report._pictures import Box
    from stpredict.tl._report._source import Source

SHAPES_BYTES = 5_000_000  # of values of single shapes, as text
MOST_SHAPES = 20_000  # that are drawn each
MARGIN = 0.04  # of the longer side, around what is shown


@dataclass(frozen=True)
class Content:
    """What the script draws, and what the words need to know of it.

    Parameters
    ----------
    factor
        How many pixels of the map one of its pictures is wide; 1 where there is no map.
    cut
        Whether some of the map has no value, as where it was cut by an outline.
    gridded
        Whether shapes are too many to be drawn each.
    tissue_mm2
        Area of the outline; None where there is none, or no scale.
    """

    data: dict[str, Any]
    factor: int
    cut: bool
    gridded: bool
    tissue_mm2: float | None


def content(
    source: Source, genes: Sequence[str], found: Measured, *, known: pd.DataFrame | None, scored: Scores
) -> Content:
    """Everything of a report but its words."""
    sdata, image = source.sdata, source.image_key
    region = _spatialdata.tissue(sdata, source.tissue_key, image)
    box = _shown(source, region)
    text, width, height, to_image = _pictures.histology(sdata, image, box)
    to_report = np.linalg.inv(to_image)
    data: dict[str, Any] = {
        "image": {
            "src": text,
            "width": width,
            "height": height,
            "um": source.um and source.um * to_image[0, 0],
            "corner": (to_image[:2, 2] / to_image[0, 0]),
        },
        "unit": _facts.unit(source, short=True),
        "genes": list(genes),
        "colours": colour_maps(),
        "table": rows(source, known, scored),
    }
    kinds = {"predicted": predicted(source, genes), "measured": found.values}
    values = {name: each for name, each in kinds.items() if each is not None}
    n_shapes = max((len(each) for each in values.values()), default=0)
    gridded = n_shapes > MOST_SHAPES or 4 / 3 * n_shapes * len(genes) * len(values) > SHAPES_BYTES
    n_planes = len(genes) * ((source.raster_key is not None) + gridded * len(values))
    factor, cut = 1, False
    if source.raster_key is not None:
        factor, cut = _add_map(data, source, genes, to_report, box, n_planes)
    if values:
        assert source.shapes_key is not None
        frame = to_report @ _spatialdata.relative_affine(sdata, source.shapes_key, image)
        for name, each in values.items():
            data[name] = _of_shapes(source, each, frame, n_planes) if gridded else _columns(each)
        _add_domain(data, source, frame, gridded)
        if not gridded:
            data["shapes"] = _pictures.drawn_shapes(sdata, source.shapes_key, frame)
    return Content(data, factor, cut, gridded, _add_tissue(data, source, region, to_report))


def rows(source: Source, known: pd.DataFrame | None, scored: Scores) -> dict[str, list[Any]]:
    """What is known of every gene, and its scores here, column by column; without those of which nothing is known."""
    frame = pd.DataFrame({"gene": source.genes}) if known is None else known.drop(columns="in_domain")
    if scored.genes is not None:
        here = scored.genes[["pcc", "ceiling", "pcc_log_depth"]].rename(
            columns={"pcc": "pcc_here", "ceiling": "ceiling_here", "pcc_log_depth": "depth_here"}
        )
        frame = frame.join(here, on="gene")
    kept = [name for name in frame if name in ("gene", "verdict") or frame[name].notna().any()]
    return {
        name: frame[name].tolist() if name in ("gene", "verdict") else frame[name].astype(float).round(4).tolist()
        for name in kept
    }


def score_rows(source: Source, scored: Scores) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Columns of the table of scores, and its rows (kind, name, values as text): predictions, null, ceiling."""
    if scored.table is None or scored.genes is None:
        return [], []
    columns = list(SCORES.values())
    out = []
    for name, row in scored.table.iterrows():
        kind = "own" if name == source.key else "other"
        out.append((kind, str(name), [_number(row[column]) for column in columns]))
    for kind, name, column in (("null", "log depth of the spot", "pcc_log_depth"), ("ceiling", "ceiling", "ceiling")):
        known = scored.genes[column].dropna()
        if len(known):
            low, middle, mean = known.quantile(0.25), known.median(), known.mean()
            out.append((kind, name, [_number(low), _number(middle), _number(mean)] + [""] * (len(columns) - 3)))
    return columns, out


def _add_map(
    data: dict[str, Any], source: Source, genes: Sequence[str], to_report: NDArray[np.float64], box: Box, n_planes: int
) -> tuple[int, bool]:
    assert source.raster_key is not None
    there = set(source.raster_genes)
    lacking = [gene for gene in genes if gene not in there]
    if lacking:
        raise ValueError(
            f"the map {source.raster_key!r} lacks {len(lacking)} genes of the layer of that name, such as "
            f"{lacking[:3]}; of different predictions, then. Predict both at once "
            "(output='both'), or name genes= of both."
        )
    to_image = _spatialdata.relative_affine(source.sdata, source.raster_key, source.image_key)
    frame = to_report @ to_image
    height, width = _spatialdata.raster_size(source.sdata, source.raster_key)
    own = _clipped(_box_of(box, np.linalg.inv(to_image)), height, width)
    link = str(source.raster_record.get("link", "identity"))
    planes = _pictures.raster_planes(
        source.sdata, source.raster_key, genes, to_report=frame, box=own, link=link, n_planes=n_planes
    )
    data["map"] = planes.content()
    return planes.factor, planes.cut


def _of_shapes(
    source: Source, values: NDArray[np.float32], frame: NDArray[np.float64], n_planes: int
) -> dict[str, Any]:
    assert source.shapes_key is not None
    xy = _pictures.centres(source.sdata, source.shapes_key, frame)
    return _pictures.grid_planes(xy, values, side=_pitch(xy), n_planes=n_planes).content()


def _pitch(xy: NDArray[np.float64]) -> float:
    """About the distance of neighbours: the side of a square that each has for itself."""
    known = xy[np.isfinite(xy).all(axis=1)]
    area = float(shapely.convex_hull(shapely.multipoints(known)).area)
    return max(1.0, float(np.sqrt(area / max(1, len(known)))))


def _columns(values: NDArray[np.float32]) -> dict[str, Any]:
    """Every gene's values of shapes, as the planes of a map have them."""
    planes = [_pictures.column(each) for each in values.T]
    return {
        "columns": [plane.text for plane in planes],
        "low": [plane.low for plane in planes],
        "high": [plane.high for plane in planes],
        "range": [plane.ends for plane in planes],
    }


def _add_domain(data: dict[str, Any], source: Source, frame: NDArray[np.float64], gridded: bool) -> None:
    name = f"{source.key}_domain"
    if source.layer is None or source.shapes_key is None or name not in source.layer.table.obs:
        return
    rows, positions = source.rows()
    values = np.full((len(_spatialdata.shapes_element(source.sdata, source.shapes_key)), 1), np.nan, np.float32)
    values[positions, 0] = np.asarray(source.layer.table.obs[name], dtype=np.float64)[rows]
    if np.isfinite(values).any():
        data["domain"] = _of_shapes(source, values, frame, 40) if gridded else {"values": values[:, 0].round(1)}


def _add_tissue(
    data: dict[str, Any], source: Source, region: BaseGeometry | None, to_report: NDArray[np.float64]
) -> float | None:
    """Put the outline into the data; its area in square millimetres, None where it is not known."""
    if region is None:
        return None
    (a, b, x), (c, d, y) = to_report[:2]
    data["tissue"] = _pictures.rings(shapely.affinity.affine_transform(region, [a, b, c, d, x, y]))
    return None if source.um is None else float(region.area) * (source.um / 1000) ** 2


def _shown(source: Source, region: BaseGeometry | None) -> Box:
    """What of the H&E is shown: tissue and shapes with a margin, or all of it where nothing says where these are."""
    height, width = _spatialdata.raster_size(source.sdata, source.image_key)
    whole = (0.0, 0.0, float(width), float(height))
    boxes = [] if region is None else [region.bounds]
    if source.shapes_key is not None and (region is not None or source.raster_key is None):
        shapes, _, _ = _spatialdata.shapes_in_pixels(source.sdata, source.image_key, source.shapes_key)
        bounds = _coverage.bounds(shapes)
        bounds = bounds[np.isfinite(bounds).all(axis=1)]
        boxes += [(*bounds[:, 1::-1].min(axis=0), *bounds[:, :1:-1].max(axis=0))] if len(bounds) else []
    if not boxes:
        return whole
    low, high = np.min([box[:2] for box in boxes], axis=0), np.max([box[2:] for box in boxes], axis=0)
    margin = MARGIN * max(high - low)
    return _clipped((*(low - margin), *(high + margin)), height, width)


def _box_of(box: Box, affine: NDArray[np.float64]) -> Box:
    """The box that holds another box after an affine."""
    x0, y0, x1, y1 = box
    points = affine @ np.array([[x0, x1, x1, x0], [y0, y0, y1, y1], [1, 1, 1, 1]], dtype=np.float64)
    return (*points[:2].min(axis=1), *points[:2].max(axis=1))


def _clipped(box: Box, height: int, width: int) -> Box:
    """A box within a picture, at least a pixel large."""
    x0, y0 = (float(np.clip(low, 0, size - 1)) for low, size in zip(box[:2], (width, height), strict=True))
    return x0, y0, float(np.clip(box[2], x0 + 1, width)), float(np.clip(box[3], y0 + 1, height))


def _number(value: Any) -> str:
    return "–" if value != value else f"{float(value):.3f}"
