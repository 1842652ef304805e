"""Features of patches: what is pooled, against NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
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


def test_a_file_of_features_that_was_changed_or_swapped_is_refused(tmp_path, monkeypatch):
    from stpredict.nn import features
    from stpredict.nn.encoders import EncoderSpec

    monkeypatch.setattr(features, "_held", type(features._held)())
    one, other = (Encoder(EncoderSpec("mobilenetv2_035", taps), weights=None).eval() for taps in ((0, 1), (0, 2)))
    patches = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    first = features.FeatureCache(one, folder=tmp_path)
    first(patches)
    (file,) = first.folder.iterdir()
    features.FeatureCache(one, folder=tmp_path)  # whole: it is read
    whole = file.read_bytes()
    away = features.FeatureCache(other, folder=tmp_path).folder
    (away / file.name).write_bytes(whole)
    with pytest.raises(ValueError, match=f"{file.name} was changed or damaged, or holds features of another encoder"):
        features.FeatureCache(other, folder=tmp_path)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{file.name} was changed or damaged.*Remove it"):
        features.FeatureCache(one, folder=tmp_path)
    file.write_bytes(whole[:50])
    with pytest.raises(ValueError, match=f"{file.name} is no file of features, or a damaged one"):
        features.FeatureCache(one, folder=tmp_path)


def test_features_of_each_number_format_are_remembered_apart(monkeypatch):
    from stpredict.nn import features
    from stpredict.nn.device import same_autocast
    from stpredict.nn.encoders import EncoderSpec

    monkeypatch.setattr(features, "_held", type(features._held)())
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("mobilenetv2_035", (0, 1)), weights=None).eval()
    cache, device = features.FeatureCache(encoder), torch.device("cpu")
    patches = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    full = cache(patches)
    with torch.autocast("cpu", torch.bfloat16):
        half, ambient = cache(patches), same_autocast(device)
    assert cache.n_encoded == 6
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05 * float(full.abs().max()))

    def elsewhere():
        alone = cache(patches)  # a thread begins without autocast
        with ambient:
            return alone, cache(patches)

    with ThreadPoolExecutor(1) as thread:
        alone, repeated = thread.submit(elsewhere).result()
    assert torch.equal(alone, full)
    assert torch.equal(repeated, half)
    assert cache.n_encoded == 6  # nothing was encoded anew


def test_a_cache_gives_the_features_of_the_encoder_itself(monkeypatch):
    from stpredict.nn import features
    from stpredict.nn.encoders import EncoderSpec, rgb

    monkeypatch.setattr(features, "_held", type(features._held)())
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("mobilenetv2_035", (0, 1)), weights=None).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    patches = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = pooled(encoder, rgb(patches))
    torch.testing.assert_close(features.FeatureCache(encoder)(patches), wanted, rtol=1e-4, atol=1e-5)
