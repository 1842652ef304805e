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
