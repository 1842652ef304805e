"""The toy's cells: where they lie, how their nuclei look, and how much RNA they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stpredict.datasets._toy_genes import KINDS
from stpredict.datasets._toy_tissue import FIELD_MPP, GLAND, STROMA, TUMOUR, VESSEL, apart

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpredict.datasets._toy_tissue import Rings, Tissue

TUMOUR_CELL, GLAND_CELL, FIBROBLAST, LYMPHOCYTE, ENDOTHELIAL = range(len(KINDS))
USUAL_PER_MM2 = 4500.0  # what the spacings below give, over the whole of the tissue

# one value a type, in the order of KINDS
LONG_UM = np.array([4.5, 4.1, 6.6, 2.9, 5.0])  # half axes of the nucleus
SHORT_UM = np.array([3.7, 2.4, 1.35, 2.6, 1.25])
SIZE_SD = np.array([0.15, 0.08, 0.18, 0.08, 0.15])
SIZE_BY_STATE = np.array([0.13, 0.05, 0.0, 0.07, 0.0])  # log size per unit of the shown state
DARK = np.array([1.2, 1.35, 1.25, 1.85, 1.35])  # haematoxylin of the nucleus
DARK_BY_STATE = np.array([0.16, 0.10, 0.0, 0.0, 0.0])
RIM = np.array([0.42, 0.25, 0.1, 0.12, 0.0])  # how much paler than its rim the inside of a nucleus is
REACH_UM = np.array([4.75, 3.2, 7.0, 2.9, 3.5])  # half the distance that two cells keep
BODY_UM = np.array([9.0, 22.0, 12.0, 5.5, 8.0])  # how far from its nucleus a cell may reach
RNA = np.array([1.5, 1.2, 0.55, 0.45, 0.5])  # of a cell with a nucleus of usual size
RNA_SD = 0.4  # log scale, between cells of one type: the image does not show it


@dataclass(frozen=True)
class Cells:
    """All cells of a section.

    Parameters
    ----------
    yx : ndarray of float64
        (n, 2) nucleus centres in micrometres.
    kind : ndarray of int64
        (n,) index into KINDS.
    axes, angle : ndarray of float64
        (n, 2) half axes of the nucleus in micrometres, and (n,) direction of the first (radians from the x axis).
    dark, rim : ndarray of float64
        (n,) haematoxylin of the nucleus in units of optical density, and how much paler its inside is, 0 to 1.
    rna : ndarray of float64
        (n,) RNA content in arbitrary units.
    """

    yx: NDArray[np.float64]
    kind: NDArray[np.int64]
    axes: NDArray[np.float64]
    angle: NDArray[np.float64]
    dark: NDArray[np.float64]
    rim: NDArray[np.float64]
    rna: NDArray[np.float64]


def place_cells(rng: np.random.Generator, tissue: Tissue, *, per_mm2: float) -> Cells:
    """Cells in the tissue, about `per_mm2` of them per square millimetre at usual composition."""
    spread = float(np.sqrt(USUAL_PER_MM2 / per_mm2))
    lined = [_lining(rng, tissue, tissue.glands, GLAND_CELL, spacing=6.6 * spread, inset=5.5)]
    lined.append(_lining(rng, tissue, tissue.vessels, ENDOTHELIAL, spacing=13.0 * spread, inset=1.0))
    loose = [_scatter(rng, tissue, kind, spread) for kind in (TUMOUR_CELL, FIBROBLAST, LYMPHOCYTE, ENDOTHELIAL)]
    yx, angle, kind = (np.concatenate(parts) for parts in zip(*lined, *loose, strict=True))
    first = np.arange(len(kind)) < sum(len(part[2]) for part in lined)
    reach = REACH_UM[kind] * spread * np.where(first & (kind == GLAND_CELL), 0.8, 1.0)
    rank = np.select([first, kind == LYMPHOCYTE], [0.0, 1.5], 2.0)
    accepted = apart(rng, yx, reach, rank=rank)
    return _shape(rng, tissue, yx[accepted], angle[accepted], kind[accepted])


def _lining(
    rng: np.random.Generator, tissue: Tissue, rings: Rings, kind: int, *, spacing: float, inset: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Nuclei along contours: (n, 2) positions, (n,) directions, (n,) kinds."""
    parts = [np.empty((0, 3))]
    for ring in range(len(rings.centre)):
        yx, out = rings.points(ring, spacing=spacing, inset=inset, phase=rng.uniform(0.0, 2.0 * np.pi))
        parts.append(np.column_stack([yx + rng.normal(0.0, 0.9, yx.shape), out]))
    yx, out = np.split(np.concatenate(parts), [2], axis=1)
    wall = GLAND if kind == GLAND_CELL else VESSEL
    here = tissue.at(tissue.region, yx) == wall
    turn = 0.0 if kind == GLAND_CELL else np.pi / 2.0  # gland nuclei stand on the wall, endothelial ones lie in it
    return yx[here], out[here, 0] + turn, np.full(int(here.sum()), kind)


def _scatter(rng: np.random.Generator, tissue: Tissue, kind: int, spread: float) -> tuple[NDArray, NDArray, NDArray]:
    """More candidates of one type than there is room for, as many per area as the tissue asks for there."""
    per_mm2 = _per_mm2(tissue, kind) / spread**2
    size = FIELD_MPP * np.array(per_mm2.shape)
    n = rng.poisson(float(per_mm2.max()) * size.prod() * 1e-6)
    yx = rng.uniform(0.0, size, (n, 2))
    here = rng.random(n) * per_mm2.max() < tissue.at(per_mm2, yx)
    yx = yx[here]
    angle = rng.uniform(0.0, np.pi, len(yx))
    if kind in (FIBROBLAST, ENDOTHELIAL):
        angle = tissue.at(tissue.direction, yx) + rng.normal(0.0, 0.22, len(yx))
    return yx, angle, np.full(len(yx), kind)


def _per_mm2(tissue: Tissue, kind: int) -> NDArray:
    stroma, nest = tissue.region == STROMA, tissue.region == TUMOUR
    if kind == TUMOUR_CELL:
        return 32_000.0 * nest
    if kind == FIBROBLAST:
        return 3000.0 * np.exp(0.3 * tissue.shown[FIBROBLAST]) * stroma
    if kind == LYMPHOCYTE:
        return (150.0 + 30_000.0 * tissue.infiltrate) * stroma + 130.0 * nest
    return 140.0 * stroma


def _shape(rng: np.random.Generator, tissue: Tissue, yx: NDArray, angle: NDArray, kind: NDArray) -> Cells:
    n = len(kind)
    shown = np.clip(tissue.at(np.moveaxis(tissue.shown, 0, -1), yx)[np.arange(n), kind], -2.5, 2.5).astype(np.float64)
    size = np.exp(SIZE_BY_STATE[kind] * shown + SIZE_SD[kind] * rng.standard_normal(n))
    squeeze = np.exp(0.10 * rng.standard_normal(n))
    axes = np.column_stack([LONG_UM[kind] * size * squeeze, SHORT_UM[kind] * size / squeeze])
    dark = DARK[kind] * np.exp(DARK_BY_STATE[kind] * shown + 0.13 * rng.standard_normal(n))
    rna = RNA[kind] * size**2 * np.exp(RNA_SD * rng.standard_normal(n))
    return Cells(yx, kind, axes, angle, dark, RIM[kind] * rng.uniform(0.6, 1.2, n), rna)
