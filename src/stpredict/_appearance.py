"""Appearance of tissue: numbers of colour and form for the surroundings of each shape, which a domain is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stpredict import _coverage
from stpredict._domain import BLOCK_PX, N_FEATURES
from stpredict._places import blocks
from stpredict._prefetch import prefetch
from stpredict._section import ImageView, Section
from stpredict._window import Window

MARGIN_PX = 24  # what the widest band sees around a block
SQUARE_BLOCKS = 8  # along an axis, that are described together: a square of the size of an image's chunk
# Squares along an axis that are read together, fewer of a finer level: 55 MB of its pixels. A chunk of the image under
# several of them is decoded once.
READ_SQUARES = 4
# in pixels: bands half an octave wide, 3 to 30 um; the wide ones are made on a picture of half the size
FINE, WIDE = (0.7, 1.0, 1.4, 2.0, 2.8), (2.8, 4.0, 5.7, 8.0)
STRIP_PX = 16  # rows that a Gaussian makes in one product of matrices, small enough for one thread
TRUNCATE = 3.0  # of a Gaussian, in standard deviations
THREADS = min(4, os.cpu_count() or 1)  # each holds a square: 40 MB
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
    density: NDArray[np.float32] = DENSITY.take(np.moveaxis(rgb, 2, 0))
    tops = range(0, rgb.shape[0] - 2 * MARGIN_PX, BLOCK_PX)
    rows = (density[:, top : top + BLOCK_PX + 2 * MARGIN_PX] for top in tops)
    return np.stack([np.concatenate([_colour(row), _form(row)], axis=-1) for row in rows])


def _colour(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of colour (n, 9) of a row of n blocks, of its density (3, h, w) with a margin."""
    inner = density[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    blocks = inner.reshape(3, BLOCK_PX, -1, BLOCK_PX).transpose(2, 0, 1, 3).reshape(-1, 3, BLOCK_PX**2)
    mean = blocks.mean(axis=-1)
    centred = blocks - mean[..., None]
    covariance = np.einsum("bik,bjk->ijb", centred, centred) / np.float32(BLOCK_PX**2)
    spread = np.sqrt(covariance[range(3), range(3)]) + 0.01
    total = mean.mean(axis=1) + 0.02
    shares = np.log((mean[:, :2] + 0.02) / total[:, None])
    pairs = [covariance[i, j] / (spread[i] * spread[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.stack([np.log(total), *shares.T, *np.log(spread), *pairs], axis=-1)


def _form(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of form (n, 15) of a row of n blocks, of its density (3, h, w) with a margin."""
    grey: NDArray[np.float32] = density.sum(axis=0) / np.float32(3)
    summed = grey[::2] + grey[1::2]
    half: NDArray[np.float32] = np.float32(0.25) * (summed[:, ::2] + summed[:, 1::2])
    energy, form = [], []
    for number, band in enumerate([*_bands(grey, FINE), *_bands(half, WIDE, zoom=2)]):
        squared = band * band
        mean_square = squared.mean(axis=-1)
        energy.append(np.log(mean_square + 1e-7))
        if number % 2 == 0:
            std = np.sqrt(np.maximum(mean_square - band.mean(axis=-1) ** 2, 0)) + 1e-4
            form += [_mean_product(squared, band) / std**3, np.log(_mean_product(squared, squared) / std**4 + 0.1)]
    level = sum(energy) / len(energy)
    return np.stack([*(each - level for each in energy[:-1]), *form, level], axis=-1)


def _bands(grey: NDArray[np.float32], sigmas: Sequence[float], *, zoom: int = 1) -> NDArray[np.float32]:
    """Differences of neighbouring Gaussians (bands, n, pixels) of a row of blocks with a margin, in strips of columns.

    A pixel of `grey` is `zoom` wide. Strips of rows, then of columns, are multiplied by matrices that hold a Gaussian
    in each row: the values of `scipy.ndimage.gaussian_filter`, in sums of float32.
    """
    side, margin = BLOCK_PX // zoom, MARGIN_PX // zoom
    kernels = _gaussians(tuple(sigma / zoom for sigma in sigmas))  # (sigmas, strip, length)
    length = kernels.shape[-1]
    around = (length - STRIP_PX) // 2
    seen = grey[margin - around : margin + side + around, margin - around : grey.shape[1] - margin + around]
    # (n, strips, length, side + 2 around), then (sigmas, n, strips, side, length)
    rows = sliding_window_view(seen, (length, side + 2 * around))[::STRIP_PX, ::side].swapaxes(0, 1)
    blurred = (kernels[:, None, None] @ rows).reshape(len(sigmas), -1, side, side + 2 * around)
    columns = sliding_window_view(blurred, length, axis=-1)[..., ::STRIP_PX, :].swapaxes(2, 3)
    blurred = columns @ kernels.swapaxes(1, 2)[:, None, None]
    return (blurred[:-1] - blurred[1:]).reshape(len(sigmas) - 1, -1, side * side)


@cache
def _gaussians(sigmas: tuple[float, ...]) -> NDArray[np.float32]:
    """(sigmas, `STRIP_PX`, length): in each row a Gaussian around one of the middle pixels of a strip."""
    around = int(TRUNCATE * max(sigmas) + 0.5)
    at = np.arange(STRIP_PX + 2 * around) - around - np.arange(STRIP_PX)[:, None]
    sigma = np.array(sigmas)[:, None, None]
    weight = np.where(np.abs(at) <= np.floor(TRUNCATE * sigma + 0.5), np.exp(-0.5 * (at / sigma) ** 2), 0.0)
    return (weight / weight.sum(axis=-1, keepdims=True)).astype(np.float32)


def _mean_product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the product over the last axis; no array of products is made."""
    mean: NDArray[np.float32] = np.einsum("...k,...k->...", a, b) / np.float32(a.shape[-1])
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
    if not len(finite):
        return out
    at = np.clip(centre[finite] // BLOCK_PX, 0, None).astype(np.int64)
    unique, which = np.unique(at, axis=0, return_inverse=True)
    found = np.empty((len(unique), out.shape[1]), np.float32)

    def fill(rows: NDArray[np.int64], rgb: NDArray[np.uint8]) -> None:
        """Describe the blocks of one square."""
        found[rows] = block_features(rgb)[tuple((unique[rows] - unique[rows].min(axis=0)).T)]

    side = SQUARE_BLOCKS * max(1, round(READ_SQUARES / max(1.0, *image.scale)))
    groups = [
        [together[rows] for rows in _grouped(unique[together] // SQUARE_BLOCKS)]
        for together in _grouped(unique // side)
    ]
    read = prefetch(lambda squares: _read(image, [unique[rows] for rows in squares]), groups, depth=1)
    with ThreadPoolExecutor(THREADS) as threads:
        for squares, pixels in zip(groups, read, strict=True):
            list(threads.map(fill, squares, pixels))
    out[finite] = found[which.ravel()]
    return out


def _grouped(keys: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each distinct key (n, 2)."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    starts = np.flatnonzero(np.diff(keys[order], axis=0, prepend=-1).any(axis=1))
    return np.split(order, starts[1:])


def _read(image: ImageView, squares: Sequence[NDArray[np.int64]]) -> list[NDArray[np.uint8]]:
    """The pixels (h, w, 3) of squares of blocks (n, 2), with their margins.

    What lies off the image is mirrored, as glass there would be a feature.
    """
    first = [BLOCK_PX * square.min(axis=0) - MARGIN_PX for square in squares]
    after = [BLOCK_PX * (square.max(axis=0) + 1) + MARGIN_PX for square in squares]
    outer = [Window(*start.tolist(), *(stop - start).tolist()) for start, stop in zip(first, after, strict=True)]
    inside = [window.intersect(image.window) or window for window in outer]
    return [
        pixels if part == window else np.pad(pixels, _missing(window, part), mode="symmetric")
        for window, part, pixels in zip(outer, inside, image.read_all(inside), strict=True)
    ]


def _missing(window: Window, part: Window) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Pixels of a window before and after a part of it, along (y, x, channels)."""
    return (part.y0 - window.y0, window.y1 - part.y1), (part.x0 - window.x0, window.x1 - part.x1), (0, 0)


def _centres(section: Section) -> NDArray[np.float64]:
    """(n, 2) centres (y, x) of the shapes, NaN for empty ones."""
    bounds = _coverage.bounds(section.shapes)
    return (bounds[:, :2] + bounds[:, 2:]) / 2


def spatial_groups(section: Section) -> NDArray[np.int64]:
    """(n,) the one of 16 spatial blocks of each shape of a section."""
    return blocks(section)
