"""Appearance of tissue: numbers of colour and form for the surroundings of each shape, which a domain is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stpredict import _coverage
from stpredict._domain import BLOCK_PX, N_FEATURES
from stpredict._places import blocks
from stpredict._section import ImageView, Section
from stpredict._window import Window

MARGIN_PX = 24  # what the widest band sees around a block
SQUARE_BLOCKS = 8  # along an axis, that are read together: a square of the size of an image's chunk
# in pixels: bands half an octave wide, 3 to 30 um; the wide ones are made on a picture of half the size
FINE, WIDE = (0.7, 1.0, 1.4, 2.0, 2.8), (2.8, 4.0, 5.7, 8.0)
THREADS = min(4, os.cpu_count() or 1)  # each holds a square: 60 MB
THIRD = np.full(3, 1 / 3, np.float32)
# optical density of each of the 256 intensities
DENSITY: NDArray[np.float32] = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def block_features(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a domain is made of: numbers of colour and form for every block of an image.

    Parameters
    ----------
    rgb : ndarray of uint8
        (h, w, 3) at `DOMAIN_MPP`, with a margin of `MARGIN_PX` around whole blocks of `BLOCK_PX`.

    Returns
    -------
    ndarray of float32
        (rows, columns, f). Colour: log mean optical density, the shares of red and green in it, log standard
        deviations and correlations of the channels. Form: log energies of the bands (differences of Gaussians of the
        mean optical density) relative to their mean; skewness and log kurtosis of every second band; the mean log
        energy.
    """
    density: NDArray[np.float32] = DENSITY[rgb]
    inner = slice(MARGIN_PX, -MARGIN_PX)
    channels = [_blocked(density[inner, inner, c]) for c in range(3)]
    mean = [c.mean(-1) for c in channels]
    centred = [c - m[..., None] for c, m in zip(channels, mean, strict=True)]
    spread = [np.sqrt(_mean_product(c, c)) for c in centred]
    total = sum(mean) / 3
    shares = [np.log((each + 0.02) / (total + 0.02)) for each in mean[:2]]
    pairs = [
        _mean_product(centred[i], centred[j]) / ((spread[i] + 0.01) * (spread[j] + 0.01))
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    colour = [np.log(total + 0.02), *shares, *(np.log(each + 0.01) for each in spread), *pairs]
    grey: NDArray[np.float32] = density @ THIRD  # a product is several times faster than a mean over three
    rows = grey[::2] + grey[1::2]
    half: NDArray[np.float32] = np.float32(0.25) * (rows[:, ::2] + rows[:, 1::2])
    bands = [*_bands(grey, FINE), *_bands(half, WIDE, zoom=2)]
    energy = [np.log(_mean_product(band, band) + 1e-7) for band in bands]
    level = sum(energy) / len(energy)
    form = []
    for band in bands[::2]:
        unit = band / (band.std(-1, keepdims=True) + 1e-4)
        square = unit * unit
        form += [_mean_product(square, unit), np.log(_mean_product(square, square) + 0.1)]
    return np.stack([*colour, *(each - level for each in energy[:-1]), *form, level], axis=-1).astype(np.float32)


def _bands(grey: NDArray[np.float32], sigmas: Sequence[float], *, zoom: int = 1) -> list[NDArray[np.float32]]:
    """Differences of neighbouring Gaussians, by block, (rows, columns, pixels); a pixel of `grey` is `zoom` wide."""
    inner = slice(MARGIN_PX // zoom, -MARGIN_PX // zoom)
    blurred = [ndimage.gaussian_filter(grey, sigma / zoom, truncate=3.0)[inner, inner] for sigma in sigmas]
    return [_blocked(fine - coarse, BLOCK_PX // zoom) for fine, coarse in pairwise(blurred)]


def _blocked(values: NDArray[np.float32], side: int = BLOCK_PX) -> NDArray[np.float32]:
    """(rows, columns, pixels) of the blocks of an image."""
    h, w = (size // side for size in values.shape)
    return values.reshape(h, side, w, side).swapaxes(1, 2).reshape(h, w, -1)


def _mean_product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, columns) mean of the product over the pixels of each block; no array of products is made."""
    mean: NDArray[np.float32] = np.einsum("ijk,ijk->ij", a, b) / np.float32(a.shape[-1])
    return mean


def describe(image: ImageView, section: Section, factor: float = 1.0) -> NDArray[np.float32]:
    """The features (n, f) of the block of each shape's centre; NaN for shapes that are empty.

    Parameters
    ----------
    image : ImageView
        The section's image at `DOMAIN_MPP`, were its mpp `factor` times what it is.
    """
    centre = _centres(section) * (section.mpp / image.mpp * factor)
    out = np.full((section.n_shapes, N_FEATURES), np.nan, np.float32)
    finite = np.flatnonzero(np.isfinite(centre).all(axis=1))
    at = np.clip(centre[finite] // BLOCK_PX, 0, None).astype(np.int64)
    unique, which = np.unique(at, axis=0, return_inverse=True)
    square = unique // SQUARE_BLOCKS
    order = np.lexsort((square[:, 1], square[:, 0]))
    starts = np.flatnonzero(np.diff(square[order], axis=0, prepend=-1).any(axis=1))
    found = np.empty((len(unique), out.shape[1]), np.float32)

    def fill(rows: NDArray[np.int64]) -> None:
        """Describe the blocks of one square."""
        first, last = unique[rows].min(axis=0), unique[rows].max(axis=0) + 1
        (y, x), (height, width) = (first * BLOCK_PX).tolist(), ((last - first) * BLOCK_PX).tolist()
        features = block_features(_read(image, Window(y, x, height, width)))
        found[rows] = features[tuple((unique[rows] - first).T)]

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(fill, np.split(order, starts[1:])))
    out[finite] = found[which.ravel()]
    return out


def _read(image: ImageView, window: Window) -> NDArray[np.uint8]:
    """A window with its margin (h, w, 3); what lies off the image is mirrored, as glass there would be a feature."""
    wide = Window(
        window.y0 - MARGIN_PX, window.x0 - MARGIN_PX, window.height + 2 * MARGIN_PX, window.width + 2 * MARGIN_PX
    )
    inside = wide.intersect(image.window)
    if inside is None:
        return image.read(wide)
    pad = ((inside.y0 - wide.y0, wide.y1 - inside.y1), (inside.x0 - wide.x0, wide.x1 - inside.x1), (0, 0))
    return np.pad(image.read(inside), pad, mode="symmetric")


def _centres(section: Section) -> NDArray[np.float64]:
    """(n, 2) centres (y, x) of the shapes, NaN for empty ones."""
    bounds = _coverage.bounds(section.shapes)
    return (bounds[:, :2] + bounds[:, 2:]) / 2


def spatial_groups(section: Section) -> NDArray[np.int64]:
    """(n,) the one of 16 spatial blocks of each shape of a section."""
    return blocks(section)
