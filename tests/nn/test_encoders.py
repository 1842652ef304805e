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
    with pytest.raises(ValueError, match=r"part.safetensors' does not fit the encoder: missing tensors .* of \d+"):
        _encoder(CNN, tmp_path / "part.safetensors")
    save_file(state | {"conv_stem.weight": torch.zeros(1, 2, 3)}, tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match=r"another shape or type, such as conv_stem.weight: \(1, 2, 3\)"):
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


def test_counters_of_batches_may_be_missing_in_local_weights(tmp_path):
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("mobilenetv2_035", pretrained=False)
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "plain.safetensors")
    _encoder(CNN, tmp_path / "plain.safetensors")


def test_weights_without_values_are_refused_with_the_file(tmp_path):
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("mobilenetv2_035", pretrained=False).state_dict()
    state["conv_stem.weight"].fill_(float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="nan.safetensors: tensor 'conv_stem.weight' has NaN or infinite values"):
        _encoder(CNN, tmp_path / "nan.safetensors")


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_a_hub_encoder_with_keywords_and_a_local_file_asks_no_hub(tmp_path, monkeypatch):
    import timm
    import torch
    from safetensors.torch import save_file

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    net = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0, **TINY)
    save_file(net.state_dict(), tmp_path / "vit.safetensors")
    encoder = _encoder({"name": "hf-hub:owner/tiny", "taps": (1, 2), "kwargs": TINY}, tmp_path / "vit.safetensors")
    torch.testing.assert_close(encoder.net.state_dict()["cls_token"], net.state_dict()["cls_token"])
    assert encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])  # ImageNet's


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub's cache that holds one encoder, and no hub."""
    import json

    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    net = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0, **TINY)
    home, commit = tmp_path / "models--owner--tiny", "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True)
    colours = {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2]}
    described = {"architecture": "vit_base_patch16_224", "num_classes": 0, "model_args": TINY | {"num_classes": 0}}
    described["pretrained_cfg"] = colours | {"num_classes": 0, "input_size": [3, 32, 32], "fixed_input_size": True}
    (home / "snapshots" / commit / "config.json").write_text(json.dumps(described))
    save_file(net.state_dict(), home / "snapshots" / commit / "model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return net


def test_a_filled_cache_of_a_hub_is_used_offline(cached):
    import torch

    from stpredict.models import STNet, STNetConfig

    encoder = _encoder({"name": "hf-hub:owner/tiny", "taps": (1, 2)}, "timm")
    torch.testing.assert_close(encoder.net.state_dict()["cls_token"], cached.state_dict()["cls_token"])
    config = STNetConfig(genes=("a",), encoder="hf-hub:owner/tiny", taps=(2,), patch_px=32)
    model = STNet(config=config, encoder_weights="timm")
    assert model.config.encoder_kwargs == {"architecture": "vit_base_patch16_224"} | TINY  # so that the card has it
    assert model.config.encoder_mean == (0.7, 0.6, 0.7)
    assert model.encoder.encoder.mean.flatten().tolist() == pytest.approx([0.7, 0.6, 0.7])


def test_weights_that_are_not_in_the_cache_are_said(cached):
    with pytest.raises(ConnectionError, match="'hf-hub:owner/other'.*encoder_weights"):
        _encoder({"name": "hf-hub:owner/other", "taps": (1,), "kwargs": TINY}, "timm")


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "cache_dir", "device", "num_classes", "in_chans"])
def test_keywords_that_do_not_shape_a_network_are_refused(key):
    with pytest.raises(ValueError, match=f"encoder_kwargs: '{key}' does not shape a network"):
        _encoder(CNN | {"kwargs": {key: 1}})


def test_a_block_that_is_named_twice_gives_two_equal_maps():
    import torch

    from stpredict.nn.encoders import Encoder, EncoderSpec

    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 2}
    maps = {}
    for taps in ((2, 4, 6, 6), (2, 4, 6)):
        torch.manual_seed(0)
        encoder = Encoder(EncoderSpec("vit_tiny_patch16_224", taps, kwargs), weights=None).eval()
        assert len(encoder.channels) == len(encoder.strides) == len(taps)
        with torch.no_grad():
            maps[len(taps)] = encoder(image)
    assert [tuple(each.shape) for each in maps[4]] == [(1, 32, 4, 4)] * 4
    for k, same in enumerate((0, 1, 2, 2)):
        torch.testing.assert_close(maps[4][k], maps[3][same], rtol=0, atol=0)
    assert (maps[4][1] - maps[4][2]).abs().max() > 1e-3
