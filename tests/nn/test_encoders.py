"""Encoders: shapes, local weights, blocks of a transformer, and hubs that cannot be reached."""

from __future__ import annotations

import pytest

CNN = {"name": "mobilenetv2_035", "taps": (1, 2, 3, 4)}
VIT = {"name": "vit_tiny_patch16_224", "taps": (3, 6, 9, 12), "kwargs": {"img_size": 64}}


def _encoder(fields, weights=None):
    from stpredict.nn import Encoder, EncoderSpec

    return Encoder(EncoderSpec(**fields), weights=weights).eval()


def test_a_cnn_gives_its_own_strides():
    import torch

    encoder = _encoder(CNN)
    maps = encoder(torch.rand(2, 3, 64, 96))
    assert encoder.strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]


def test_a_vit_sees_its_native_squares_one_by_one():
    import torch

    encoder = _encoder(VIT)
    image = torch.rand(1, 3, 128, 192)
    maps = encoder(image)
    assert encoder.strides == (16,) * 4
    assert [tuple(m.shape) for m in maps] == [(1, 192, 8, 12)] * 4
    alone = encoder(image[..., 64:128, 128:192])
    torch.testing.assert_close(maps[-1][..., 4:8, 8:12], alone[-1], rtol=1e-4, atol=1e-5)


def test_a_side_that_does_not_fit_is_refused():
    import torch

    with pytest.raises(ValueError, match=r"multiples of 32 px, got \(64, 80\)"):
        _encoder(CNN)(torch.rand(1, 3, 64, 80))


def test_pretrained_batch_norm_stays_in_eval_mode():
    import torch

    encoder = _encoder(CNN).train()
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(m.training for m in norms)


def test_local_weights_are_taken_whole_or_refused(tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file

    net = timm.create_model("mobilenetv2_035", pretrained=False)
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    encoder = _encoder(CNN, tmp_path / "whole.safetensors")
    torch.testing.assert_close(encoder.net.state_dict()["conv_stem.weight"], state["conv_stem.weight"])

    save_file({"conv_stem.weight": state["conv_stem.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors lacks \d+ of the \d+ tensors of the encoder"):
        _encoder(CNN, tmp_path / "part.safetensors")
    save_file(state | {"conv_stem.weight": torch.zeros(1, 2, 3)}, tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors have another shape, such as conv_stem.weight: \(1, 2, 3\)"):
        _encoder(CNN, tmp_path / "shape.safetensors")
    with pytest.raises(FileNotFoundError, match="is no file. Pass a local .safetensors file"):
        _encoder(CNN, tmp_path / "absent.safetensors")


def test_a_hub_name_offline_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="hf-hub:MahmoodLab/UNI2-h.*HF_HUB_OFFLINE is set.*pass a local file"):
        _encoder({"name": "hf-hub:MahmoodLab/UNI2-h", "taps": (6, 12, 18, 24)})


def test_the_given_weights_see_imagenet(data):
    import torch

    spec = {
        "name": "mobilenetv2_100",
        "taps": (1, 2, 3, 4),
        "kwargs": {"pad_type": "same"},
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    encoder = _encoder(spec, data / "weights" / "mobilenetv2_100.imagenet.safetensors")
    assert encoder.channels == (24, 32, 96, 320)
    with torch.inference_mode():
        maps = encoder(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert all(torch.isfinite(m).all() and m.std() > 0.01 for m in maps)
