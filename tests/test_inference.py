"""Tiles of a section: which shapes each looks at, and that pixels which two share are read once and are the same."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
import shapely
import torch

SIDE = 900


class Counting:
    """A (3, y, x) array that counts the pixels that are asked of it."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.read = pixels, pixels.shape, 0

    def __getitem__(self, index):
        part = self.pixels[index]
        self.read += part.shape[1] * part.shape[2]
        return part


@pytest.fixture
def tiles_of(pixnet_small):
    """A function that makes the tiles of an image with some shapes."""
    from stpredict._coverage import Shapes, areas
    from stpredict._inference import Runtime
    from stpredict._inference._dense import DenseInference
    from stpredict._section import ImageView, Section

    def make(geometry, *, scale=(1.0, 1.0), batch_size=2, **section):
        rng = np.random.default_rng(0)
        side = round(SIDE * scale[0])
        pixels = Counting(rng.integers(0, 256, (3, side, side), dtype=np.uint8))
        geometry, radius = np.asarray(geometry, dtype=object), np.full(len(geometry), np.nan)
        made = Section(
            "slide", ImageView(pixels, scale, 1.0), geometry, radius, np.arange(len(geometry)),
            areas(Shapes(geometry, radius)), **section,
        )  # fmt: skip
        return DenseInference(pixnet_small, made, Runtime(torch.device("cpu"), "32-true", batch_size, progress=False))

    return make


@pytest.fixture(scope="module")
def pixnet_small():
    from stpredict.models import PixNet, PixNetConfig

    torch.manual_seed(0)
    config = PixNetConfig(
        genes=("a",),
        mpp=1.0,
        encoder="mobilenetv2_035",
        filters=(4, 4, 4, 4),
        window_px=128,
        core_px=256,
        halo_px=128,
        context_rank=0,
    )
    return PixNet(config=config).eval()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.7, 1.7)])
def test_tiles_are_what_the_image_holds_and_neighbours_share_what_was_read(tiles_of, scale):
    tiles = tiles_of([shapely.box(0, 0, SIDE, SIDE)], scale=scale)
    image = tiles.section.image
    assert tiles.n == 8  # of two
    for piece in (0, 1, 2, 3, 7, 5, 0):
        got = tiles._read_tiles(piece).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(got, np.stack([image.read(tile.read) for tile in tiles.groups[piece]]))
    image.pixels.read = 0
    for piece in range(tiles.n):
        tiles._read_tiles(piece)
    once = 4 * 768 * 512 * scale[0] ** 2  # of each row of tiles: what lies within their halos, and no more
    assert image.pixels.read < 1.05 * once < 0.6 * 16 * (512 * scale[0]) ** 2


def test_a_tile_finds_the_shapes_that_overlap_it_whatever_their_size(tiles_of):
    y, x = (at.ravel() for at in np.mgrid[2:898:4, 2:898:4])
    small = shapely.box(x - 2, y - 2, x + 2, y + 2)
    tiles = tiles_of([*small, shapely.box(0, 0, SIDE, SIDE), shapely.box(300, 10, 340, 890)])
    bounds = shapely.bounds(tiles.section.geometry)
    for tile in (tile for group in tiles.groups for tile in group):
        c = tile.core
        inside = (bounds[:, 0] < c.x1) & (bounds[:, 2] > c.x0) & (bounds[:, 1] < c.y1) & (bounds[:, 3] > c.y0)
        np.testing.assert_array_equal(tiles._shapes_in(c), np.flatnonzero(inside))


def test_turned_maps_are_the_mean_over_the_symmetries_of_the_square(tiles_of, pixnet_small):
    from stpredict.models._samples import Batch

    image = torch.randint(0, 256, (2, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(image, None, None, (), np.empty((0, 2), np.int64))
    plain = pixnet_small.config
    try:
        with torch.inference_mode():
            every = []
            for flip in (False, True):
                for k in range(4):
                    seen = torch.rot90(image.flip(-1) if flip else image, k, dims=(-2, -1))
                    maps = pixnet_small.latent(dataclasses.replace(batch, image=seen))
                    maps = torch.rot90(maps, -k, dims=(-2, -1))
                    every.append((maps.flip(-1) if flip else maps)[..., 32:96, 32:96])
            for turns in (1, 2, 4, 8):
                pixnet_small.config = dataclasses.replace(plain, turns=turns)
                got = torch.empty_like(every[0])
                tiles_of([shapely.box(0, 0, SIDE, SIDE)])._forward(image, got, slice(None))
                torch.testing.assert_close(got, torch.stack(every[:turns]).mean(0), rtol=1e-5, atol=1e-5)
    finally:
        pixnet_small.config = plain


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_of_many_shapes_are_kept_in_float32_and_agree_to_its_digits(
    tiles_of, pixnet_small, reduction, monkeypatch
):
    from stpredict._inference import _run
    from stpredict._partial import PartialSum

    rng = np.random.default_rng(1)
    corners = rng.uniform(-20, SIDE - 20, (200, 2))
    boxes = shapely.box(*corners.T, *(corners + rng.uniform(4, 90, (200, 2))).T)
    config = dataclasses.replace(pixnet_small.config, reduction=reduction)
    monkeypatch.setattr(pixnet_small, "config", config)
    assert _run._empty_sums(9, PartialSum(np.arange(2), np.zeros((2, 3)))).dtype == np.float64
    exact, share = _run._pooled_rows(tiles_of([*boxes, shapely.box(0, 0, SIDE, SIDE)]), None)
    monkeypatch.setattr(_run, "EXACT_BYTES", 0)
    assert _run._empty_sums(9, PartialSum(np.arange(2), np.zeros((2, 3)))).dtype == np.float32
    rows, same_share = _run._pooled_rows(tiles_of([*boxes, shapely.box(0, 0, SIDE, SIDE)]), None)
    assert rows.dtype == exact.dtype == np.float32
    np.testing.assert_allclose(rows, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max())
    np.testing.assert_allclose(same_share, share, rtol=1e-6)


def test_maps_that_take_turns_are_read_out_before_they_are_computed_again(tiles_of, monkeypatch):
    from stpredict._inference._dense import DenseInference

    geometry = [shapely.box(0, 0, SIDE, SIDE), shapely.box(40, 40, 300, 860)]
    tiles = tiles_of(geometry)
    alone = [part for i in range(tiles.n) for part in tiles.stream([i])]
    plain = DenseInference._pool_and_write

    def slow(self, batch):
        time.sleep(0.2)  # the maps of the next are long made
        return plain(self, batch)

    monkeypatch.setattr(DenseInference, "_pool_and_write", slow)
    for got, wanted in zip(tiles_of(geometry).stream(range(tiles.n)), alone, strict=True):
        np.testing.assert_array_equal(got.rows, wanted.rows)
        np.testing.assert_array_equal(got.values, wanted.values)


@pytest.mark.parametrize("failing", ["_pool_and_write", "in_batches", "_read_tiles"])
def test_an_error_leaves_no_thread_at_work(tiles_of, monkeypatch, failing):
    from stpredict._inference._dense import DenseInference

    def fails(*_):
        raise KeyError(failing)

    monkeypatch.setattr(DenseInference, failing, fails)
    tiles, before = tiles_of([shapely.box(0, 0, SIDE, SIDE)]), threading.active_count()
    with pytest.raises(KeyError) as held:
        list(tiles.stream(range(tiles.n)))
    assert threading.active_count() == before
    assert held.value.args == (failing,)  # and with it the frames that were left
