"""Checks that an image is RGB, and removes transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAX_DECODED_PX = 1_000_000_000  # 3 GB of RGB: beyond it a file without tiles is the wrong one


def over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(c, y, x) RGB unchanged, RGBA laid over white, as empty glass; opaque pixels keep their colour exactly."""
    if pixels.shape[0] == 3:
        return pixels
    alpha = pixels[3].astype(np.uint16)
    blend = pixels[:3] * alpha + 255 * (255 - alpha)
    return ((blend + 127) // 255).astype(np.uint8)


def not_rgb(path: Path, found: str) -> ValueError:
    """The error for an image that is not 8-bit RGB; `found` says what it is."""
    return ValueError(
        f"{path} is not an 8-bit RGB image: {found}. stpredict reads brightfield H&E as three 8-bit channels. Save it "
        "so first (16 bit: divide by 257; greyscale and fluorescence are no H&E)."
    )


def check_decodable(path: Path, shape: tuple[int, int]) -> None:
    """Raise ValueError where a file that can only be decoded whole is too large for that; shape is (height, width)."""
    if shape[0] * shape[1] > MAX_DECODED_PX:
        raise ValueError(
            f"{path} has {shape[1]:,} x {shape[0]:,} px and no tiles, so it would have to be decoded whole; the limit "
            f"for that is {MAX_DECODED_PX:,} px. Convert it to a tiled, pyramidal TIFF or OME-TIFF."
        )
