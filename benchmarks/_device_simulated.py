"""What the device benchmark works on: simulated sections, slides of any size that take no memory, and small models."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from stpredict import _coverage, models
from stpredict._embeddings import GeneEmbeddings
from stpredict._section import ImageView, Section
from stpredict._window import Window
from stpredict.models import Model, PixNet, PixNetConfig
from stpredict.models.pixnet import PUBLISHED
from stpredict.nn import features

PUBLISHED_NET = "vit_giant_patch14_224"  # UNI2-h's architecture by its timm name, which is built without the hub


class Texture:
    """A (3, side, side) uint8 array that repeats one texture: any window of up to `period` pixels is a view of it."""

    def __init__(self, side: int, *, period: int) -> None:
        self.shape, self.period = (3, side, side), period
        once = _blobs(0, period)
        self._twice = np.tile(once, (1, 2, 2))

    def __getitem__(self, index: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        _, y, x = index
        y0, x0 = y.start % self.period, x.start % self.period
        return self._twice[:, y0 : y0 + y.stop - y.start, x0 : x0 + x.stop - x.start]


def _blobs(seed: int, side: int) -> NDArray[np.uint8]:
    """(3, side, side): squares of 32 pixels in random colours, with a grain."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(40, 220, (3, -(-side // 32), -(-side // 32))), np.ones((1, 32, 32)))[:, :side, :side]
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def measured(seed: int, *, side: int, n: int, n_genes: int, mpp: float = 1.0) -> Section:
    """A section whose genes are mixtures of the colours inside its disks, which lie where tiles meet too."""
    rng, mixture = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(3, n_genes))
    pixels, centres = _blobs(seed, side), rng.uniform(30, side - 30, (n, 2))
    geometry, radius = shapely.points(centres), np.full(n, 20.0)
    covered = _coverage.coverage(_coverage.Shapes(geometry, radius), Window(0, 0, side, side))
    colour = (covered @ pixels.reshape(3, -1).T.astype(float)) / covered.sum(axis=1)[:, None] / 255
    genes = tuple(f"g{i}" for i in range(n_genes))
    return Section(
        f"simulated{seed}", ImageView(pixels, (1.0, 1.0), mpp), geometry, radius, np.arange(n), np.pi * radius**2,
        (colour @ mixture).astype(np.float32), genes,
    )  # fmt: skip


def slide(side: int, mpp: float, *, pitch_um: float, radius_um: float, share: float = 1.0, period: int) -> Section:
    """A slide with spots on a square grid, all over the left `share` of it, which is the tissue."""
    pitch, radius = pitch_um / mpp, radius_um / mpp
    at = np.arange(pitch / 2, side - pitch / 2 + 1e-6, pitch)
    x, y = np.meshgrid(at[at < side * share], at)
    geometry, radii = shapely.points(x.ravel(), y.ravel()), np.full(x.size, radius)
    tissue = None if share == 1 else shapely.box(0, 0, side * share, side)
    view = ImageView(Texture(side, period=period), (1.0, 1.0), mpp)
    return Section("slide", view, geometry, radii, np.arange(x.size), np.pi * radii**2, tissue=tissue)


def bins(n_side: int, mpp: float, *, bin_um: float = 8.0, period: int) -> Section:
    """`n_side` x `n_side` square bins, edge to edge."""
    step = bin_um / mpp
    at = np.arange(n_side) * step
    x, y = (each.ravel() for each in np.meshgrid(at, at))
    geometry, n = shapely.box(x, y, x + step, y + step), n_side**2
    view = ImageView(Texture(int(np.ceil(n_side * step)), period=period), (1.0, 1.0), mpp)
    return Section("bins", view, geometry, np.full(n, np.nan), np.arange(n), np.full(n, step**2))


def texts(genes: tuple[str, ...], width: int = 64) -> GeneEmbeddings:
    """Random embeddings."""
    vectors = np.random.default_rng(0).normal(size=(len(genes), width)).astype(np.float32)
    return GeneEmbeddings(genes=genes, vectors=vectors, encoder="random")


def tiny(genes: tuple[str, ...], **changes: Any) -> PixNet:
    """The smallest PixNet that has every part: encoder, decoder, context."""
    fields = {
        "encoder": "mobilenetv2_050", "filters": (4, 4, 4, 4), "window_px": 128, "core_px": 256, "halo_px": 128,
        "attention_window": 4, "context_rank": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    return PixNet(config=PixNetConfig(genes=genes, mpp=1.0, **fields | changes))


def build(name: str, genes: tuple[str, ...]) -> Model:
    """A model of the registry in its small configuration, on patches of 64 px, with random weights."""
    if name == "PixNet":
        return tiny(genes)
    torch.manual_seed(0)
    make, given = getattr(models, name), {}
    if name in ("GeneQuery", "SGN"):
        given["embeddings"] = texts(genes)
    model = make(genes, **given)
    wanted = {"mpp": 1.0, "patch_px": 64, "encoder": "mobilenetv2_050", "top": 5}
    known = {field.name for field in dataclasses.fields(model.config)}
    changed = {key: value for key, value in wanted.items() if key in known}
    return make(config=dataclasses.replace(model.config, **changed), **given)


def trained(model: Model, sections: list[Section]) -> Model:
    """The model with all that training does but its loop, and random weights where that would start at zero."""
    model.prepare(sections)
    with torch.no_grad():
        for k, weight in enumerate(model.parameters()):
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(k)))
    model.finish(sections)
    return model.eval()


def published(genes: tuple[str, ...], *, small: bool) -> PixNet:
    """PixNet as published with random weights, 681 M parameters in its encoder; `small`: few of every part."""
    fields = {**PUBLISHED, "encoder": PUBLISHED_NET}
    if small:
        net = {**PUBLISHED["encoder_kwargs"], "depth": 4, "num_heads": 2, "embed_dim": 32}
        fields |= {
            "encoder_kwargs": net, "taps": (1, 2, 3, 4), "filters": (4,) * 6, "core_px": 448, "halo_px": 0,
            "window_px": 448,
        }  # fmt: skip
    torch.manual_seed(0)
    return PixNet(config=PixNetConfig(genes=genes, **fields)).eval()


def forget_features() -> None:
    """Empty the cache of patches' features, so that one device is not given what another has computed."""
    features._held.clear()
