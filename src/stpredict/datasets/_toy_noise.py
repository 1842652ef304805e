"""Smooth random fields and the resampling of regular grids: what the toy's tissue and image are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

NODES_PER_LENGTH = 5.0  # bilinear interpolation between nodes this close loses under 2 % of the variance


def gaussian_field(rng: np.random.Generator, shape: tuple[int, int], *, length_px: float) -> NDArray[np.float32]:
    """A stationary Gaussian random field with mean 0 and variance 1, (height, width) float32.

    Parameters
    ----------
    length_px : float
        The correlation of two points d pixels apart is exp(-d² / (2 length_px²)).

    Notes
    -----
    The field is drawn on nodes a fifth of that length apart and interpolated, so a long field costs no more than a
    short one. Its variance is 1 over realisations: over an image shorter than `length_px` a field is nearly constant.
    """
    step = max(1.0, length_px / NODES_PER_LENGTH)
    sigma = length_px / np.sqrt(2.0) / step
    pad = int(np.ceil(4.0 * sigma)) + 1
    nodes = [int(np.ceil(n / step)) + 2 + 2 * pad for n in shape]
    white = rng.standard_normal(nodes, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, sigma, mode="constant")
    delta = np.zeros(2 * pad + 1)
    delta[pad] = 1.0
    smooth /= np.square(
        ndimage.gaussian_filter1d(delta, sigma, mode="constant")
    ).sum()  # norm of the kernel, squared by 2 axes
    return resample(smooth[pad:-pad, pad:-pad], shape, step=1.0 / step)


def resample(field: NDArray, shape: tuple[int, int], *, step: float) -> NDArray[np.float32]:
    """A (h, w) field read bilinearly at another resolution, `shape` float32; beyond the border the border value.

    Parameters
    ----------
    step : float
        Pixels of the field per pixel of the result; both grids share their upper left corner.
    """
    rows = _bilinear(shape[0], field.shape[0], step)
    columns = _bilinear(shape[1], field.shape[1], step)
    narrow = np.ascontiguousarray((rows @ np.asarray(field, dtype=np.float32)).T)
    return np.ascontiguousarray((columns @ narrow).T)


def _bilinear(n_out: int, n_in: int, step: float) -> sparse.csr_array:
    at = np.clip((np.arange(n_out) + 0.5) * step - 0.5, 0.0, n_in - 1.0)
    low = np.minimum(np.floor(at).astype(np.int64), max(n_in - 2, 0))
    share = (at - low).astype(np.float32)
    row = np.repeat(np.arange(n_out), 2)
    column = np.stack([low, np.minimum(low + 1, n_in - 1)], axis=1).ravel()
    value = np.stack([1.0 - share, share], axis=1).ravel()
    return sparse.csr_array((value, (row, column)), shape=(n_out, n_in))


def overlaps(n_out: int, n_in: int, step: float) -> sparse.csr_array:
    """(n_out, n_in) float64 lengths, in input pixels, of input cell j inside output cell i of side `step`; exact."""
    low = np.arange(n_out, dtype=np.float64) * step
    high = np.minimum(low + step, n_in)
    taps = np.arange(int(np.ceil(step)) + 2)
    column = np.floor(low).astype(np.int64)[:, None] + taps
    length = np.minimum(high[:, None], column + 1) - np.maximum(low[:, None], column)
    row = np.broadcast_to(np.arange(n_out)[:, None], column.shape)
    keep = (length > 0) & (column < n_in)
    return sparse.csr_array((length[keep], (row[keep], column[keep])), shape=(n_out, n_in))


def weave(rng: np.random.Generator, across: NDArray[np.float32], along: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fibre texture, float32 of the shape of `across`, roughly standard normal.

    Parameters
    ----------
    across, along : ndarray of float32
        Fibre coordinates of every pixel, in units of fibre width and fibre length: the texture varies over 1 of each.
    """
    table = ndimage.gaussian_filter(rng.standard_normal((1024, 512), dtype=np.float32), 1.0, mode="wrap")
    table /= table.std()
    return ndimage.map_coordinates(table, [2.0 * across, 2.0 * along], order=1, mode="grid-wrap", prefilter=False)
