"""Base classes of model settings (`Config`) and training settings (`Recipe`), and the allowed range of each field.

One table serves constructors and cards. A rule that joins several fields stands in the file of its model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict._schema import Range, check_fields, check_value, shown
from stpredict.nn.architecture import check_encoder
from stpredict.nn.encoders import EncoderSpec

_ANY, _SOME = (0, 2**20), (1, 2**20)  # numbers of things
_WEIGHT, _SHARE, _DROPPED = (0.0, 1e6), (0.0, 1.0), (0.0, 0.99)
LIMITS: Mapping[str, Range] = {
    # the image
    "mpp": (0.01, 1000.0), "patch_px": (1, 2048), "patch_um": (0.01, 1e5), "window_px": (1, 8192),
    "core_px": (1, 8192), "halo_px": (0, 4096), "token_px": (1, 2048), "part_px": (1, 2048), "stain_jitter": _SHARE,
    # the encoder
    "taps": (0, 256), "encoder_mean": (-1.0, 2.0), "encoder_std": (1e-3, 10.0),
    # sizes of networks
    "width": (1, 16384), "out_width": (1, 16384), "mlp_width": (1, 65536), "text_hidden": (1, 16384),
    "filters": (1, 8192), "depth": (1, 256), "text_depth": (1, 256), "projector_depth": (1, 256),
    "heads": (1, 256), "head_width": (1, 4096), "text_heads": (1, 256), "bridge_heads": (1, 256),
    "bridge_head_width": (1, 4096), "gate_width": (1, 65536),
    "bridge_every": (1, 256), "n_bilinear": (0, 16), "attention_window": (1, 256),
    "context_rank": (0, 4096), "context_cells": (1, 256), "context_zoom": (1, 8), "context_levels": (0, 64),
    "context_wide_cells": (0, 256), "context_landmarks": (0, 4096),
    "n_places": (1, 65536),
    "side": (1, 63), "layers": (1, 65536), "members": (1, 256),
    "fusion": (0, 16384), "section": (0, 16384), "neighbours": (0, 16384),
    # what is looked at, and how often
    "n_near": _ANY, "n_alike": _ANY, "top": _SOME, "exemplars": _SOME, "symmetries": (1, 8), "turns": (1, 8),
    "ks": _SOME, "reach": (1, 64), "near": _SOME,
    "components": (1, 2**20), "train_genes": _SOME, "train_spots": _SOME,
    # shares, weights, temperatures
    "dropout": _DROPPED, "feature_dropout": _DROPPED, "text_dropout": _DROPPED, "out_dropout": _DROPPED,
    "fused_dropout": _DROPPED, "token_dropout": _DROPPED,
    "context_share": _SHARE, "branch_share": _SHARE, "pcc_weight": _WEIGHT, "pool_weight": _WEIGHT,
    "place_sd": (0.0, 1e3),
    "half_weight_counts": (0.0, 1e9),
    "norm_eps": (1e-12, 1e-2), "beta": _WEIGHT, "tau": (1e-6, 1e6),
    "temperature": (1e-6, 1e6), "pool_temperature": (1e-6, 1e6), "penalties": (0.0, 1e30),
    # the recipe
    "max_epochs": (1, 10**9), "min_steps": (0, 10**9), "batch_size": (1, 10**9), "patience": (1, 10**9),
    "lr": (1e-30, 1e6), "encoder_lr": (0.0, 1e6),
    "weight_decay": _WEIGHT, "warmup": _SHARE, "gradient_clip": (0.0, 1e30),
}  # fmt: skip
WIDEST_TEXT = 65536  # values of the embedding of a text


@dataclass(frozen=True)
class Checked:
    """A dataclass whose fields have the types that they are declared with, and lie in `LIMITS`.

    Numbers of NumPy become those of Python, and lists tuples, as a card keeps them.
    """

    def __post_init__(self) -> None:
        check_fields(vars(self), type(self), LIMITS)
        for name, value in list(vars(self).items()):
            plain = (
                value.item() if isinstance(value, np.generic) else tuple(value) if isinstance(value, list) else value
            )
            object.__setattr__(self, name, plain)


@dataclass(frozen=True)
class Recipe(Checked):
    """How a model is trained when the caller says nothing else.

    Parameters
    ----------
    max_epochs : int, default 30
        Number of epochs, at least 1.
    batch_size : int, default 8
        Samples a step, at least 1.
    lr : float, default 0.0005
        Peak learning rate of AdamW.
    encoder_lr : float, default 0.0005
        That of pretrained encoder weights; 0 freezes them.
    weight_decay : float, default 0.0001
        Of AdamW.
    warmup : float, default 0.1
        Share of the steps over which the learning rates rise; they fall along a cosine afterwards.
    gradient_clip : float, default 1.0
        Largest norm of the gradient of a step.
    patience : int, optional
        Epochs without a better validation loss before training stops; None: never (the schedule ends it).
    min_steps : int, default 0
        Steps that a training takes at least: where an epoch has few of them, `max_epochs` and `patience` grow in
        proportion. Not where the caller of `stp.tl.train` says how many epochs.

    Raises
    ------
    ValueError
        For a value of another type or out of its range; it names the field.

    Examples
    --------
    >>> stp.models.Recipe(max_epochs=5, batch_size=2).lr
    0.0005
    """

    max_epochs: int = 30
    batch_size: int = 8
    lr: float = 5e-4
    encoder_lr: float = 5e-4
    weight_decay: float = 1e-4
    warmup: float = 0.1
    gradient_clip: float = 1.0
    patience: int | None = None
    min_steps: int = 0


@dataclass(frozen=True)
class Config(Checked):
    """What all configurations are held to: fields of the declared types, within their ranges.

    Raises
    ------
    ValueError
        For a value of another type or out of its range, a gene without a name, an encoder without taps or one that is
        not known, and texts whose making is not said in full; it names the field.
    """

    if TYPE_CHECKING:  # fields that every model's own configuration has, in an order of its own

        @property
        def genes(self) -> tuple[str, ...]: ...
        @property
        def mpp(self) -> float: ...
        @property
        def recipe(self) -> Recipe: ...

    def parts(self) -> Sequence[tuple[Sequence[str], Callable[[], Any]]]:
        """Models that this one is made of: what the names of their tensors begin with, and what makes one; none.

        Those of a saved model are compared with its file one by one, before the whole is built.

        Returns
        -------
        Sequence[tuple[Sequence[str], Callable[[], Model]]]
            An entry for each kind of them: the beginnings of the names of tensors, one for each model of that kind, and
            a function that makes a model of it, without its weights.
        """
        return ()

    @classmethod
    def older(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """What fields meant before they were fields, for cards of earlier versions; nothing, unless overridden.

        Parameters
        ----------
        content : Mapping[str, Any]
            The config of a card, which a stranger may have written.

        Returns
        -------
        Mapping[str, Any]
            Values by field, taken where the card has none and the default of the field is another.
        """
        return {}

    def __post_init__(self) -> None:
        super().__post_init__()
        values = vars(self)
        for name in ("genes", "vocabulary"):
            if "" in values.get(name, ()):
                raise ValueError(f"{name} holds a name that is empty.")
        for name in ("encoder_mean", "encoder_std"):
            if len(values.get(name) or (0, 0, 0)) != 3:
                raise ValueError(f"{name}={shown(values[name])} must be three numbers: red, green, blue.")
        if values.get("encoder") is not None:
            check_encoder(values["encoder"], values["encoder_kwargs"])
            if not values["taps"]:
                raise ValueError("taps is empty; name at least one stage or block of the encoder.")
        for name in ("text", "names"):
            if values.get(name):
                check_text(name, values[name])


@dataclass(frozen=True)
class PanelConfig(Config):
    """Ordered panel, and micrometres per pixel."""

    genes: tuple[str, ...]
    mpp: float = 2.0


@dataclass(frozen=True)
class PatchConfig(PanelConfig):
    """And the side, in pixels, of the patch around each shape."""

    patch_px: int = 128


@dataclass(frozen=True)
class EncoderConfig(Config):
    """The fields that say which image encoder, and how it is fed; see `stpredict.nn.EncoderSpec`.

    A config names it before the class that holds its first fields, since Python takes the fields of bases from the last
    to the first.
    """

    encoder: str = "mobilenetv2_100"
    taps: tuple[int, ...] = (0, 1, 2, 3, 4)
    encoder_kwargs: Mapping[str, Any] = field(default_factory=dict)
    encoder_mean: tuple[float, ...] | None = None
    encoder_std: tuple[float, ...] | None = None

    @property
    def encoder_spec(self) -> EncoderSpec:
        """The same five as one."""
        return EncoderSpec(self.encoder, self.taps, self.encoder_kwargs, self.encoder_mean, self.encoder_std)


def check_text(name: str, spec: Mapping[str, Any]) -> None:
    """Raise ValueError where a config does not say how embeddings of texts were made, in full."""
    hints = {"encoder": str, "revision": str | None, "pooling": str, "width": int, "text_sha256": str}
    hints["n_symbol_only"] = int
    if set(spec) != set(hints):
        raise ValueError(f"{name} must have the keys {sorted(hints)}, got {shown(sorted(spec))}.")
    for key, hint in hints.items():
        check_value(f"{name}[{key!r}]", spec[key], hint, (1, WIDEST_TEXT) if key == "width" else None)
