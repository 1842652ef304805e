"""Image encoders: any timm network as a pyramid of feature maps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from stpredict.nn.fold import folded, folded_call


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder, and how it is fed.

    name
        A timm name (``mobilenetv2_100``), or a hub name (``hf-hub:MahmoodLab/UNI2-h``).
    taps
        CNN: indices of timm's feature stages, finest first (stage i has stride 2^(i + 1)). ViT: transformer blocks,
        counted from 1, early to late.
    kwargs
        Passed on to ``timm.create_model`` as they are.
    mean, std
        Normalisation of RGB in [0, 1]; None: what timm records for the name.
    """

    name: str
    taps: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Encoder(nn.Module):
    """A timm network that turns normalised RGB into feature maps, finest first.

    A CNN gives maps at its own strides. A vision transformer sees the image in squares of its native size, laid side
    by side from pixel (0, 0), so that an answer does not depend on how the image was tiled; all its maps have the
    patch size as stride.

    Source: timm's ``features_only`` (CNN) and ``forward_intermediates`` (ViT).
    """

    net: Any  # timm's networks share no interface that a type checker could see
    mean: Tensor
    std: Tensor
    strides: tuple[int, ...]
    channels: tuple[int, ...]

    def __init__(self, spec: EncoderSpec, *, weights: str | Path | None) -> None:
        super().__init__()
        _check_hub(spec.name, weights)
        self.spec = spec
        self.is_vit = _is_vit(spec.name)
        from_hub = weights == "timm"
        kwargs = dict(spec.kwargs)
        if isinstance(kwargs.get("mlp_layer"), str):  # a config holds names, timm wants the class
            kwargs["mlp_layer"] = getattr(timm.layers, kwargs["mlp_layer"])
        if self.is_vit:
            self.net = timm.create_model(spec.name, pretrained=from_hub, num_classes=0, **kwargs)
            patch, native = self.net.patch_embed.patch_size[0], self.net.patch_embed.img_size[0]
            self.strides, self.block_px = (patch,) * len(spec.taps), native
            self.channels = (self.net.embed_dim,) * len(spec.taps)
        else:
            self.net = timm.create_model(
                spec.name, pretrained=from_hub, features_only=True, out_indices=spec.taps, **kwargs
            )
            self.strides = tuple(self.net.feature_info.reduction())
            self.channels, self.block_px = tuple(self.net.feature_info.channels()), max(self.strides)
        if weights is not None and not from_hub:
            _load_local(self.net, Path(weights))
        config = timm.data.resolve_data_config({}, model=self.net)
        for key, value in (("mean", spec.mean or config["mean"]), ("std", spec.std or config["std"])):
            self.register_buffer(key, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Encoder:
        """Training mode for everything but batch norm, whose pretrained statistics stay as they are."""
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Feature maps (b, c_i, h / stride_i, w / stride_i), finest first, of RGB in [0, 1].

        Raises ValueError where height or width is no multiple of `block_px`.
        """
        if image.shape[2] % self.block_px or image.shape[3] % self.block_px:
            raise ValueError(
                f"{self.spec.name} takes images whose sides are multiples of {self.block_px} px, got "
                f"{tuple(image.shape[2:])}."
            )
        image = (image - self.mean) / self.std
        if self.is_vit:
            return self._tokens(image)
        if self.training and torch.is_grad_enabled() and not image.is_meta:  # batch norms are in eval mode all the same
            return folded_call(self.net, image, probe=self._probed)
        return self.net(image)

    def _probed(self, net: nn.Module) -> Tensor:
        """All maps of some image, in one row."""
        side = torch.linspace(-2, 2, 3 * self.block_px**2, device=self.mean.device)
        return torch.cat([x.flatten() for x in net(side.view(1, 3, self.block_px, self.block_px))])

    def _tokens(self, image: Tensor) -> list[Tensor]:
        b, _, h, w = image.shape
        p = self.block_px
        blocks = image.unflatten(2, (h // p, p)).unflatten(4, (w // p, p))  # (b, 3, rows, p, columns, p)
        blocks = blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, p, p)
        maps = self.net.forward_intermediates(
            blocks, indices=[t - 1 for t in self.spec.taps], output_fmt="NCHW", intermediates_only=True, norm=False
        )
        out = []
        for tokens in maps:
            n = tokens.shape[-1]
            grid = tokens.reshape(b, h // p, w // p, -1, n, n).permute(0, 3, 1, 4, 2, 5)
            out.append(grid.reshape(b, -1, h // p * n, w // p * n))
        return out


def rgb(image: Tensor) -> Float[Tensor, "b 3 h w"]:
    """(b, 3, h, w) float32 in [0, 1], channels last, of uint8 RGB."""
    return image.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def folded_encoder(encoder: Encoder) -> Encoder:
    """The same encoder with its batch norms folded into its convolutions; a vision transformer has none.

    encoder
        In eval mode; it stays as it is.
    """
    return folded(encoder, lambda each: each._probed(each.net))


def _is_vit(name: str) -> bool:
    """Whether the architecture is one of timm's plain vision transformers; a hub name is looked up on the hub."""
    if name.startswith("hf-hub:"):
        _, name, _ = timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))
    module = timm.models.model_entrypoint(name.split(".")[0]).__module__
    return module.rsplit(".", 1)[-1] in {"vision_transformer", "eva", "deit", "beit"}


def _check_hub(name: str, weights: str | Path | None) -> None:
    # timm contacts the hub for such a name even with pretrained=False, and retries for half a minute when offline
    if name.startswith("hf-hub:") and os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise ConnectionError(
            f"encoder {name!r} is described on a hub, and HF_HUB_OFFLINE is set. Unset it, or name the architecture "
            "by its timm name with its keywords in `encoder_kwargs` and pass a local file as `encoder_weights`."
        )
    if weights is not None and weights != "timm" and not Path(weights).is_file():
        raise FileNotFoundError(
            f"encoder_weights={str(weights)!r} is no file. Pass a local .safetensors file, 'timm' for the weights that "
            "timm fetches for the name, or None for random ones."
        )


def _load_local(net: nn.Module, path: Path) -> None:
    """Load a timm state dict (safetensors) that may hold a classifier this pyramid has no use for; never less."""
    state = load_file(path)
    wanted = net.state_dict()
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise ValueError(
            f"{path.name} lacks {len(missing)} of the {len(wanted)} tensors of the encoder, such as {missing[:3]}; it "
            f"holds {sorted(state)[:3]}. Pass the timm state dict of this very architecture."
        )
    wrong = [key for key in wanted if wanted[key].shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path.name}: {len(wrong)} tensors have another shape, such as {key}: {tuple(state[key].shape)} for "
            f"{tuple(wanted[key].shape)}. Pass the timm state dict of this very architecture."
        )
    net.load_state_dict({key: state[key] for key in wanted})
