"""Windows and patches: what is cut lies where the shapes say, however it is turned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest


def _windows(sections, **changes):
    from stpredict.models._windows import WindowSamples

    settings = {"window_px": 256, "stride": 4, "reduction": "mean", "stain_jitter": 0.0, "train": True, "seed": 0}
    return WindowSamples(sections, **(settings | changes))


def _pooled_colour(batch, stride: int) -> np.ndarray:
    """The colour that the pooling matrix reads from the batch's own images."""
    import torch

    from stpredict.nn import pool

    cells = torch.nn.functional.avg_pool2d(batch.image.float() / 255, stride)
    return pool(cells, batch.pooling).numpy()


@pytest.mark.parametrize("stride", [4, 3.5])
def test_a_turned_window_still_reads_the_colour_of_its_shapes(colour_section, stride):
    import torch

    from stpredict.nn import pool

    section = colour_section(0)
    window = 256 if stride == 4 else 224
    samples = _windows([section], window_px=window, stride=stride)
    turns = set()
    for index in range(40):
        turns.add(samples._draw(index).turn)
        batch = samples.collate([samples[index]])
        n = round(window / stride)
        cells = torch.nn.functional.interpolate(batch.image.float() / 255, size=(n, n), mode="area")
        np.testing.assert_allclose(pool(cells, batch.pooling).numpy(), batch.expression.numpy(), atol=0.03)
    assert turns == set(range(8))


def test_only_shapes_wholly_inside_count(colour_section):
    section = colour_section(0)
    samples = _windows([section])
    for index in range(20):
        cut = samples._draw(index)
        low, high = samples.bounds[0][cut.shapes, :2], samples.bounds[0][cut.shapes, 2:]
        assert len(cut.shapes) >= 1
        assert (low >= (cut.window.y0, cut.window.x0)).all()
        assert (high <= (cut.window.y1, cut.window.x1)).all()


def test_validation_windows_hold_every_shape_once(colour_section):
    sections = [colour_section(0), colour_section(1)]
    samples = _windows(sections, train=False)
    rows = np.concatenate([samples.collate([samples[i]]).rows for i in range(len(samples))])
    assert sorted(map(tuple, rows)) == [(i, k) for i in range(2) for k in range(24)]
    for i in range(len(samples)):
        batch = samples.collate([samples[i]])
        np.testing.assert_allclose(_pooled_colour(batch, 4), batch.expression.numpy(), atol=0.02)


def test_an_index_is_its_own_seed(colour_section):
    sections = [colour_section(0)]
    one, same = _windows(sections, stain_jitter=0.1), _windows(sections, stain_jitter=0.1)
    np.testing.assert_array_equal(one[7][0], same[7][0])
    assert (one[7][0] != one[8][0]).any()
    assert (one[7][0] != _windows(sections, stain_jitter=0.1, seed=1)[7][0]).any()


def test_a_shape_wider_than_the_window_is_named(colour_section):
    with pytest.raises(ValueError, match="section 'colour0' has a shape 48 um wide; the training window is 32 um"):
        _windows([colour_section(0)], window_px=32)


def test_a_patch_is_centred_on_its_shape(colour_section):
    from stpredict.models._samples import PatchSamples

    section = colour_section(0)
    samples = PatchSamples([section], patch_px=9)
    image, expression, row, draw = samples[5]
    assert draw == 5
    y, x = round(section.geometry[5].y - 4.5), round(section.geometry[5].x - 4.5)
    np.testing.assert_array_equal(image, np.moveaxis(section.image.pixels[:, y : y + 9, x : x + 9], 0, -1))
    np.testing.assert_array_equal(expression, section.expression[5])
    assert row == (0, 5)


def test_an_image_held_in_memory_reads_the_same(colour_section):
    from dataclasses import replace

    from stpredict._section import ImageView
    from stpredict._window import Window
    from stpredict.models._samples import held_in_memory

    section = colour_section(0)
    coarse = replace(section, image=ImageView(section.image.pixels, scale=(1.7, 1.7), mpp=1.7))
    held = held_in_memory(coarse, limit_bytes=10**9)
    assert held.image.scale == (1.0, 1.0)
    window = Window(-20, 33, 90, 200)
    np.testing.assert_array_equal(held.image.read(window), coarse.image.read(window))
    assert held_in_memory(coarse, limit_bytes=1000) is coarse


def test_several_patches_are_those_one_by_one_and_read_a_chunk_once(colour_section, monkeypatch):
    import dask.array as da

    from stpredict.models import _samples

    seen = []

    def chunk(block_info=None):
        seen.append(1)
        (y0, y1), (x0, x1) = block_info[None]["array-location"][1:]
        y, x = np.mgrid[y0:y1, x0:x1]
        return np.stack([y % 251, x % 241, (x + y) % 239]).astype(np.uint8)

    pixels = da.map_blocks(
        chunk, chunks=((3,), (256, 256), (256, 256)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    sections = []
    for seed in (0, 1):
        section = colour_section(seed)
        image = replace(section.image, pixels=pixels, scale=(1.0, 1.0))
        sections.append(replace(section, image=image))
    samples = _samples.PatchSamples(sections, patch_px=64)
    wanted = [5, 40, 0, 30, 5]
    one = [samples[i] for i in wanted]
    seen.clear()
    for limit in (2**26, 1):
        monkeypatch.setattr(_samples, "READ_BYTES", limit)
        for got, patch in zip(samples.__getitems__(wanted), one, strict=True):
            np.testing.assert_array_equal(got.image, patch.image)
            np.testing.assert_array_equal(got.expression, patch.expression)
            assert (got.row, got.draw) == (patch.row, patch.draw)
        if limit > 1:
            assert len(seen) <= 8  # four chunks a section
