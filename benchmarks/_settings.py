"""The PixNet of the benchmarks: the small configuration on the ImageNet MobileNetV2 that lies with the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stpredict.models import PixNet, PixNetConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SECTIONS = ("C2", "C3", "C4", "C5")


def pixnet(genes: Sequence[str], *, data: Path = DATA, mpp: float = 2.0) -> PixNet:
    """A fresh PixNet; the weights were trained on RGB in [-1, 1] with "same" padding."""
    config = PixNetConfig(
        genes=tuple(genes),
        mpp=mpp,
        encoder_kwargs={"pad_type": "same"},
        encoder_mean=(0.5, 0.5, 0.5),
        encoder_std=(0.5, 0.5, 0.5),
    )
    weights = data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    return PixNet(config=config, encoder_weights=weights)
