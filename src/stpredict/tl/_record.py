"""Provenance: what a result says of how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stpredict import __version__
from stpredict.models._base import weights_sha256
from stpredict.nn.device import resolve_device, resolve_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stpredict._infer import Runtime
    from stpredict.models import Model


def record_of(model: Model, genes: Sequence[str], runtime: Runtime) -> dict[str, Any]:
    """Plain values that say which model, weights, resolution, units, tiling and versions made a result."""
    card, config = model.card, model.config
    assert card is not None
    # of a settled runtime neither is looked for here: it may be that of a worker
    device = resolve_device("auto") if runtime.device == "auto" else torch.device(runtime.device)
    panel = set(model.genes)
    unseen = [gene for gene in genes if gene not in panel]
    return {
        "model": type(model).__name__,
        "weights_sha256": weights_sha256(model),
        "model_path": model.loaded_from,
        "encoder": card.encoder,
        "mpp": float(model.mpp),
        "target": card.target,
        "link": getattr(config, "link", "identity"),
        "reduction": getattr(config, "reduction", None),
        "genes": list(genes),
        **({"unseen_genes": unseen} if unseen else {}),
        "core_px": getattr(config, "core_px", None),
        "halo_px": getattr(config, "halo_px", None),
        "device": device.type,
        "precision": resolve_precision(runtime.precision, device),
        "seed": card.seed,
        "training_sections": list(card.sections),
        "protocol": card.protocol,
        "versions": {"stpredict": __version__} | {k: v for k, v in card.versions.items() if k != "stpredict"},
    }


def reliability(model: Model, genes: Sequence[str]) -> NDArray[np.float64]:
    """(g,) correlation of each gene on held-out data, from the card; NaN where the card has none."""
    assert model.card is not None
    values = [model.card.val_pcc.get(gene) for gene in genes]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
