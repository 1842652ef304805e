"""The toy's tissue: outline, tumour nests, glands, vessels, fibres, infiltrates, and the state of every cell type.

Lengths are micrometres, positions (y, x) from the upper left corner of the image, maps on a grid of FIELD_MPP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from stpredict.datasets._toy_genes import KINDS
from stpredict.datasets._toy_noise import gaussian_field

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIELD_MPP = 2.0
N_OUTLINE = 720
STROMA, TUMOUR, GLAND, TUMOUR_LUMEN, GLAND_LUMEN, VESSEL = 1, 2, 3, 4, 5, 6  # regions; 0 is off the tissue
TUMOUR_SHARE, GLAND_SHARE = 0.42, 0.34  # of the tissue, as domains; stroma lies between and inside both


@dataclass(frozen=True)
class Rings:
    """Closed contours: gland bases or vessel walls.

    Parameters
    ----------
    centre : ndarray of float64
        (n, 2).
    radius, stretch, angle, wall : ndarray of float64
        (n,): mean radius, elongation of the contour, direction of its long axis (radians), width of its wall.
    wave : ndarray of float64
        (n, 3, 2): relative amplitude and phase of the 2nd to 4th harmonic of the radius.
    """

    centre: NDArray[np.float64]
    radius: NDArray[np.float64]
    stretch: NDArray[np.float64]
    angle: NDArray[np.float64]
    wall: NDArray[np.float64]
    wave: NDArray[np.float64]

    def radius_at(self, ring: int, theta: NDArray) -> NDArray:
        """Radius of one contour, before its elongation, in the directions `theta`."""
        amplitude, phase = self.wave[ring].T
        order = np.arange(2, 5)
        return self.radius[ring] * (1.0 + (amplitude * np.cos(order * theta[..., None] + phase)).sum(axis=-1))

    def depth(self, ring: int, y: NDArray, x: NDArray) -> NDArray:
        """How deep (y, x) lies inside one contour; negative outside."""
        dy, dx = y - self.centre[ring, 0], x - self.centre[ring, 1]
        sine, cosine = np.sin(self.angle[ring]), np.cos(self.angle[ring])
        u = (dx * cosine + dy * sine) / self.stretch[ring]
        v = (dy * cosine - dx * sine) * self.stretch[ring]
        return self.radius_at(ring, np.arctan2(v, u)) - np.hypot(u, v)

    def points(self, ring: int, *, spacing: float, inset: float, phase: float) -> tuple[NDArray, NDArray]:
        """Points `inset` inside one contour, about `spacing` apart: (n, 2) positions and (n,) outward directions."""
        n = max(3, int(2.0 * np.pi * (self.radius[ring] - inset) / spacing))
        theta = phase + np.arange(n) * (2.0 * np.pi / n)
        r = np.maximum(self.radius_at(ring, theta) - inset, 1.0)
        u, v = np.cos(theta) * self.stretch[ring], np.sin(theta) / self.stretch[ring]
        sine, cosine = np.sin(self.angle[ring]), np.cos(self.angle[ring])
        out = np.stack([u * sine + v * cosine, u * cosine - v * sine], axis=1)
        return self.centre[ring] + r[:, None] * out, np.arctan2(out[:, 0], out[:, 1])


@dataclass(frozen=True)
class Tissue:
    """One section before its cells.

    Parameters
    ----------
    outline : ndarray of float64
        (N_OUTLINE, 2) vertices of the tissue's border.
    inside, region
        (h, w) bool and uint8: what the centre of each grid cell lies in.
    gap : ndarray of float32
        (h, w) float32 distance to the next epithelium or vessel, 0 inside it.
    across, along, direction : ndarray of float32
        (h, w) float32 coordinates across and along the stroma's fibres, and their direction (radians from the x axis).
    infiltrate : ndarray of float32
        (h, w) float32 in [0, 1]: how dense lymphocytes lie.
    shown, state : ndarray of float32
        (len(KINDS), h, w) float32: the part of each type's state that the image shows (standard normal), and the state
        itself, in (0, 1).
    """

    outline: NDArray[np.float64]
    inside: NDArray[np.bool_]
    region: NDArray[np.uint8]
    gap: NDArray[np.float32]
    across: NDArray[np.float32]
    along: NDArray[np.float32]
    direction: NDArray[np.float32]
    infiltrate: NDArray[np.float32]
    glands: Rings
    vessels: Rings
    shown: NDArray[np.float32]
    state: NDArray[np.float32]

    def at(self, field: NDArray, yx: NDArray) -> NDArray:
        """The value of a map in the grid cells that hold the positions `yx` (n, 2)."""
        cell = (np.asarray(yx) // FIELD_MPP).astype(np.int64)
        return field[np.clip(cell[:, 0], 0, field.shape[0] - 1), np.clip(cell[:, 1], 0, field.shape[1] - 1)]


def build_tissue(
    rng: np.random.Generator, size_um: tuple[float, float], *, field_length_um: float, visible: float
) -> Tissue:
    """A new section of `size_um` (height, width); `visible` is the share of a state's variance that the image shows."""
    shape = (int(np.ceil(size_um[0] / FIELD_MPP)), int(np.ceil(size_um[1] / FIELD_MPP)))
    outline, inside = _outline(rng, size_um, shape)
    domain = gaussian_field(rng, shape, length_px=260.0 / FIELD_MPP)
    tumour_from, gland_to = np.quantile(domain[inside], [1.0 - TUMOUR_SHARE, GLAND_SHARE])
    region = np.where(inside, STROMA, 0).astype(np.uint8)
    _nests(rng, region, domain - tumour_from)
    glands = _place_glands(rng, region, domain, gland_to)
    _stamp(region, glands, GLAND, GLAND_LUMEN)
    across, along, direction = _fibres(rng, region)
    vessels = _place_vessels(rng, region, direction)
    _stamp(region, vessels, VESSEL, VESSEL)
    region[~inside] = 0
    gap = FIELD_MPP * ndimage.distance_transform_edt(region <= STROMA).astype(np.float32)
    infiltrate = _infiltrate(rng, region, domain - tumour_from)
    shown, state = _states(rng, shape, field_length_um=field_length_um, visible=visible)
    return Tissue(outline, inside, region, gap, across, along, direction, infiltrate, glands, vessels, shown, state)


def _outline(
    rng: np.random.Generator, size_um: tuple[float, float], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A ragged star-shaped polygon that leaves glass on every side, and which grid cells have their centre in it."""
    theta = np.arange(N_OUTLINE) * (2.0 * np.pi / N_OUTLINE)
    order = np.arange(2, 90)
    amplitude = 0.15 * rng.standard_normal(order.size) / order**1.25
    wave = (amplitude * np.cos(order * theta[:, None] + rng.uniform(0.0, 2.0 * np.pi, order.size))).sum(axis=1)
    square = (np.abs(np.cos(theta)) ** 3 + np.abs(np.sin(theta)) ** 3) ** (-1.0 / 3.0)
    r = square * (1.0 + wave)
    unit = np.stack([r * np.sin(theta), r * np.cos(theta)], axis=1)
    half = np.array(size_um) / 2.0
    unit *= 0.96 / np.abs(unit).max()
    y, x = ((np.arange(n) + 0.5) * FIELD_MPP / h - 1.0 for n, h in zip(shape, half, strict=True))
    first = np.floor(np.arctan2(y[:, None], x[None, :]) * (N_OUTLINE / (2.0 * np.pi))).astype(np.int64) % N_OUTLINE
    a, b = unit, np.roll(unit, -1, axis=0)
    turn = (b - a)[first]
    inside = turn[..., 1] * (y[:, None] - a[first, 0]) - turn[..., 0] * (x[None, :] - a[first, 1]) > 0
    return half + unit * half, inside


def _nests(rng: np.random.Generator, region: NDArray[np.uint8], domain: NDArray[np.float32]) -> None:
    """Writes tumour nests, some of them with lumens, where `domain` is above 0."""
    shape = region.shape
    islands = 0.8 * gaussian_field(rng, shape, length_px=26.0 / FIELD_MPP)
    islands += 0.6 * gaussian_field(rng, shape, length_px=75.0 / FIELD_MPP)
    nest = (islands + np.clip(4.0 * domain, -3.0, 0.1) > 0.0) & (region == STROMA)
    region[nest] = TUMOUR
    deep = FIELD_MPP * ndimage.gaussian_filter(ndimage.distance_transform_edt(nest), 2.5)
    holes = gaussian_field(rng, shape, length_px=15.0 / FIELD_MPP)
    region[nest & (np.minimum((deep - 12.0) / 6.0, (holes - 0.85) / 0.4) > 0.0)] = TUMOUR_LUMEN


def _place_glands(
    rng: np.random.Generator, region: NDArray[np.uint8], domain: NDArray[np.float32], below: float
) -> Rings:
    clear = FIELD_MPP * ndimage.distance_transform_edt(region == STROMA)
    rings = _candidates(rng, region.shape, per_mm2=1500.0, radius=(24.0, 60.0), stretch=(1.0, 1.5), wall=(15.0, 20.0))
    cell = (rings.centre // FIELD_MPP).astype(np.int64)
    room = clear[cell[:, 0], cell[:, 1]] - 1.15 * rings.radius * rings.stretch
    wanted = (domain[cell[:, 0], cell[:, 1]] < below) & (room > 4.0)
    return _pick(rings, apart(rng, rings.centre, 1.05 * rings.radius * rings.stretch**0.5 + 4.0, wanted))


def _place_vessels(rng: np.random.Generator, region: NDArray[np.uint8], angle: NDArray[np.float32]) -> Rings:
    clear = FIELD_MPP * ndimage.distance_transform_edt(region == STROMA)
    rings = _candidates(rng, region.shape, per_mm2=60.0, radius=(5.0, 15.0), stretch=(1.0, 1.9), wall=(2.5, 4.0))
    cell = (rings.centre // FIELD_MPP).astype(np.int64)
    wanted = clear[cell[:, 0], cell[:, 1]] > 1.2 * rings.radius * rings.stretch + 5.0
    chosen = apart(rng, rings.centre, rings.radius * rings.stretch + 25.0, wanted)
    rings.angle[:] = angle[cell[:, 0], cell[:, 1]]
    return _pick(rings, chosen)


def _candidates(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    per_mm2: float,
    radius: tuple[float, float],
    stretch: tuple[float, float],
    wall: tuple[float, float],
) -> Rings:
    size = FIELD_MPP * np.array(shape)
    n = rng.poisson(per_mm2 * size.prod() * 1e-6)
    amplitude = rng.normal(0.0, [0.05, 0.035, 0.025], (n, 3))
    return Rings(
        centre=rng.uniform(0.0, size, (n, 2)),
        radius=rng.uniform(*radius, n),
        stretch=np.sqrt(rng.uniform(*stretch, n)),
        angle=rng.uniform(0.0, np.pi, n),
        wall=rng.uniform(*wall, n),
        wave=np.stack([amplitude, rng.uniform(0.0, 2.0 * np.pi, (n, 3))], axis=2),
    )


def _pick(rings: Rings, chosen: NDArray[np.bool_]) -> Rings:
    return Rings(**{name: value[chosen] for name, value in vars(rings).items()})


def _stamp(region: NDArray[np.uint8], rings: Rings, wall: int, lumen: int) -> None:
    """Writes every contour into `region`: its wall, and what lies inside the wall."""
    for ring in range(len(rings.centre)):
        reach = 1.3 * rings.radius[ring] * rings.stretch[ring] + 2.0 * FIELD_MPP
        low = np.maximum((rings.centre[ring] - reach) // FIELD_MPP, 0).astype(np.int64)
        high = np.ceil((rings.centre[ring] + reach) / FIELD_MPP).astype(np.int64)
        part = region[low[0] : high[0], low[1] : high[1]]
        y, x = ((np.arange(n) + start + 0.5) * FIELD_MPP for n, start in zip(part.shape, low, strict=True))
        depth = rings.depth(ring, y[:, None], x[None, :])
        part[(depth > 0) & (part > 0)] = wall
        part[(depth > rings.wall[ring]) & (part > 0)] = lumen


def _fibres(
    rng: np.random.Generator, region: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates across and along the fibres, and the fibres' direction (radians from the x axis).

    Fibres are the level lines of a warped plane; near epithelium they run around it.
    """
    shape = region.shape
    y, x = (FIELD_MPP * (np.arange(n, dtype=np.float32) + 0.5) for n in shape)
    angle = rng.uniform(0.0, np.pi)
    across = np.float32(np.cos(angle)) * y[:, None] - np.float32(np.sin(angle)) * x[None, :]
    along = np.float32(np.sin(angle)) * y[:, None] + np.float32(np.cos(angle)) * x[None, :]
    for length, height in ((320.0, 150.0), (90.0, 22.0), (30.0, 3.5)):
        across = across + np.float32(height) * gaussian_field(rng, shape, length_px=length / FIELD_MPP)
    along = along + 30.0 * gaussian_field(rng, shape, length_px=160.0 / FIELD_MPP)
    gap = FIELD_MPP * ndimage.distance_transform_edt(region <= STROMA).astype(np.float32)
    gap = ndimage.gaussian_filter(gap, 4.0)
    near = np.exp(-np.square(gap / 14.0))
    bent = across + 2.0 * gap * near
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(bent, 3.0))
    return bent.astype(np.float32), along.astype(np.float32), np.arctan2(slope_x, -slope_y).astype(np.float32)


def _infiltrate(
    rng: np.random.Generator, region: NDArray[np.uint8], domain: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Patchy lymphocytes along the tumour's border, and a few dense aggregates."""
    shape = region.shape
    border = np.exp(-np.square((domain + 0.1) / 0.35))
    patches = np.clip(0.5 + 1.2 * gaussian_field(rng, shape, length_px=55.0 / FIELD_MPP), 0.0, 1.0)
    dense = np.clip(4.0 * (gaussian_field(rng, shape, length_px=65.0 / FIELD_MPP) - 1.45), 0.0, 1.0)
    return np.maximum(0.75 * border * patches**2, dense).astype(np.float32) * (region == STROMA)


def _states(
    rng: np.random.Generator, shape: tuple[int, int], *, field_length_um: float, visible: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    fields = [gaussian_field(rng, shape, length_px=field_length_um / FIELD_MPP) for _ in range(2 * len(KINDS))]
    shown, hidden = np.stack(fields[0::2]), np.stack(fields[1::2])
    mixed = np.float32(np.sqrt(visible)) * shown + np.float32(np.sqrt(1.0 - visible)) * hidden
    return shown, np.reciprocal(1.0 + np.exp(np.float32(-1.7) * mixed), dtype=np.float32)


def apart(
    rng: np.random.Generator,
    centre: NDArray,
    reach: NDArray,
    wanted: NDArray[np.bool_] | None = None,
    rank: NDArray | None = None,
) -> NDArray[np.bool_]:
    """A maximal choice of points no two of which lie closer than the sum of their `reach`, (n,) bool.

    Points of lower `rank` go first, equals in random order. wanted: only these are candidates.
    """
    n = len(centre)
    order = rng.permutation(n).astype(np.float64) / max(n, 1) + (0.0 if rank is None else rank)
    open_ = np.ones(n, dtype=bool) if wanted is None else wanted.copy()
    chosen = np.zeros(n, dtype=bool)
    index = np.flatnonzero(open_)
    if index.size == 0:
        return chosen
    pairs = index[cKDTree(centre[index]).query_pairs(2.0 * reach[index].max(), output_type="ndarray")]
    near = np.linalg.norm(centre[pairs[:, 0]] - centre[pairs[:, 1]], axis=1) < reach[pairs].sum(axis=1)
    first, second = pairs[near].T
    swap = order[first] > order[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    while open_.any():
        live = open_[first] & open_[second]
        first, second = first[live], second[live]
        beaten = np.zeros(n, dtype=bool)
        beaten[second] = True
        new = open_ & ~beaten
        chosen |= new
        open_ &= ~new
        gone = second[new[first]]
        open_[gone] = False
    return chosen
