"""Features of patches: what is pooled, against NumPy."""

from __future__ import annotations

import numpy as np
import torch

from stpredict.nn.encoders import Encoder
from stpredict.nn.features import pooled


class Known(Encoder):
    """An encoder whose maps are known."""

    def __init__(self, maps):
        torch.nn.Module.__init__(self)
        self.maps = maps

    def forward(self, image):
        return self.maps


def test_pooled_are_means_and_deviations_of_every_tap():
    rng = np.random.default_rng(0)
    maps = [rng.normal(1000.0, 0.1, (2, 3, 8, 8)), rng.normal(0, 5, (2, 4, 2, 2))]  # the first cancels in one pass
    single = [each.astype(np.float32) for each in maps]
    got = pooled(Known([torch.from_numpy(each) for each in single]), torch.zeros(2, 3, 8, 8)).numpy()
    exact = [each.astype(np.float64) for each in single]
    wanted = np.concatenate([each.mean((2, 3)) for each in exact] + [each.std((2, 3)) for each in exact], axis=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_pooled_of_constant_maps_has_a_gradient():
    flat = torch.ones(1, 2, 4, 4, requires_grad=True)
    pooled(Known([flat]), torch.zeros(1, 3, 4, 4)).sum().backward()
    assert torch.isfinite(flat.grad).all()
