"""Stain separation and stain jitter in optical density."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

# optical density of R, G, B for unit haematoxylin, eosin, DAB: Ruifrok and Johnston 2001, table 1
RGB_OF_HED: NDArray[np.float32] = np.array(
    [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=np.float32
)
HED_OF_RGB: NDArray[np.float32] = np.linalg.inv(RGB_OF_HED).astype(np.float32)
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # of each of the 256 intensities; white is 0


def separate(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(..., 3) amounts of haematoxylin, eosin and DAB (natural optical density) of uint8 RGB.

    Source: Ruifrok and Johnston 2001, colour deconvolution; the order and matrix of skimage's ``rgb2hed``.
    """
    return _DENSITY[image] @ HED_OF_RGB


def optical_density(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Natural optical density of RGB in [0, 1], as of its uint8: 0 where it is white, log 256 where it is black."""
    return -torch.log((image * 255 + 1) / 256)


def unmix(density: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Amounts of haematoxylin, eosin and DAB of the optical densities of R, G, B: `separate`, of tensors."""
    return torch.einsum("bchw,cs->bshw", density, torch.from_numpy(HED_OF_RGB).to(density))


def jitter(image: NDArray[np.uint8], *, strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image with its optical density scaled as a whole and channel by channel, each by 1 +- 2 `strength`.

    A shift of +- `strength` / 4 a channel stands for light and scanner. Uniform draws; white stays nearly white.
    Stain strength, hue and exposure vary together, as they do between slides; a table a channel makes it cheap.

    Source: augmentation in optical density, after Tellez et al. 2018, on R, G, B in place of H, E, D.
    """
    scale = (1 + 2 * strength * rng.uniform(-1, 1, 3)) * (1 + 2 * strength * rng.uniform(-1, 1))
    shift = strength / 4 * rng.uniform(-1, 1, 3)
    density = _DENSITY[:, None] * scale + shift  # (256, 3)
    table = np.clip(np.rint(np.exp(-density) * 256 - 1), 0, 255).astype(np.uint8)
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)
