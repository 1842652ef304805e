"""The pictures of a report: the H&E, maps as planes of 8 bits, and the outlines of shapes, all in its own pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from PIL import Image

from stpredict import _coverage, _spatialdata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from xarray import DataArray

    Matrix = NDArray[np.float64]
    Box = tuple[float, float, float, float]  # x0, y0, x1, y1
    # positions of genes -> (place among them, plane)
    Read = Callable[[Sequence[int]], Iterator[tuple[int, NDArray[np.float32]]]]

HISTOLOGY_PX = 2000  # longer side of the H&E
PLANE_PX = 640  # longer side of a map at most
SMALLEST_PX = 48
PLANES_BYTES = 11_000_000  # of all maps together, as text
READ_BYTES = 2**28  # of a map's channels that are read together
LEVELS = 254  # values of a plane are 0 to 254; 255: there is none
SIMPLIFIED_PX = 0.3  # outlines of shapes may be off by this, in pixels of the H&E
SHOWN = (1.0, 99.0)  # percentiles at the ends of a colour scale
QUALITY = 85


@dataclass(frozen=True)
class Plane:
    """One gene as 8 bits: `low` and `high` are the values of 0 and 254, `ends` those of the colour scale."""

    text: str
    low: float
    high: float
    ends: tuple[float, float]


@dataclass(frozen=True)
class Planes:
    """Pictures of one size, one a gene; `matrix` takes (x, y) of their pixels to those of the H&E in the report."""

    width: int
    height: int
    matrix: Matrix
    planes: list[Plane] = field(default_factory=list)
    factor: int = 1  # how many pixels of the source a pixel is wide
    cut: bool = False  # whether some pixels have no value

    def content(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "width": self.width,
            "height": self.height,
            "matrix": _six(self.matrix),
            "planes": [each.text for each in self.planes],
            "low": [each.low for each in self.planes],
            "high": [each.high for each in self.planes],
            "range": [each.ends for each in self.planes],
        }


def histology(
    sdata: SpatialData, image_key: str, box: Box, *, longest_px: int = HISTOLOGY_PX
) -> tuple[str, int, int, Matrix]:
    """What of the H&E lies in a box: the text of a JPEG, width and height, and the matrix to pixels of the image."""
    levels = _spatialdata.image_levels(sdata, image_key)
    step = max(1.0, max(box[2] - box[0], box[3] - box[1]) / longest_px)
    part, (left, top, across, down) = _cropped(levels, box, step)
    k = max(1, int(step / max(across, down) + 1e-6))
    pixels = (part.astype(np.float32).coarsen(y=k, x=k, boundary="trim").mean() if k > 1 else part).to_numpy()
    picture = Image.fromarray(np.rint(np.moveaxis(pixels, 0, -1)).astype(np.uint8))
    height, width = part.sizes["y"] // k * k * down, part.sizes["x"] // k * k * across
    size = max(1, round(width / step)), max(1, round(height / step))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    matrix = np.array([[width / size[0], 0, left], [0, height / size[1], top], [0, 0, 1.0]])
    return _text(file.getvalue(), "image/jpeg"), *size, matrix


def raster_planes(
    sdata: SpatialData, raster_key: str, genes: Sequence[str], *, to_report: Matrix, box: Box, link: str, n_planes: int
) -> Planes:
    """The channels of a map, as large as the room for `n_planes` pictures allows.

    Parameters
    ----------
    to_report : ndarray of float64
        3x3 from pixels of the map to those of the H&E in the report.
    box : tuple[float, float, float, float]
        What of the map is shown, in its pixels.
    link : str
        What is applied to values before they are shown: "identity" or "log1p".
    """
    element = sdata.images[raster_key]
    levels = [_array(element[name]) for name in element] if hasattr(element, "children") else [element]
    names = [str(name) for name in levels[0].coords["c"].to_numpy()]
    channels = [names.index(gene) for gene in genes]

    def at(side: int) -> tuple[Matrix, int, Read]:
        step = max(1.0, max(box[2] - box[0], box[3] - box[1]) / side)
        part, (left, top, across, down) = _cropped(levels, box, step)
        k = max(1, int(np.ceil(step / max(across, down) - 1e-6)))
        scale = np.array([[k * across, 0, left], [0, k * down, top], [0, 0, 1.0]])
        factor = max(1, round(k * across))
        return to_report @ scale, factor, lambda positions: _channels(part, [channels[i] for i in positions], k, link)

    return _fitted(at, len(genes), n_planes, longest=max(box[2] - box[0], box[3] - box[1]))


def grid_planes(xy: NDArray[np.float64], values: NDArray[np.floating], *, side: float, n_planes: int) -> Planes:
    """Values (n, g) of shapes too many to be drawn each: a pixel is the mean of those whose centre lies in it.

    Parameters
    ----------
    xy : ndarray of float64
        (n, 2) centres in pixels of the report.
    side : float
        Distance of neighbours, which a pixel is not smaller than.
    """
    finite = np.isfinite(xy).all(axis=1)
    (x0, y0), (x1, y1) = xy[finite].min(axis=0), xy[finite].max(axis=0)

    def at(longest: int) -> tuple[Matrix, int, Read]:
        step = max(side, max(x1 - x0, y1 - y0) / longest)
        left, top = x0 - step / 2, y0 - step / 2
        w, h = int((x1 - left) // step) + 1, int((y1 - top) // step) + 1
        place = np.full(len(xy), -1, dtype=np.int64)
        column, row = ((xy[finite] - (left, top)) // step).astype(np.int64).T
        place[finite] = row * w + column
        matrix = np.array([[step, 0, left], [0, step, top], [0, 0, 1.0]])

        def planes(positions: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
            for k, i in enumerate(positions):
                there = np.isfinite(values[:, i]) & (place >= 0)
                n = np.bincount(place[there], minlength=w * h)
                total = np.bincount(place[there], weights=values[there, i], minlength=w * h)
                with np.errstate(invalid="ignore"):
                    yield k, np.where(n > 0, total / n, np.nan).astype(np.float32).reshape(h, w)

        return matrix, 1, planes

    return _fitted(at, values.shape[1], n_planes, longest=max(x1 - x0, y1 - y0) / side)


def _fitted(at: Callable[[int], Any], n: int, n_planes: int, *, longest: float) -> Planes:
    """All planes, at the largest side (up to `longest`) at which `n_planes` of them have room: tried on a few."""
    side, room = min(PLANE_PX, int(np.ceil(longest))), PLANES_BYTES / max(1, n_planes)
    probes = sorted({int(i) for i in np.linspace(0, n - 1, min(n, 6))})
    for _ in range(6):
        _, _, read = at(side)
        mean = float(np.mean([len(encoded(plane).text) for _, plane in read(probes)]))
        if mean <= room or side <= SMALLEST_PX:
            break
        side = max(SMALLEST_PX, int(side * min(0.95, np.sqrt(room / mean) * 0.98)))
    matrix, k, read = at(side)
    planes, shape, cut = {}, (0, 0), False
    for i, plane in read(range(n)):
        planes[i] = encoded(plane)
        shape, cut = plane.shape, cut or bool(np.isnan(plane).any())
    return Planes(shape[1], shape[0], matrix, [planes[i] for i in range(n)], k, cut)


def encoded(plane: NDArray[np.float32]) -> Plane:
    """A plane (h, w) as 8 bits over its range, NaN as 255, in the text of a PNG."""
    levels, low, high = quantised(plane)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", compress_level=4)  # a sixth of the time of `optimize`, and no larger
    return Plane(_text(file.getvalue(), "image/png"), low, high, ends(plane))


def ends(values: NDArray[np.floating]) -> tuple[float, float]:
    """The ends of a colour scale, beyond which lie few values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite, SHOWN)
    return float(low), float(high)


def quantised(values: NDArray[np.floating]) -> tuple[NDArray[np.uint8], float, float]:
    """Values as 0 to 254 over their range, 255 where they are NaN, and the values of 0 and 254."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.full(values.shape, 255, np.uint8), 0.0, 1.0
    low, high = float(values[finite].min()), float(values[finite].max())
    width = (high - low) or 1.0
    levels = np.full(values.shape, 255, np.uint8)
    levels[finite] = np.rint((values[finite] - low) / width * LEVELS)
    return levels, low, low + width


def column(values: NDArray[np.floating]) -> Plane:
    """One gene's values of shapes (n,) as 8 bits, in base64."""
    levels, low, high = quantised(values)
    return Plane(base64.b64encode(levels.tobytes()).decode(), low, high, ends(values))


def drawn_shapes(sdata: SpatialData, shapes_key: str, to_report: Matrix) -> dict[str, Any]:
    """Shapes in pixels of the report, as the page draws them: circles, or rings of corners."""
    shapes = _coverage.transform(_spatialdata.geometry_of(sdata, shapes_key), to_report)
    geometry, radius = shapes.geometry, shapes.radius
    if np.isfinite(radius).all() and len(radius):
        x, y = np.nan_to_num(shapely.get_x(geometry)), np.nan_to_num(shapely.get_y(geometry))
        return {"x": _short(x), "y": _short(y), "r": _short(np.where(shapely.is_empty(geometry), 0.0, radius))}
    geometry = np.where(np.isfinite(radius), shapely.buffer(geometry, np.nan_to_num(radius), quad_segs=6), geometry)
    return {"rings": [rings(each) for each in geometry]}


def rings(geometry: Any) -> list[list[float]]:
    """The outlines of a polygon or multipolygon, holes too, each as x, y, x, y, ..."""
    simple = shapely.simplify(geometry, SIMPLIFIED_PX)
    simple = geometry if shapely.is_empty(simple) else simple
    parts = shapely.get_parts(simple)
    out = []
    for part in parts:
        for ring in (part.exterior, *part.interiors):
            out.append(_short(np.asarray(ring.coords)[:-1, :2].ravel()))
    return out


def centres(sdata: SpatialData, shapes_key: str, to_report: Matrix) -> NDArray[np.float64]:
    """(n, 2) centroids of shapes in pixels of the report; NaN for one that is nowhere."""
    points = shapely.centroid(_spatialdata.geometry_of(sdata, shapes_key).geometry)
    xy = np.column_stack([shapely.get_x(points), shapely.get_y(points), np.ones(len(points))])
    return (xy @ to_report.T)[:, :2]


def _channels(
    level: DataArray, channels: Sequence[int], k: int, link: str
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Positions in `channels` and these channels of a level, averaged by k, as they lie in the file."""
    order = sorted(range(len(channels)), key=lambda i: channels[i])
    step = max(1, READ_BYTES // (4 * level.sizes["y"] * level.sizes["x"]))
    for start in range(0, len(order), step):
        some = order[start : start + step]
        part = averaged(level.isel(c=[channels[i] for i in some]).to_numpy().astype(np.float32), k)
        yield from zip(some, np.log1p(np.maximum(part, 0.0)) if link == "log1p" else part, strict=True)


def averaged(pixels: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(c, y, x) averaged by a whole factor; pixels without a value, and those beyond the border, do not count."""
    if k == 1:
        return pixels
    n, h, w = len(pixels), -(-pixels.shape[1] // k), -(-pixels.shape[2] // k)
    total, count = np.zeros((n, h, w), np.float32), np.zeros((n, h, w), np.float32)
    for i in range(k):
        for j in range(k):
            part = pixels[:, i::k, j::k]
            finite = np.isfinite(part)
            own = np.s_[:, : part.shape[1], : part.shape[2]]
            total[own] += np.where(finite, part, 0)
            count[own] += finite
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)


def _cropped(levels: Sequence[DataArray], box: Box, step: float) -> tuple[DataArray, tuple[float, float, float, float]]:
    """The coarsest level whose pixels are not larger than `step`, in a box; its corner and pixel in finest pixels.

    The corner is (x, y), the pixel (width, height).
    """
    height, width = levels[0].sizes["y"], levels[0].sizes["x"]
    fine = [level for level in levels if width / level.sizes["x"] <= step * 1.001]
    level = fine[-1] if fine else levels[0]
    across, down = width / level.sizes["x"], height / level.sizes["y"]
    x0, y0 = max(0, int(box[0] / across)), max(0, int(box[1] / down))
    x1, y1 = max(x0 + 1, int(np.ceil(box[2] / across - 1e-6))), max(y0 + 1, int(np.ceil(box[3] / down - 1e-6)))
    return level.isel(y=slice(y0, y1), x=slice(x0, x1)), (x0 * across, y0 * down, across, down)


def _array(node: Any) -> DataArray:
    return next(iter(node.data_vars.values()))


def _text(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _short(values: Any) -> list[float]:
    return [round(float(value), 1) for value in values]


def _six(matrix: Matrix) -> list[float]:
    """A 3x3 matrix as the six numbers of a canvas."""
    return [float(matrix[i, j]) for j in range(3) for i in range(2)]
