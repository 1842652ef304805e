"""How large nuclei are in a picture of haematoxylin and eosin: the only ruler that every section carries.

Colour deconvolution (Ruifrok and Johnston 2001), then blobs in the scale space of the haematoxylin channel (differences
of Gaussians, after Lindeberg 1998): a disk answers most at the scale of its own radius over the square root of two. The
size is a median over thousands of blobs in pixels, so it grows with the picture; it knows nothing of a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

# optical density of R, G, B for unit haematoxylin, eosin, DAB: Ruifrok and Johnston 2001, table 1
RGB_OF_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HAEMATOXYLIN = np.linalg.inv(RGB_OF_HED)[:, 0].astype(np.float32)
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # of each of the 256 intensities; white is 0
TISSUE = 0.15  # mean optical density from which a pixel is tissue
SIGMA_PX = np.geomspace(1.0, 9.0, 12)  # of the Gaussians
STEP = float(SIGMA_PX[1] / SIGMA_PX[0])
STRONG = 0.4  # of the contrast between nuclei and the rest; texture inside nuclei and noise answer less
LEAST = 100  # blobs that make a median
RESOLVED_PX = 5.0  # blur and pixels alone look like blobs of 4.5 px: what is smaller may be anything


def haematoxylin(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The amount of haematoxylin of an (h, w, 3) image, in natural optical density, and which pixels are tissue."""
    density = DENSITY[image]
    return density @ HAEMATOXYLIN, density.mean(axis=-1) > TISSUE


def nuclear_diameter_px(images: Sequence[NDArray[np.uint8]]) -> float | None:
    """The median diameter of nuclei in pixels over some (h, w, 3) windows of tissue; None where too few are seen.

    What is smaller than `RESOLVED_PX` is an upper bound: nuclei that small are not told from blur.
    """
    found = [blob_diameters_px(image) for image in images]
    diameters = np.concatenate(found) if found else np.empty(0)
    return float(np.median(diameters)) if len(diameters) >= LEAST else None


def blob_diameters_px(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n,) diameters in pixels of the blobs of haematoxylin in an (h, w, 3) image, of about 3 to 24 px."""
    amount, tissue = haematoxylin(image)
    if tissue.sum() < LEAST:
        return np.empty(0)
    low, high = np.quantile(amount[tissue], (0.001, 0.999))  # dust and pen
    amount = np.clip(amount, low, high)
    contrast = _contrast(amount[tissue])
    blurred = _blurred(amount)
    answer = np.stack([(fine - coarse) / (STEP - 1) for fine, coarse in zip(blurred, blurred[1:], strict=False)])
    peak = (answer == ndimage.maximum_filter(answer, size=3)) & (answer > STRONG * contrast) & tissue
    peak[[0, -1]] = False  # the scale of those may lie outside
    scale, y, x = np.nonzero(peak)
    below, at, above = (answer[scale + k, y, x] for k in (-1, 0, 1))
    shift = 0.5 * (below - above) / np.minimum(below - 2 * at + above, -1e-9)  # the top of a parabola in log scale
    sigma = SIGMA_PX[scale] * np.sqrt(STEP) * STEP ** np.clip(shift, -0.5, 0.5)
    return np.asarray(2 * np.sqrt(2) * sigma, dtype=np.float64)


def _blurred(amount: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The channel under Gaussians of `SIGMA_PX` and one step more, each made of the one before."""
    out, before = [], 0.0
    for sigma in (*SIGMA_PX, SIGMA_PX[-1] * STEP):
        amount = ndimage.gaussian_filter(amount, np.sqrt(sigma**2 - before**2), truncate=3.0)
        out.append(amount)
        before = sigma
    return out


def _contrast(amount: NDArray[np.float32]) -> float:
    """The difference between the means of the two classes into which Otsu's threshold parts the values."""
    count, edge = np.histogram(amount, 128)
    centre, weight = (edge[1:] + edge[:-1]) / 2, np.cumsum(count)
    total = np.cumsum(count * centre)
    low, high = weight[:-1], weight[-1] - weight[:-1]
    apart = (total[-1] - total[:-1]) / np.maximum(high, 1) - total[:-1] / np.maximum(low, 1)
    return float(apart[np.argmax(low * high * apart**2)])
