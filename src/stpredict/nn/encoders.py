"""Image encoders: any timm network as a pyramid of feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stpredict._schema import shown
from stpredict.nn.architecture import HUB, IMAGENET, check_encoder, described, is_determined, timm_name
from stpredict.nn.fold import folded, folded_call
from stpredict.nn.state import differences, read_tensors


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder, and how it is fed.

    Parameters
    ----------
    name : str
        A timm name (``mobilenetv2_100``), or a hub name (``hf-hub:MahmoodLab/UNI2-h``), which is built as the keywords
        say; a hub is asked for weights alone, where ``weights="timm"``.
    taps : tuple[int, ...]
        CNN: indices of timm's feature stages, finest first (stage i has stride 2^(i + 1)). ViT: transformer blocks,
        counted from 1, early to late; one that is named twice gives two equal maps.
    kwargs : Mapping[str, Any], optional
        What shapes the network (`stpredict.nn.architecture.KEYWORDS`), for ``timm.create_model``; others are refused.
        Of a hub name: patch_size, embed_dim, depth and num_heads of a vision transformer, or its timm name as
        architecture.
    mean, std : tuple[float, ...], optional
        Normalisation of RGB in [0, 1]; None: what timm records for the name, ImageNet's for a hub name.
    """

    name: str
    taps: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Encoder(nn.Module):
    """A timm network that turns normalised RGB into feature maps, finest first.

    A CNN gives maps at its own strides. A vision transformer sees the image in squares of its native size, laid side by
    side from pixel (0, 0), so that an answer does not depend on how the image was tiled; all its maps have the patch
    size as stride.

    Parameters
    ----------
    spec : EncoderSpec
        Which network, and how it is fed.
    weights : str | Path | None
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.

    References
    ----------
    timm's ``features_only`` (CNN) and ``forward_intermediates`` (ViT).
    """

    net: Any  # timm's networks share no interface that a type checker could see
    mean: Tensor
    std: Tensor
    strides: tuple[int, ...]
    channels: tuple[int, ...]

    def __init__(self, spec: EncoderSpec, *, weights: str | Path | None) -> None:
        super().__init__()
        check_encoder(spec.name, spec.kwargs)
        _check_weights(weights)
        if not is_determined(spec.name, spec.kwargs):
            found = described(spec.name, spec.kwargs, spec.mean, spec.std)
            spec = replace(spec, **{key.removeprefix("encoder_"): value for key, value in found.items()})
        self.spec = spec
        self.is_vit = _is_vit(timm_name(spec.name, spec.kwargs))
        self.net = _net(spec, is_vit=self.is_vit, pretrained=weights == "timm")
        if self.is_vit:
            patch, native = self.net.patch_embed.patch_size[0], self.net.patch_embed.img_size[0]
            self.strides, self.block_px = (patch,) * len(spec.taps), native
            self.channels = (self.net.embed_dim,) * len(spec.taps)
        else:
            self.strides = tuple(self.net.feature_info.reduction())
            self.channels, self.block_px = tuple(self.net.feature_info.channels()), max(self.strides)
        if weights is not None and weights != "timm":
            _load_local(self.net, Path(weights))
        if spec.name.startswith(HUB):
            mean, std = IMAGENET
        else:
            config = timm.data.resolve_data_config({}, model=self.net)
            mean, std = config["mean"], config["std"]
        for key, value in (("mean", spec.mean or mean), ("std", spec.std or std)):
            self.register_buffer(key, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Encoder:
        """Training mode for everything but batch norm, whose pretrained statistics stay as they are.

        Parameters
        ----------
        mode : bool, default True
            Training mode, or not.

        Returns
        -------
        Encoder
            The encoder itself.
        """
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Feature maps of an image.

        Parameters
        ----------
        image : Float[Tensor, "b 3 h w"]
            RGB in [0, 1].

        Returns
        -------
        list[Tensor]
            (b, c_i, h / stride_i, w / stride_i) each, finest first.

        Raises
        ------
        ValueError
            Where height or width is no multiple of `block_px`.
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
        taps = sorted(set(self.spec.taps))
        maps = self.net.forward_intermediates(
            blocks, indices=[t - 1 for t in taps], output_fmt="NCHW", intermediates_only=True, norm=False
        )
        out = []
        for tokens in (maps[taps.index(tap)] for tap in sorted(self.spec.taps)):
            n = tokens.shape[-1]
            grid = tokens.reshape(b, h // p, w // p, -1, n, n).permute(0, 3, 1, 4, 2, 5)
            out.append(grid.reshape(b, -1, h // p * n, w // p * n))
        return out


def rgb(image: Tensor) -> Float[Tensor, "b 3 h w"]:
    """(b, 3, h, w) float32 in [0, 1], channels last, of uint8 RGB."""
    return image.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def folded_encoder(encoder: Encoder) -> Encoder:
    """The same encoder with its batch norms folded into its convolutions; a vision transformer has none.

    Parameters
    ----------
    encoder : Encoder
        In eval mode; it stays as it is.
    """
    return folded(encoder, lambda each: each._probed(each.net))


def _net(spec: EncoderSpec, *, is_vit: bool, pretrained: bool) -> Any:
    """timm's network; ValueError naming the encoder where name, taps and keywords do not make one."""
    kwargs = {key: value for key, value in spec.kwargs.items() if key != "architecture"}
    if isinstance(kwargs.get("mlp_layer"), str):  # a config holds names, timm wants the class
        kwargs["mlp_layer"] = getattr(timm.layers, kwargs["mlp_layer"])
    name = spec.name if pretrained else timm_name(spec.name, spec.kwargs)
    kwargs |= {"num_classes": 0} if is_vit else {"features_only": True, "out_indices": tuple(spec.taps)}
    said = f"encoder={spec.name!r} with taps={tuple(spec.taps)} and encoder_kwargs={shown(dict(spec.kwargs))}"
    try:
        net: Any = timm.create_model(name, pretrained=pretrained, **kwargs)
    except OSError as error:  # only where weights are fetched
        raise ConnectionError(
            f"the weights of {said} are neither in the local cache nor to be had from their hub "
            f"({type(error).__name__}: {str(error)[:200]}). Pass a local file as `encoder_weights`."
        ) from error
    except Exception as error:
        raise ValueError(f"timm builds no network of {said} ({type(error).__name__}: {str(error)[:200]}).") from error
    if is_vit and not all(1 <= tap <= len(net.blocks) for tap in spec.taps):
        raise ValueError(f"taps={tuple(spec.taps)}: {spec.name!r} has the blocks 1 to {len(net.blocks)}.")
    return net


def last_tap(name: str, kwargs: Mapping[str, Any]) -> int:
    """The tap of the last map of a network of timm: its last stage, or block; nothing is drawn or fetched.

    Parameters
    ----------
    name : str
        Of timm, as `stpredict.nn.architecture.timm_name` has it.
    kwargs : Mapping[str, Any]
        What shapes the network.
    """
    is_vit = _is_vit(name)
    with torch.device("meta"):
        rest = {key: value for key, value in kwargs.items() if key != "architecture"}
        if isinstance(rest.get("mlp_layer"), str):
            rest["mlp_layer"] = getattr(timm.layers, rest["mlp_layer"])
        net: Any = timm.create_model(name, **rest, **({"num_classes": 0} if is_vit else {"features_only": True}))
    return len(net.blocks) if is_vit else int(net.feature_info.out_indices[-1])


def _is_vit(name: str) -> bool:
    """Whether the architecture is one of timm's plain vision transformers."""
    module = timm.models.model_entrypoint(name.split(".")[0]).__module__
    return module.rsplit(".", 1)[-1] in {"vision_transformer", "eva", "deit", "beit"}


def _check_weights(weights: str | Path | None) -> None:
    if weights is not None and weights != "timm" and not Path(weights).is_file():
        raise FileNotFoundError(
            f"encoder_weights={str(weights)!r} is no file. Pass a local .safetensors file, 'timm' for the weights that "
            "timm fetches for the name, or None for random ones."
        )


def _load_local(net: nn.Module, path: Path) -> None:
    """Load a timm state dict (safetensors) that may hold a classifier this pyramid has no use for; never less."""
    wanted = net.state_dict()
    state = read_tensors(path, wanted)
    wrong = differences(wanted, state, cast=True)
    if wrong:
        raise ValueError(
            f"encoder_weights={str(path)!r} does not fit the encoder: {wrong}. Pass the timm state dict of this very "
            "architecture."
        )
    net.load_state_dict(state, strict=False)  # counters of batches may be missing
