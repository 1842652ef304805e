"""Appearance of tissue: numbers of colour and form for the surroundings of each shape, which a domain is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stpredict import _coverage
from stpredict._domain import BLOCK_PX, N_FEATURES
from stpredict._places import blocks
from stpredict._section import ImageView, Section
from stpredict._window import Window

MARGIN_PX = 24  # what the widest band sees around a block
STRIP_BLOCKS = 4  # along x, that are read together
SIGMAS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0)  # in pixels: bands half an octave wide, 3 to 30 um


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
    density = -np.log((rgb.astype(np.float32) + 1) / 256)
    inner = slice(MARGIN_PX, -MARGIN_PX)
    channels = [_blocked(density[inner, inner, c]) for c in range(3)]
    mean, spread = [c.mean(-1) for c in channels], [c.std(-1) for c in channels]
    total = sum(mean) / 3
    shares = [np.log((each + 0.02) / (total + 0.02)) for each in mean[:2]]
    pairs = [_correlation(channels[i], channels[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    colour = [np.log(total + 0.02), *shares, *(np.log(each + 0.01) for each in spread), *pairs]
    blurred = [ndimage.gaussian_filter(density.mean(-1), sigma) for sigma in SIGMAS]
    bands = [_blocked((fine - coarse)[inner, inner]) for fine, coarse in zip(blurred[:-1], blurred[1:], strict=True)]
    energy = [np.log((band**2).mean(-1) + 1e-7) for band in bands]
    level = sum(energy) / len(energy)
    form = []
    for band in bands[::2]:
        unit = band / (band.std(-1, keepdims=True) + 1e-4)
        form += [(unit**3).mean(-1), np.log((unit**4).mean(-1) + 0.1)]
    return np.stack([*colour, *(each - level for each in energy[:-1]), *form, level], axis=-1).astype(np.float32)


def _blocked(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, columns, pixels) of the blocks of an image."""
    h, w = (size // BLOCK_PX for size in values.shape)
    return values.reshape(h, BLOCK_PX, w, BLOCK_PX).swapaxes(1, 2).reshape(h, w, -1)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    found = (a * b).mean(-1) / ((a.std(-1) + 0.01) * (b.std(-1) + 0.01))
    return found.astype(np.float32)


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
    found = np.empty((len(unique), out.shape[1]), np.float32)
    strips = np.stack([unique[:, 0], unique[:, 1] // STRIP_BLOCKS], axis=1)
    for y, x in np.unique(strips, axis=0):
        rows = np.flatnonzero((strips == (y, x)).all(axis=1))
        first, last = unique[rows, 1].min(), unique[rows, 1].max()
        strip = Window(int(y) * BLOCK_PX, int(first) * BLOCK_PX, BLOCK_PX, int(last - first + 1) * BLOCK_PX)
        found[rows] = block_features(_read(image, strip))[0, unique[rows, 1] - first]
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
    bounds = _coverage.bounds(section.geometry, section.radius)
    return (bounds[:, :2] + bounds[:, 2:]) / 2


def spatial_groups(section: Section) -> NDArray[np.int64]:
    """(n,) the one of 16 spatial blocks of each shape of a section."""
    return blocks(section)
