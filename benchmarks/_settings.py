"""The PixNet of the benchmarks: the small configuration on the ImageNet MobileNetV2 that lies with the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stpredict.models import PixNet, PixNetConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SECTIONS = ("C2", "C3", "C4", "C5")
WEIGHTS = DATA / "weights" / "mobilenetv2_100.imagenet.safetensors"
# the weights were trained on RGB in [-1, 1] with "same" padding
ENCODER: dict[str, Any] = {
    "encoder_kwargs": {"pad_type": "same"},
    "encoder_mean": (0.5, 0.5, 0.5),
    "encoder_std": (0.5, 0.5, 0.5),
}


def pixnet(genes: Sequence[str], *, mpp: float = 2.0) -> PixNet:
    """A fresh PixNet."""
    return PixNet(config=PixNetConfig(genes=tuple(genes), mpp=mpp, **ENCODER), encoder_weights=WEIGHTS)
