"""Stain separation and its jitter."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)


def test_the_matrix_is_that_of_scikit_image():
    from skimage.color import rgb_from_hed

    from stpredict.nn.stain import RGB_OF_HED

    np.testing.assert_allclose(RGB_OF_HED[:2], rgb_from_hed[:2], atol=1e-6)


def test_separate_inverts_mixing():
    from stpredict.nn.stain import RGB_OF_HED, separate

    amounts = np.random.default_rng(0).uniform(0, 0.8, (50, 3))
    pixels = np.rint(np.exp(-amounts @ RGB_OF_HED) * 256 - 1).astype(np.uint8)
    keep = (pixels > 20).all(axis=1)  # dark pixels are rounded too coarsely
    np.testing.assert_allclose(separate(pixels)[keep], amounts[keep], atol=0.15)


def test_no_strength_changes_nothing(image):
    from stpredict.nn.stain import jitter

    np.testing.assert_array_equal(jitter(image, strength=0.0, rng=np.random.default_rng(0)), image)


def test_jitter_is_seeded_bounded_and_moves_colours(image):
    from stpredict.nn.stain import jitter

    one, same, other = (jitter(image, strength=0.1, rng=np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.3
    assert 0 < np.abs(one.astype(int) - image).mean() < 60


def test_tensors_are_unmixed_as_arrays_are():
    import torch

    from stpredict.nn.stain import optical_density, separate, unmix

    image = np.random.default_rng(5).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    found = unmix(optical_density(torch.from_numpy(image).permute(2, 0, 1)[None] / 255))
    np.testing.assert_allclose(found[0].permute(1, 2, 0), separate(image), atol=1e-4)
