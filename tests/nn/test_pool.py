"""Pooling against a loop over shapes, and the algebra that lets the head come after it."""

from __future__ import annotations

import numpy as np
import pytest
import shapely


@pytest.fixture
def covered():
    from stpredict._coverage import Shapes, coverage
    from stpredict._window import Window

    rng = np.random.default_rng(0)
    geometry = np.array([shapely.Point(*rng.uniform(3, 13, 2)) for _ in range(5)], dtype=object)
    radius = rng.uniform(0.4, 3, 5)
    return [
        coverage(Shapes(geometry[:3], radius[:3]), Window(0, 0, 16, 16)),
        coverage(Shapes(geometry[3:], radius[3:]), Window(0, 0, 16, 16)),
    ]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_pool_is_the_weighted_mean_or_sum(covered, reduction):
    import torch

    from stpredict.nn import pool, pooling

    maps = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    got = pool(maps, pooling(covered, reduction=reduction, mpp=2.0)).numpy()
    wanted = []
    for b, matrix in enumerate(covered):
        for weight in matrix.toarray():
            total = (maps[b].reshape(4, -1).numpy() * weight).sum(axis=1)
            wanted.append(total / weight.sum() if reduction == "mean" else total * 4.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_head_after_pooling_equals_pooling_after_head(covered):
    import torch

    from stpredict.nn import pool, pooling

    generator = torch.Generator().manual_seed(0)
    maps, weight = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(7, 4, generator=generator)
    matrix = pooling(covered, reduction="mean")
    late = pool(maps, matrix) @ weight.T
    early = pool(torch.einsum("gd,bdhw->bghw", weight, maps), matrix)
    torch.testing.assert_close(late, early)


def test_pool_has_a_gradient(covered):
    import torch

    from stpredict.nn import pool, pooling

    maps = torch.randn(2, 4, 16, 16, dtype=torch.float32, requires_grad=True)
    pool(maps, pooling(covered, reduction="mean")).sum().backward()
    # every shape's weights sum to one, in each of the four channels
    assert maps.grad.sum().item() == pytest.approx(5 * 4, rel=1e-5)


def test_an_uncovered_shape_pools_to_zero_not_nan():
    import scipy.sparse as sp
    import torch

    from stpredict.nn import pool, pooling

    matrix = pooling([sp.csr_array((1, 16))], reduction="mean")
    assert pool(torch.ones(1, 2, 4, 4), matrix).tolist() == [[0.0, 0.0]]
