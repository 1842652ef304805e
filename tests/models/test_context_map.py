"""The context map against its definition, written out pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def context():
    from stpredict.models._pixnet import ContextBranch
    from stpredict.nn.encoders import EncoderSpec

    torch.manual_seed(0)
    spec = EncoderSpec("mobilenetv2_050", (0, 1, 2, 3, 4))
    made = ContextBranch(spec, weights=None, cells=4, rank=3, n_genes=2)
    made.share = torch.tensor(1.0)
    return made


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 320, 384, generator=torch.Generator().manual_seed(1))


def shares(n: int, stride: int, cell: int) -> np.ndarray:
    """How much of the square of 4 cells of 32 px around `cell` each of n map cells makes up, along one axis.

    The square's border halves the outermost coarse cells; a coarse cell counts evenly.
    """
    weight = np.zeros(n)
    for coarse, share in zip(range(cell - 2, cell + 3), (0.5, 1, 1, 1, 0.5), strict=True):
        weight[coarse * 32 // stride : (coarse + 1) * 32 // stride] += share
    return weight / weight.sum()


@torch.no_grad()
def test_statistics_are_mean_and_spread_over_the_square_around_a_cell(context, image):
    found = context.statistics(image)[0].double().numpy()
    maps = context.encoder(image)
    assert found.shape == (2 * sum(x.shape[1] for x in maps), 10, 12)
    means, spreads = [], []
    for stride, feature in zip(context.encoder.strides, maps, strict=True):
        values = feature[0].double().numpy()
        weight = np.outer(shares(values.shape[1], stride, 5), shares(values.shape[2], stride, 6))
        means.append((values * weight).sum((1, 2)))
        spreads.append(np.sqrt(((values - means[-1][:, None, None]) ** 2 * weight).sum((1, 2))))
    expected = np.concatenate([*means, *spreads])
    np.testing.assert_allclose(found[:, 5, 6], expected, atol=1e-3 * np.abs(expected).max())
    assert np.std(expected) > 1e-3


@torch.no_grad()
def test_the_map_is_the_projection_of_standardised_statistics(context, image):
    generator = torch.Generator().manual_seed(2)
    n = len(context.centre)
    context.centre = torch.randn(n, generator=generator)
    context.spread = torch.rand(n, generator=generator) + 0.5
    context.projection = torch.randn(3, n, generator=generator)
    fine = context(image, size=(80, 96))[0]
    coarse = context.statistics(image)[0]
    standard = (coarse - context.centre[:, None, None]) / context.spread[:, None, None]
    expected = torch.einsum("kf,frc->krc", context.projection, standard)
    assert fine.shape == (3, 80, 96)
    # fine cell (35, 44) has its centre at (4.4375, 5.5625) coarse cells; those of coarse cells are at halves
    corner = expected[:, 3:5, 5:7].double()
    y, x = torch.tensor([0.0625, 0.9375]).double(), torch.tensor([0.9375, 0.0625]).double()
    value = torch.einsum("kyx,y,x->k", corner, y, x)
    torch.testing.assert_close(fine[:, 35, 44].double(), value, atol=1e-4 * float(expected.abs().max()), rtol=0)


@torch.no_grad()
def test_an_enlarged_picture_gives_the_statistics_of_an_image_of_half_the_mpp():
    from stpredict.models._pixnet import ContextBranch
    from stpredict.nn.encoders import EncoderSpec

    torch.manual_seed(0)
    spec = EncoderSpec("mobilenetv2_050", (0, 1, 2, 3, 4))
    near = ContextBranch(spec, weights=None, cells=4, rank=3, n_genes=2, zoom=2)
    far = ContextBranch(spec, weights=None, cells=4, rank=3, n_genes=2)
    far.load_state_dict(near.state_dict())
    image = torch.rand(1, 3, 160, 192, generator=torch.Generator().manual_seed(1))
    enlarged = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")
    assert near.statistics(image).shape[2:] == (10, 12)
    torch.testing.assert_close(near.statistics(image), far.statistics(enlarged))
    near.share = torch.tensor(1.0)
    assert near(image, size=(40, 48)).shape == (1, 3, 40, 48)


def test_statistics_inside_shapes_are_those_of_the_interpolated_map():
    import scipy.sparse as sp

    from stpredict.models._pixnet import ContextBranch, _inside, _interpolation
    from stpredict.nn.pool import pool, pooling

    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 5, 6, 6, generator=generator)
    covered = [sp.random_array((n, 48 * 48), density=0.02, rng=n, format="csr") for n in (4, 7)]
    into = pooling(covered, reduction="mean")
    expected = pool(ContextBranch.fine(coarse, size=(48, 48)), into).numpy()
    np.testing.assert_allclose(_inside(coarse, into, _interpolation(6, 48)), expected, atol=1e-6)


def test_it_stays_as_it_is_in_training(context):
    context.train()
    assert not any(module.training for module in context.modules())
    assert not any(parameter.requires_grad for parameter in context.parameters())
