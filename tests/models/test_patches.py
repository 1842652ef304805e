"""The patch encoder of spot models, and the places of shapes on a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch


@pytest.fixture(scope="module")
def made():
    """A function of a kind of features that makes a frozen encoder with the same random weights."""
    from stpredict.models._patches import PatchEncoder
    from stpredict.nn.encoders import EncoderSpec

    def make(kind: str, **settings):
        torch.manual_seed(0)
        return PatchEncoder(EncoderSpec("mobilenetv2_050", (0, 2, 4)), weights=None, kind=kind, **settings)

    return make


def patches(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 255, (n, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_kinds_are_views_of_the_same_maps(made):
    image, encoder = patches(), made("tokens", frozen=False).eval()
    maps = encoder.encoder(image.float() / 255)
    tokens = encoder(image)
    assert tokens.shape == (5, 4, encoder.width)
    torch.testing.assert_close(tokens, maps[-1].flatten(2).transpose(1, 2), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(made("averaged", frozen=False).eval()(image), tokens.mean(1), atol=1e-3, rtol=1e-4)
    pooled = made("pooled", frozen=False).eval()(image)
    expected = [m.mean((2, 3)) for m in maps] + [m.std((2, 3), correction=0) for m in maps]
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1), atol=1e-3, rtol=1e-4)


def test_training_patches_have_mean_0_and_sd_1_and_outliers_are_cut(made, colour_section):
    encoder, sections = made("averaged"), [colour_section(0), colour_section(1)]
    encoder.fit(sections, patch_px=64)
    z = encoder.encode_sections(sections, patch_px=64)
    raw = (encoder._features(patches()) - encoder.centre) / encoder.spread
    assert z.shape == (48, encoder.width)
    uncut = z.abs().max(0).values < 5
    torch.testing.assert_close(z.mean(0)[uncut], torch.zeros(int(uncut.sum())), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0)[uncut], torch.ones(int(uncut.sum())), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoder(patches()), raw.clamp(-5, 5))


@pytest.mark.usefixtures("no_features")
def test_a_frozen_patch_is_encoded_once_and_a_trained_one_every_time(made, monkeypatch):
    from stpredict.nn.encoders import Encoder

    seen = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, image: (seen.append(len(image)), forward(self, image))[1])
    frozen, trained = made("averaged", frozen=True), made("averaged", frozen=False)
    image = patches(6) // 2 + 40
    frozen(image), frozen(image[[2, 0]])
    assert sum(seen) == 6
    trained(image), trained(image)
    assert sum(seen) == 18
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trained.encoder.parameters())
    trained(image).sum().backward()
    assert all(p.grad is not None for p in trained.encoder.parameters())


def test_places_are_the_section_s_own_or_those_of_a_grid_laid_over_it(colour_section):
    from stpredict.models._patches import array_grid

    rng = np.random.default_rng(0)
    places = rng.permutation(np.stack(np.meshgrid(np.arange(6), np.arange(4), indexing="ij"), -1).reshape(-1, 2))
    centre = 60 + 37.0 * places + rng.uniform(-3, 3, places.shape)
    section = colour_section(0)
    laid = replace(section, geometry=np.array([shapely.Point(x, y) for y, x in centre], dtype=object))
    np.testing.assert_array_equal(array_grid(laid), places)
    own = replace(laid, grid=places[::-1] + 11)
    np.testing.assert_array_equal(array_grid(own), places[::-1])
    geometry = laid.geometry.copy()
    geometry[3] = shapely.Point()
    kept = np.arange(24) != 3
    np.testing.assert_array_equal(array_grid(replace(laid, geometry=geometry))[kept], places[kept])
    assert array_grid(replace(laid, geometry=geometry))[3].tolist() == [0, 0]


def test_a_hexagonal_array_without_a_grid_has_a_place_for_every_spot(colour_section):
    from stpredict.models._patches import array_grid

    row, column = (each.ravel() for each in np.mgrid[:9, :8])
    xy = 10 + 10.0 * np.stack([column + 0.5 * (row % 2), row * 3**0.5 / 2], axis=1)
    section = colour_section(0)
    geometry = np.array([shapely.Point(x, y) for x, y in xy], dtype=object)
    many = replace(
        section, geometry=geometry, radius=np.full(72, 3.0), ids=np.arange(72), area=np.full(72, 28.0), expression=None,
        genes=None,
    )  # fmt: skip
    np.testing.assert_array_equal(array_grid(many), np.stack([row, 2 * column + row % 2], axis=1))
