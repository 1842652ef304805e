"""The loss against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr


def test_mse_pcc_is_its_formula():
    import torch

    from stpredict.nn import mse_pcc

    rng = np.random.default_rng(0)
    pred, true = rng.normal(size=(30, 6)), rng.normal(size=(30, 6))
    r = np.mean([pearsonr(pred[:, j], true[:, j]).statistic for j in range(6)])
    wanted = ((pred - true) ** 2).mean() + 0.5 * (1 - r)
    assert mse_pcc(torch.from_numpy(pred), torch.from_numpy(true)).item() == pytest.approx(wanted, rel=1e-7)


def test_a_shape_that_weighs_twice_is_a_shape_that_is_there_twice():
    import torch

    from stpredict.nn import mse_pcc

    generator = torch.Generator().manual_seed(0)
    pred, true = torch.randn(2, 20, 5, generator=generator, dtype=torch.float64)
    times = torch.randint(1, 4, (20,), generator=generator)
    repeated = mse_pcc(pred.repeat_interleave(times, 0), true.repeat_interleave(times, 0))
    torch.testing.assert_close(mse_pcc(pred, true, weight=times.double()), repeated)
    torch.testing.assert_close(mse_pcc(pred, true, weight=torch.full((20,), 0.3).double()), mse_pcc(pred, true))


def test_a_constant_gene_adds_no_gradient_that_is_not_finite():
    import torch

    from stpredict.nn import mse_pcc

    pred = torch.randn(8, 3, requires_grad=True)
    true = torch.randn(8, 3)
    true[:, 1] = 2.0
    mse_pcc(pred, true).backward()
    assert torch.isfinite(pred.grad).all()


def test_without_the_second_term_it_is_mse():
    import torch

    from stpredict.nn import mse_pcc

    pred, true = torch.randn(8, 3), torch.randn(8, 3)
    torch.testing.assert_close(mse_pcc(pred, true, pcc_weight=0.0), ((pred - true) ** 2).mean())


def test_strank_is_the_multinomial_likelihood_of_a_list():
    import torch
    from scipy.special import gammaln
    from scipy.stats import multinomial

    from stpredict.nn.losses import strank

    rng = np.random.default_rng(0)
    scores, depth = rng.normal(size=(9, 4)), rng.uniform(0.5, 2, 9)
    counts = rng.poisson(4, (9, 4)).astype(float)
    for weight in (None, depth):
        share = np.exp(scores) * (1 if weight is None else weight[:, None])
        share /= share.sum(axis=0)
        likelihood = 0.0
        for j in range(4):
            n = counts[:, j].sum()
            choices = gammaln(n + 1) - gammaln(counts[:, j] + 1).sum()  # which the loss leaves out
            likelihood += multinomial.logpmf(counts[:, j], n, share[:, j]) - choices
        given = None if weight is None else torch.from_numpy(weight)
        found = strank(torch.from_numpy(scores), torch.from_numpy(counts), given)
        assert found.item() == pytest.approx(-likelihood / 36, rel=1e-9)


def test_strank_looks_at_no_level_of_a_gene_and_is_least_at_the_log_of_the_rates():
    import torch

    from stpredict.nn.losses import strank

    rng = np.random.default_rng(1)
    rate = torch.from_numpy(rng.uniform(1, 9, (7, 3)))
    best = torch.log(rate)
    level = torch.from_numpy(rng.normal(size=3))
    torch.testing.assert_close(strank(best + level, rate), strank(best, rate))
    for _ in range(20):
        assert strank(best + 0.1 * torch.from_numpy(rng.normal(size=(7, 3))), rate) > strank(best, rate)
