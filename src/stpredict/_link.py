"""The link: what stands between a map that is pooled inside shapes and values in units of the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Link = Literal["identity", "log1p", "counts"]
TOTAL = "__total__"  # the last channel of a raster of rates: the rate of all RNA
PER = 1e4  # counts


def with_total(values: NDArray[np.floating], n_channels: int) -> NDArray[np.floating]:
    """Channels (g, h, w) of a raster, which ends with all RNA where it has one channel more: of rates per 10,000, that.

    So a raster of rates says itself what stands between its means and the target, whatever becomes of its record.
    """
    if len(values) == n_channels:
        return values
    total = np.where(np.isnan(values[:1]), np.nan, PER).astype(values.dtype)
    return np.concatenate([values, total])


def link_of(channels: Sequence[str], said: str) -> str:
    """The link of a raster of genes by its channels, or else what its record says."""
    return "counts" if TOTAL in channels else said


def linked(values: NDArray[np.float32], link: str) -> NDArray[np.float32]:
    """Means inside shapes of the channels that `link` needs, in units of the target.

    Parameters
    ----------
    values : ndarray of float32
        (n, g), and of "counts" (n, g + 1) with all RNA last; NaN where nothing is covered.
    link : str
        "identity", "log1p" or "counts".

    Returns
    -------
    ndarray of float32
        (n, g); of "counts" log1p(1e4 x gene / all RNA), NaN where there is no RNA.
    """
    if link == "counts":
        total = np.where(values[:, -1:] > 0, values[:, -1:], np.nan)
        return np.log1p(PER * values[:, :-1] / total).astype(np.float32)
    return np.log1p(values) if link == "log1p" else values
