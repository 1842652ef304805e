"""Patch encoder of spot models, frozen (with cached features) or trained; and the array grid of a section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn

from stpredict import _coverage
from stpredict._section import Section
from stpredict.models._samples import PatchSamples
from stpredict.nn.encoders import Encoder, EncoderSpec, rgb
from stpredict.nn.features import FEATURES, FeatureCache

LARGEST = 5.0  # standardised features beyond are cut
ROWS = 64  # patches a step
SQUARE, HEXAGON = (1.0, 1.0), (3**0.5 / 2, 0.5)  # distances of rows and columns, in distances of neighbours


class PatchEncoder(nn.Module):
    """Standardised features of uint8 patches.

    Parameters
    ----------
    spec, weights
        See `Encoder`.
    kind : {"pooled", "averaged", "tokens"}
        "pooled": means and standard deviations at every stage, (n, f); "averaged": means at the last stage, (n, f);
        "tokens": the last stage's map, (n, t, f).
    frozen : bool, default True
        Whether the encoder stays as it is; its features are then computed once for every patch.
    folder : str | Path, optional
        Where frozen features are kept between processes; None: in memory.
    patch_px : int, optional
        Side of the patches, which the encoder must take; None: it is not known yet.

    Raises
    ------
    ValueError
        For a side that the encoder does not take.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        weights: str | Path | None,
        kind: Literal["pooled", "averaged", "tokens"],
        frozen: bool = True,
        folder: str | Path | None = None,
        patch_px: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(spec, weights=weights).requires_grad_(not frozen)
        if patch_px is not None and patch_px % self.encoder.block_px:
            raise ValueError(
                f"patch_px={patch_px} must be a multiple of {self.encoder.block_px} px, which {spec.name!r} takes."
            )
        self.kind, self.frozen, self.folder = kind, frozen, folder
        self.width = 2 * sum(self.encoder.channels) if kind == "pooled" else self.encoder.channels[-1]
        self.register_buffer("centre", torch.zeros(self.width))
        self.register_buffer("spread", torch.ones(self.width))
        self._cache: FeatureCache | None = None

    def forward(self, image: Tensor) -> Tensor:
        """(n, f) or (n, t, f) features of (n, 3, h, w) uint8 patches; those of a frozen encoder are in [-5, 5]."""
        z = (self._features(image) - self.centre) / self.spread
        return z.clamp(-LARGEST, LARGEST) if self.frozen else z

    @torch.no_grad()
    def fit(self, sections: Sequence[Section], *, patch_px: int) -> None:
        """Standardise by the patches of the training sections; features of a trained encoder stay as they come."""
        if not self.frozen:
            return
        rows = torch.cat([part.flatten(0, -2) for part in self._parts(sections, patch_px)])
        self.centre, self.spread = rows.mean(0), rows.std(0).clamp_min(1e-6)

    @torch.no_grad()
    def encode_sections(self, sections: Sequence[Section], *, patch_px: int) -> Tensor:
        """Features of the patch around every shape, section after section, on the encoder's device; no gradient."""
        training = self.training
        found = (torch.cat(self._parts(sections, patch_px)) - self.centre) / self.eval().spread
        self.train(training)
        return found.clamp(-LARGEST, LARGEST) if self.frozen else found

    def _parts(self, sections: Sequence[Section], patch_px: int) -> list[Tensor]:
        samples = PatchSamples(sections, patch_px=patch_px)
        starts = range(0, len(samples), ROWS)
        batches = (samples.collate([samples[i] for i in range(k, min(k + ROWS, len(samples)))]) for k in starts)
        return [self._features(batch.image.to(self.centre.device)) for batch in batches]

    def _features(self, image: Tensor) -> Tensor:
        if not self.frozen:
            return FEATURES[self.kind](self.encoder, rgb(image))
        if self._cache is None:
            self._cache = FeatureCache(self.encoder, kind=self.kind, folder=self.folder)
        return self._cache(image)


def array_grid(section: Section) -> NDArray[np.int64]:
    """(n, 2) integer places (row, column) of the shapes, from 0: the section's own grid, else one laid over it.

    Two grids are tried, both from the median distance of nearest neighbours and the smallest centre of either axis: of
    squares; and of hexagons as Visium counts them (rows sqrt(3) / 2 of the distance apart, columns half of it). The one
    in which fewer shapes share a place is taken, squares first. An empty shape gets (0, 0).
    """
    if section.grid is not None:
        grid = np.asarray(section.grid, dtype=np.int64)
        return grid - grid.min(axis=0)
    bounds = _coverage.bounds(section.shapes)
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    there = np.isfinite(centre).all(axis=1)
    places = np.zeros((len(centre), 2), dtype=np.int64)
    if there.sum() > 1:
        step = np.median(KDTree(centre[there]).query(centre[there], k=2)[0][:, 1])
        away = (centre[there] - centre[there].min(axis=0)) / (step if step > 0 else 1.0)
        laid = [np.rint(away / shape).astype(np.int64) for shape in (SQUARE, HEXAGON)]
        places[there] = max(laid, key=lambda each: len(np.unique(each, axis=0)))
    return places


def on_image(section: Section, bounds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The shapes whose bounds (n, 4) reach into the image; an empty one has none."""
    return np.flatnonzero((bounds[:, 2:] > 0).all(axis=1) & (bounds[:, :2] < section.image.window.shape).all(axis=1))
