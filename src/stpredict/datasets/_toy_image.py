"""The toy's H&E: eosin and haematoxylin as optical densities, turned into RGB by Beer-Lambert's law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from stpredict.datasets._toy_cells import FIBROBLAST, GLAND_CELL, TUMOUR_CELL
from stpredict.datasets._toy_noise import gaussian_field, resample, weave
from stpredict.datasets._toy_tissue import FIELD_MPP, GLAND, GLAND_LUMEN, STROMA, TUMOUR, VESSEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpredict.datasets._toy_cells import Cells
    from stpredict.datasets._toy_tissue import Tissue

# absorbance of (R, G, B) per unit of stain; a usual H&E by Macenko's method
HAEMATOXYLIN = np.array([0.563, 0.720, 0.406])
EOSIN = np.array([0.216, 0.801, 0.558])
CHUNK = 4096  # nuclei drawn at once


@dataclass(frozen=True)
class Stain:
    """How one section was stained and scanned.

    Parameters
    ----------
    haematoxylin, eosin : ndarray of float64
        (3,) absorbance of R, G, B per unit of stain, unit vectors, times how strongly this section took the stain.
    glass : ndarray of float64
        (3,) RGB of empty glass, 0 to 255.
    """

    haematoxylin: NDArray[np.float64]
    eosin: NDArray[np.float64]
    glass: NDArray[np.float64]


def draw_stain(rng: np.random.Generator) -> Stain:
    """A section's stain: hue and strength vary as between runs of one laboratory."""
    hues = np.clip(np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0.0, 0.035, (2, 3)), 0.02, None)
    hues /= np.linalg.norm(hues, axis=1, keepdims=True)
    strength = np.exp(rng.normal(0.0, 0.14, 2))
    return Stain(hues[0] * strength[0], hues[1] * strength[1], np.clip(rng.normal((243, 240, 244), 3.0), 225.0, 252.0))


def draw(
    rng: np.random.Generator,
    tissue: Tissue,
    cells: Cells,
    owner: NDArray[np.int64],
    stain: Stain,
    *,
    shape: tuple[int, int],
    mpp: float,
) -> NDArray[np.uint8]:
    """The section's image, (3, height, width) uint8 RGB with `shape` = (height, width) pixels of `mpp` micrometres."""
    eosin, blue = _cytoplasm(rng, tissue, cells, owner)
    step = mpp / FIELD_MPP
    eosin, blue = resample(eosin, shape, step=step), resample(blue, shape, step=step)
    eosin += _collagen(rng, tissue, shape, mpp)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), max(0.7 / mpp, 0.3))
    grain /= grain.std()
    nuclei = _nuclei(rng, cells, shape, mpp)
    nuclei *= np.exp(np.float32(0.27) * np.clip(grain, -3.0, 3.0))
    eosin *= (1.0 + 0.14 * grain) * (1.0 - 0.55 * np.minimum(nuclei, 1.0))
    blue += nuclei
    thick = np.exp(np.float32(0.10) * gaussian_field(rng, shape, length_px=500.0 / mpp))
    focus = max(0.45 / mpp, 0.3)
    eosin, blue = (ndimage.gaussian_filter(one * thick, focus, mode="nearest") for one in (eosin, blue))
    return _scan(rng, eosin, blue, stain)


def _scan(
    rng: np.random.Generator, eosin: NDArray[np.float32], blue: NDArray[np.float32], stain: Stain
) -> NDArray[np.uint8]:
    """Light through the stain, with the scanner's uneven lamp and its noise."""
    shape = eosin.shape
    out = np.empty((3, *shape), dtype=np.uint8)
    lamp = np.float32(1.0) + np.float32(0.008) * gaussian_field(rng, shape, length_px=0.3 * max(shape))
    for channel in range(3):
        od = blue * np.float32(stain.haematoxylin[channel])
        od += eosin * np.float32(stain.eosin[channel])
        light = np.exp(-np.maximum(od, 0.0)) * lamp
        light *= np.float32(stain.glass[channel])
        light += rng.standard_normal(shape, dtype=np.float32) * np.float32(1.6)
        out[channel] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return out


def _soft(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A mask with smooth borders about one grid cell wide."""
    return np.clip(2.2 * (ndimage.gaussian_filter(mask.astype(np.float32), 0.9) - 0.5) + 0.5, 0.0, 1.0)


def _cytoplasm(
    rng: np.random.Generator, tissue: Tissue, cells: Cells, owner: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Eosin and haematoxylin of all that is neither nucleus nor fibre, on the field's grid."""
    region = tissue.region
    tone = np.exp(0.16 * rng.standard_normal(len(cells.kind) + 1)).astype(np.float32)
    tone[-1] = 1.0  # what belongs to no cell
    each = ndimage.gaussian_filter(tone[owner], 0.7)
    nest, wall = _soft(region == TUMOUR), _soft(region == GLAND)
    amphophilic = np.exp(0.22 * np.clip(tissue.shown[TUMOUR_CELL], -2.5, 2.5))
    mucous = 1.0 / (1.0 + np.exp(1.6 * tissue.shown[GLAND_CELL]))  # low state: pale mucin, high state: pink
    eosin = each * (nest * 0.42 + wall * (0.56 - 0.26 * mucous))
    blue = each * (nest * 0.21 * amphophilic + wall * (0.13 + 0.07 * mucous))
    seam = _seams(owner, (region == TUMOUR) | (region == GLAND))
    eosin += seam * (0.14 * nest + 0.10 * wall)
    edge = np.exp(-tissue.gap / 2.0) * (region == STROMA)  # basement membranes and vessel walls
    eosin += 0.16 * ndimage.gaussian_filter(edge, 0.7)
    eosin += 0.35 * _soft(region == VESSEL) * (1.0 - _hollow(tissue))
    secretion = np.clip(gaussian_field(rng, region.shape, length_px=16.0 / FIELD_MPP) - 0.5, 0.0, 1.0)
    eosin += 0.28 * secretion * _soft(region == GLAND_LUMEN)
    eosin += _blood(rng, region.shape) * _hollow(tissue)
    return eosin.astype(np.float32), blue.astype(np.float32)


def _seams(owner: NDArray[np.int64], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Borders between neighbouring epithelial cells, 0 to 1."""
    seam = np.zeros(owner.shape, dtype=np.float32)
    seam[:-1] += owner[:-1] != owner[1:]
    seam[:, :-1] += owner[:, :-1] != owner[:, 1:]
    return ndimage.gaussian_filter(np.minimum(seam, 1.0) * where, 0.6)


def _hollow(tissue: Tissue) -> NDArray[np.float32]:
    """The inside of vessels, 0 to 1."""
    deep = FIELD_MPP * ndimage.distance_transform_edt(tissue.region == VESSEL)
    return np.clip((deep - 2.5) / 2.0, 0.0, 1.0).astype(np.float32)


def _blood(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Eosin of red cells packed in some places."""
    discs = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.2)
    some = gaussian_field(rng, shape, length_px=40.0 / FIELD_MPP) > 0.0
    return np.clip(4.0 * discs / discs.std() * 0.3 + 0.2, 0.0, 1.0) * some * np.float32(1.1)


def _collagen(rng: np.random.Generator, tissue: Tissue, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
    """Eosin of the stroma's fibres at image resolution: bundles, fine strands, and clefts between them."""
    step = mpp / FIELD_MPP
    across, along = resample(tissue.across, shape, step=step), resample(tissue.along, shape, step=step)
    bundle = weave(rng, across / 8.0, along / 55.0)
    strand = weave(rng, across / 2.6, along / 14.0)
    amount = np.exp(0.24 * np.clip(tissue.shown[FIBROBLAST], -2.5, 2.5)) * _soft(tissue.region == STROMA)
    loose = 0.5 * gaussian_field(rng, tissue.region.shape, length_px=110.0 / FIELD_MPP) + 0.8 * tissue.infiltrate
    amount = resample(amount, shape, step=step)
    loose = resample(loose, shape, step=step)
    body = np.clip(0.36 + 0.11 * bundle + 0.09 * strand + 0.07 * loose, 0.06, 0.9)
    cleft = np.clip(1.8 * (bundle + 0.6 * strand + 1.25 + 0.9 * loose) + 0.5, 0.12, 1.0)
    return amount * body * cleft


def _nuclei(rng: np.random.Generator, cells: Cells, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
    """Haematoxylin of all nuclei, (height, width); where two overlap, the darker."""
    out = np.zeros(shape[0] * shape[1], dtype=np.float32)
    order = np.argsort(cells.axes.max(axis=1), kind="stable")  # small patches for small nuclei
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        value, row, column = _stamps(rng, cells, chosen, mpp)
        inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1]) & (value > 0)
        np.maximum.at(out, (row * shape[1] + column)[inside], value[inside])
    return out.reshape(shape)


def _stamps(
    rng: np.random.Generator, cells: Cells, chosen: NDArray[np.int64], mpp: float
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Haematoxylin of some nuclei on square patches of pixels around them: values, rows, columns, each (n, p, p)."""
    n = len(chosen)
    reach = int(np.ceil(1.2 * cells.axes[chosen].max() / mpp)) + 1
    span = np.arange(-reach, reach + 1)
    corner = np.floor(cells.yx[chosen] / mpp).astype(np.int64)
    off = ((corner + 0.5) * mpp - cells.yx[chosen]).astype(np.float32)
    dy = off[:, 0, None, None] + np.float32(mpp) * span[None, :, None].astype(np.float32)
    dx = off[:, 1, None, None] + np.float32(mpp) * span[None, None, :].astype(np.float32)
    angle = cells.angle[chosen].astype(np.float32)[:, None, None]
    axes = cells.axes[chosen].astype(np.float32)
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / axes[:, 0, None, None]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / axes[:, 1, None, None]
    r2 = u * u + v * v + np.float32(1e-6)
    dent = rng.normal(0.0, 0.07, (4, n, 1, 1)).astype(np.float32)
    outline = (
        1.0
        + (dent[0] * (u * u - v * v) + dent[1] * u * v + dent[2] * u * v * v) / r2
        + dent[3] * u * v * v / (r2 * np.sqrt(r2))
    )
    rho = np.sqrt(r2) / outline
    soft = np.float32(0.5) * (axes.min(axis=1) / np.float32(max(mpp, 0.5)))[:, None, None]
    edge = np.clip((1.0 - rho) * 2.0 * soft + 0.5, 0.0, 1.0)
    rim = cells.rim[chosen].astype(np.float32)[:, None, None]
    body = 1.0 - rim * np.clip(1.0 - rho**3, 0.0, 1.0) + _nucleoli(rng, u, v, rim)
    value = edge * body * cells.dark[chosen].astype(np.float32)[:, None, None]
    row = np.broadcast_to(corner[:, 0, None, None] + span[None, :, None], value.shape)
    column = np.broadcast_to(corner[:, 1, None, None] + span[None, None, :], value.shape)
    return value, row, column


def _nucleoli(rng: np.random.Generator, u: NDArray, v: NDArray, rim: NDArray) -> NDArray[np.float32]:
    """One dark grain in pale nuclei, in the nucleus's own coordinates."""
    at = rng.normal(0.0, 0.28, (2, len(u), 1, 1)).astype(np.float32)
    return 1.1 * np.clip(rim - 0.2, 0.0, 1.0) * np.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / 0.045)
