"""Description of a timm network: its name, the keywords that shape it, and the metadata of a hub.

A name and keywords may come out of a model's card, so that they are data: what would open a file or a socket, or take
memory without bound, is no keyword here.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import timm
from huggingface_hub import hf_hub_download

from stpredict._schema import Range, check_value, parse_json, shown

logger = logging.getLogger("stpredict")

HUB = "hf-hub:"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN_VIT = "vit_base_patch16_224"  # the vision transformer that the four keywords below turn into any other
DETERMINED = ("patch_size", "embed_dim", "depth", "num_heads")
_FIXED = {"num_classes", "in_chans"}  # an encoder has no classes and sees RGB, whatever a hub says
MOST_BLOCKS = 256  # of all stages: more take seconds to build
MOST_PIXELS = 2**22  # of an image whose size shapes the network

_HUB_NAME = re.compile(r"hf-hub:[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_SHARE: tuple[Any, Range] = (float, (0.0, 0.95))
_FLAG: tuple[Any, None] = (bool, None)
_SIDE = int | tuple[int, int]
_ACTIVATION = Literal[
    "celu", "elu", "gelu", "GELU", "gelu_tanh", "hard_sigmoid", "hard_swish", "leaky_relu", "mish", "prelu",
    "quick_gelu", "relu", "ReLU", "relu6", "selu", "silu", "SiLU", "swish", "tanh",
]  # fmt: skip
_NORM = Literal[
    "batchnorm", "batchnorm2d", "groupnorm", "groupnorm1", "layernorm", "layernorm2d", "rmsnorm", "rmsnorm2d",
    "simplenorm", "simplenorm2d",
]  # fmt: skip
# what shapes a network, as a name in JSON can say it: type, and range
KEYWORDS: Mapping[str, tuple[Any, Range | None]] = {
    "architecture": (str, None),  # of a hub name: the timm name behind it
    "img_size": (_SIDE, (1, 4096)), "patch_size": (_SIDE, (1, 512)), "depth": (int, (1, 256)),
    "embed_dim": (int, (1, 8192)), "num_heads": (int, (1, 256)), "mlp_ratio": (float, (0.01, 32)),
    "init_values": (float | None, (0.0, 10.0)), "reg_tokens": (int, (0, 1024)), "num_reg_tokens": (int, (0, 1024)),
    "output_stride": (int, (1, 64)), "cardinality": (int, (1, 1024)), "base_width": (int, (1, 1024)),
    "stem_width": (int, (1, 1024)), "stem_size": (int, (1, 1024)), "growth_rate": (int, (1, 1024)),
    "block_config": (tuple[int, ...], (1, 256)), "depths": (tuple[int, ...], (1, 256)),
    "dims": (tuple[int, ...], (1, 8192)), "kernel_sizes": (int | tuple[int, ...], (1, 63)),
    "window_size": (_SIDE, (1, 256)), "ls_init_value": (float | None, (0.0, 10.0)), "norm_eps": (float, (1e-12, 1.0)),
    "drop_rate": _SHARE, "pos_drop_rate": _SHARE, "patch_drop_rate": _SHARE, "proj_drop_rate": _SHARE,
    "attn_drop_rate": _SHARE, "drop_path_rate": _SHARE, "drop_block_rate": _SHARE,
    "qkv_bias": _FLAG, "qk_norm": _FLAG, "proj_bias": _FLAG, "scale_attn_norm": _FLAG, "scale_mlp_norm": _FLAG,
    "class_token": _FLAG, "no_embed_class": _FLAG, "pre_norm": _FLAG, "final_norm": _FLAG,
    "fc_norm": (bool | None, None),
    "dynamic_img_size": _FLAG, "dynamic_img_pad": _FLAG, "pool_include_prefix": _FLAG, "qkv_fused": _FLAG,
    "swiglu_mlp": _FLAG, "scale_mlp": _FLAG, "use_abs_pos_emb": _FLAG, "use_rot_pos_emb": _FLAG,
    "use_rel_pos_bias": _FLAG, "use_shared_rel_pos_bias": _FLAG, "use_fc_norm": (bool | None, None),
    "avg_down": _FLAG, "replace_stem_pool": _FLAG, "conv_mlp": _FLAG, "conv_bias": _FLAG, "use_grn": _FLAG,
    "head_norm_first": _FLAG, "fix_stem": _FLAG,
    "pos_embed": (Literal["", "none", "learn"], None), "pad_type": (Literal["", "same"], None),
    "global_pool": (Literal["", "avg", "avgmax", "max", "token", "map", "fast"], None),
    "mlp_layer": (Literal["Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked"], None),
    "act_layer": (_ACTIVATION, None), "norm_layer": (_NORM, None),
    "stem_type": (Literal["", "deep", "deep_tiered", "patch", "overlap", "overlap_tiered", "overlap_act"], None),
}  # fmt: skip


def check_encoder(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that is none of timm's and no hub name, and for keywords that do not shape a network.

    The message has the closest names of timm, or the keywords that are known.
    """
    unknown = sorted(set(kwargs) - set(KEYWORDS))
    if unknown:
        raise ValueError(
            f"encoder_kwargs: {shown(unknown)[1:-1]} does not shape a network, and is not handed on to timm. Keywords "
            f"that do: {', '.join(sorted(KEYWORDS))}."
        )
    for key, value in kwargs.items():
        hint, limit = KEYWORDS[key]
        check_value(f"encoder_kwargs[{key!r}]", value, hint, limit)
    for key in ("depths", "block_config"):
        if sum(kwargs.get(key, ())) > MOST_BLOCKS:
            raise ValueError(f"encoder_kwargs[{key!r}]={shown(kwargs[key])}: at most {MOST_BLOCKS} blocks in all.")
    size = kwargs.get("img_size", 1)
    height, width = (size, size) if isinstance(size, int) else size
    if height * width > MOST_PIXELS:
        raise ValueError(f"encoder_kwargs['img_size']={shown(size)}: at most {MOST_PIXELS} pixels.")
    if _HUB_NAME.fullmatch(name):
        _check_timm_name("encoder_kwargs['architecture']", kwargs.get("architecture", PLAIN_VIT))
        return
    if "architecture" in kwargs:
        raise ValueError(f"encoder_kwargs['architecture'] is for a hub name; encoder={name!r} names its own.")
    _check_timm_name("encoder", name)


def _check_timm_name(argument: str, name: str) -> None:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        raise ValueError(
            f"{argument}={shown(name)} is no network of timm {timm.__version__}."
            + (f" Closest names: {', '.join(close)}." if close else "")
            + " timm.list_models() lists them all; a network of a hub is 'hf-hub:owner/name'."
        )
    if tag and not timm.is_model_pretrained(name):
        known = timm.list_pretrained(f"{base}.*")
        close = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise ValueError(f"{argument}={shown(name)}: timm has no weights of that tag. Closest: {', '.join(close)}.")


def is_encoder_name(name: str) -> bool:
    """Whether a text names a network of timm, perhaps with a tag of weights, or one of a hub."""
    return bool(_HUB_NAME.fullmatch(name)) or timm.is_model(name.partition(".")[0])


def is_determined(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether name and keywords alone say how the network is built; else a hub has to be asked."""
    return not name.startswith(HUB) or "architecture" in kwargs or set(DETERMINED) <= set(kwargs)


def timm_name(name: str, kwargs: Mapping[str, Any]) -> str:
    """The name under which timm builds the network; of a hub name, its architecture."""
    return str(kwargs.get("architecture", PLAIN_VIT)) if name.startswith(HUB) else name


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    return os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")


def described(
    name: str, kwargs: Mapping[str, Any], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, Any]:
    """Keywords, mean and std of a hub name that a caller typed, so that no hub has to be asked again.

    What is not given is read from the hub's description: in the local cache, else from the hub. Keywords given win.
    Where neither has it, given keywords are enough if they determine the network; ImageNet's colours are then assumed.

    Returns
    -------
    The fields encoder_kwargs, encoder_mean and encoder_std of a config.

    Raises
    ------
    ConnectionError
        Where the description is needed and cannot be had.
    """
    wanted = {"encoder_kwargs": dict(kwargs), "encoder_mean": mean, "encoder_std": std}
    if not name.startswith(HUB) or (is_determined(name, kwargs) and mean and std):
        return wanted
    try:
        found = _hub_description(name)
    except OSError as error:  # also what huggingface_hub raises where it is offline, or the entry is not there
        if not is_determined(name, kwargs):
            raise _not_described(name, error) from error
        logger.warning(
            "encoder %r is not described in the local cache%s; built from encoder_kwargs, with the mean and std of "
            "ImageNet. Give encoder_mean and encoder_std where it has others.", name, "" if is_offline() else " or hub",
        )  # fmt: skip
        found = {"encoder_kwargs": {}, "encoder_mean": IMAGENET[0], "encoder_std": IMAGENET[1]}
    if is_determined(name, kwargs):
        found["encoder_kwargs"] = {}
    wanted["encoder_kwargs"] = found["encoder_kwargs"] | wanted["encoder_kwargs"]
    return found | {key: value for key, value in wanted.items() if value is not None}


def _hub_description(name: str) -> dict[str, Any]:
    repository, _, revision = name.removeprefix(HUB).partition("@")
    where: dict[str, Any] = {"repo_id": repository, "filename": "config.json", "revision": revision or None}
    try:
        path = hf_hub_download(**where, local_files_only=True)
    except OSError:
        if is_offline():
            raise
        path = hf_hub_download(**where)
    with open(path, "rb") as file:
        content = parse_json(file.read(), f"{path} (encoder={name!r})")
    content = content if isinstance(content, dict) else {}
    pretrained = content.get("pretrained_cfg", content)
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    arguments = content.get("model_args") or {}
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in dict(arguments).items() if key not in _FIXED}
    mean, std = (tuple(pretrained.get(key) or default) for key, default in zip(("mean", "std"), IMAGENET, strict=True))
    architecture = content.get("architecture") or pretrained.get("architecture")
    if not isinstance(architecture, str):
        raise ValueError(f"{path} (encoder={name!r}) does not say which architecture of timm it describes.")
    return {"encoder_kwargs": {"architecture": architecture} | given, "encoder_mean": mean, "encoder_std": std}


def _not_described(name: str, error: Exception) -> Exception:
    offline = "HF_HUB_OFFLINE is set, and " if is_offline() else ""
    return ConnectionError(
        f"encoder {name!r} is described on a hub; {offline}its config.json is not in the local cache "
        f"({type(error).__name__}). Say how it is built in encoder_kwargs ({', '.join(DETERMINED)} of a vision "
        "transformer, or the timm name as architecture), and pass a local file as `encoder_weights`; or fetch it once "
        "where the hub can be reached."
    )
