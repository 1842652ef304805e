"""How large nuclei are in a picture of haematoxylin and eosin, and the scale that they show: every section has them.

Colour deconvolution (Ruifrok and Johnston 2001), then blobs in the scale space of the haematoxylin channel (differences
of Gaussians, after Lindeberg 1998): a disk answers most at the scale of its own radius over the square root of two. The
size is a median over thousands of blobs in pixels, so it grows with the picture; it knows nothing of a scale.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from stpredict import _caches
from stpredict._section import ImageView
from stpredict._spatialdata._elements import image_levels
from stpredict._spatialdata._transformations import level_scale
from stpredict._window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

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
NUCLEUS_UM = 5.4  # as `nuclear_diameter_px` sees it: 4.6 in her2st, 6.5 in mouse colon
WORK_MPP = 0.5  # finer pictures are averaged down: nuclei are then some 11 px wide
SIDE, N_WINDOWS = 384, 4  # px of the windows, and how many
PROBE, N_PROBES = 128, 6  # px of what is read to choose them, and how many along each side
MIN_TISSUE = 0.6  # of a probe

_kept: dict[tuple[str, tuple[float, float]], float | None] = {}
_lock = threading.Lock()


def picture_mpp(sdata: SpatialData, image_key: str, mpp: float) -> float | None:
    """Micrometres per pixel at which the nuclei of an image would have the usual size; None where they tell nothing.

    Parameters
    ----------
    mpp : float
        What is said to be the size of a pixel. It decides at which resolution the image is read, not what is found.

    Notes
    -----
    Nuclei of other tissue, species and preparation differ by some tens of per cent. Where they are too small to be
    resolved, they can show that the pixels are larger than is said, but not that they are smaller.
    """
    levels = image_levels(sdata, image_key)
    at_mpp = max(WORK_MPP, mpp)
    step = at_mpp / mpp
    best, scale = level_scale([(level.sizes["y"], level.sizes["x"]) for level in levels], step)
    view = ImageView(pixels=levels[best].data, scale=scale, mpp=at_mpp)
    diameter = _diameter_px(view)
    if diameter is None or (diameter < RESOLVED_PX and diameter * at_mpp > NUCLEUS_UM):
        return None
    return mpp * NUCLEUS_UM / (diameter * at_mpp)


def _diameter_px(view: ImageView) -> float | None:
    name = getattr(view.pixels, "name", None)  # of a dask array: a token of what it is made of
    if name is None:
        return nuclear_diameter_px(view.read_all(_windows(view)))
    with _lock:
        if (name, view.scale) not in _kept:
            _kept[name, view.scale] = nuclear_diameter_px(view.read_all(_windows(view)))
        return _kept[name, view.scale]


def _windows(view: ImageView) -> list[Window]:
    """The windows, of a grid over the image, whose middles are tissue and vary most in haematoxylin."""
    corners = [np.unique(np.linspace(0, max(n - SIDE, 0), N_PROBES).astype(int)) for n in (view.height, view.width)]
    windows = [
        Window(int(y), int(x), min(SIDE, view.height), min(SIDE, view.width)) for y in corners[0] for x in corners[1]
    ]
    probes = [_middle(window) for window in windows]
    varied = []
    for window, probe in zip(windows, view.read_all(probes), strict=True):
        amount, tissue = haematoxylin(probe)
        if tissue.mean() >= MIN_TISSUE:
            varied.append((float(amount[tissue].std()), window))
    varied.sort(key=lambda each: each[0], reverse=True)
    return [window for _, window in varied[:N_WINDOWS]]


def _middle(window: Window) -> Window:
    height, width = (min(PROBE, n) for n in window.shape)
    return Window(window.y0 + (window.height - height) // 2, window.x0 + (window.width - width) // 2, height, width)


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


_caches.register("sizes of nuclei", _kept.clear)
