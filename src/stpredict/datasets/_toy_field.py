"""The toy's truth: RNA rate per area of every component, and its exact sums over pixels and shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from stpredict.datasets._toy_cells import BODY_UM, Cells
from stpredict.datasets._toy_genes import KINDS
from stpredict.datasets._toy_noise import overlaps
from stpredict.datasets._toy_tissue import FIELD_MPP, GLAND, STROMA, TUMOUR, VESSEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpredict.datasets._toy_tissue import Tissue

BLUR_UM = 2.5  # how far RNA spreads from its cell, standard deviation
AMBIENT_SHARE = 0.03  # of the mean rate, everywhere on tissue: no pixel of the tissue is without a rate
LOG_SCALE = 1e4  # counts per 10,000


def owners(tissue: Tissue, cells: Cells) -> NDArray[np.int64]:
    """The cell that each grid pixel belongs to, (h, w); -1 where none does.

    The nearest nucleus on the same side of the epithelium's border, if it is near enough for its type.
    """
    region = tissue.region
    side = np.select([region == TUMOUR, region == GLAND, (region == STROMA) | (region == VESSEL)], [1, 2, 3], 0)
    cell = np.clip((cells.yx // FIELD_MPP).astype(np.int64), 0, np.array(region.shape) - 1)
    of_cell = side[cell[:, 0], cell[:, 1]]
    owner = np.full(region.shape, -1, dtype=np.int64)
    for value in (1, 2, 3):
        seed = np.full(region.shape, -1, dtype=np.int64)
        index = np.flatnonzero(of_cell == value)
        seed[cell[index, 0], cell[index, 1]] = index
        if index.size == 0:
            continue
        distance, (row, column) = ndimage.distance_transform_edt(seed < 0, return_indices=True)
        nearest = seed[row, column]
        near = (side == value) & (FIELD_MPP * distance <= BODY_UM[cells.kind[nearest]])
        owner[near] = nearest[near]
    return owner


def components(tissue: Tissue, cells: Cells, owner: NDArray[np.int64]) -> NDArray[np.float32]:
    """RNA per area of every component, (len(COMPONENTS), h, w) float32, arbitrary units, 0 off the tissue.

    A cell's RNA is spread evenly over its area, then blurred by BLUR_UM, then split between its type's low and high
    state by the state at each pixel.
    """
    mine = owner >= 0
    size = np.bincount(owner[mine], minlength=len(cells.kind))
    density = np.zeros(owner.shape, dtype=np.float32)
    density[mine] = (cells.rna / np.maximum(size, 1) / FIELD_MPP**2)[owner[mine]]
    kind = np.where(mine, cells.kind[owner], -1)
    out = np.empty((2 * len(KINDS) + 1, *owner.shape), dtype=np.float32)
    for k in range(len(KINDS)):
        rate = ndimage.gaussian_filter(np.where(kind == k, density, 0.0), BLUR_UM / FIELD_MPP, mode="constant")
        rate *= tissue.inside
        np.multiply(rate, tissue.state[k], out=out[2 * k + 1])
        np.subtract(rate, out[2 * k + 1], out=out[2 * k])
    mean = out[:-1].sum(dtype=np.float64) / max(1, int(tissue.inside.sum()))
    out[-1] = np.float32(AMBIENT_SHARE * mean) * tissue.inside
    return out


def pooled(field: NDArray[np.float32], *, step: float) -> NDArray[np.float64]:
    """Sums of (k, h, w) maps over square pixels `step` grid cells wide, exact, (k, ceil(h / step), ceil(w / step))."""
    n_rows, n_columns = (int(np.ceil(n / step - 1e-9)) for n in field.shape[1:])
    rows, columns = overlaps(n_rows, field.shape[1], step), overlaps(n_columns, field.shape[2], step)
    return np.stack([(columns @ (rows @ one.astype(np.float64)).T).T for one in field])


def log1p_cp10k(amount: NDArray, profile: NDArray) -> NDArray[np.float32]:
    """Target units from RNA amounts per component (n, k) and the genes' shares in them (g, k): (n, g) float32.

    The denominator is all RNA, whatever genes `profile` holds. NaN where there is no RNA at all.
    """
    total = amount.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.log1p(LOG_SCALE * (amount @ profile.T) / np.where(total > 0, total, np.nan)).astype(np.float32)
