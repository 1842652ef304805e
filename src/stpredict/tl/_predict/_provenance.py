"""Provenance of a prediction: its record and digests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stpredict import __version__
from stpredict._record import stable_hash
from stpredict.models import Ensemble
from stpredict.models._base import weights_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from stpredict._section import Fingerprint
    from stpredict.models import Model
    from stpredict.nn.device import Precision
    from stpredict.tl._predict._request import PredictRequest


def provenance(request: PredictRequest, seen: Fingerprint) -> dict[str, Any]:
    """The record of a result: model and genes, settings, image and shapes. Plain values."""
    runtime = request.runtime
    record = model_record(request.model, request.genes, device=runtime.device, precision=runtime.precision)
    return record | {"image_digest": seen.image, "shapes_digest": seen.shapes}


def run_inputs(request: PredictRequest, record: Mapping[str, Any]) -> dict[str, Any]:
    """What an interrupted run shares with the call that goes on with it: the record, chunks and what is written."""
    runtime = request.runtime
    return {
        **record,
        "batch_size": runtime.batch_size,
        "compile": runtime.compile,
        "output": request.output.name,
        "raster_mpp": request.raster_mpp,
        "dtype": request.dtype,
    }


def model_record(model: Model, genes: Sequence[str], *, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Plain values that say which model, weights, settings, units, tiling, texts and versions made a result."""
    card, tiling = model.card, model.tiling
    assert card is not None
    panel = set(model.genes)
    unseen = [gene for gene in genes if gene not in panel]
    return {
        "model": type(model).__name__,
        "weights_sha256": weights_sha256(model),
        "model_path": model.loaded_from,
        **({} if model.revision is None else {"revision": model.revision}),
        "encoder": card.encoder,
        "mpp": float(model.mpp),
        "target": card.target,
        "link": getattr(model.config, "link", "identity"),
        "reduction": None if tiling is None else tiling.reduction,
        "genes": list(genes),
        **({"unseen_genes": unseen} if unseen else {}),
        "core_px": None if tiling is None else tiling.core_px,
        "halo_px": None if tiling is None else tiling.halo_px,
        "device": device.type,
        "precision": precision,
        "seed": card.seed,
        **({"n_models": len(model.models)} if isinstance(model, Ensemble) else {}),
        **({"held_out": card.val_source or "not said"} if card.val_pcc else {}),
        **({"held_out_um2": list(card.held_out_um2)} if card.held_out_um2 else {}),
        "training_sections": list(card.sections),
        **({"training_images": list(card.image_digests)} if card.image_digests else {}),
        "protocol": card.protocol,
        "versions": {"stpredict": __version__} | {k: v for k, v in card.versions.items() if k != "stpredict"},
        **({"texts_digest": texts_digest(model, genes)} if model.is_text_queried and genes else {}),
        "config_digest": config_digest(model),  # some settings are of the prediction, not of the weights
    }


def config_digest(model: Model) -> str:
    """A short hash of a model's settings, but those of its training.

    A field that the card of an older model lacks is left out where it stands as that version behaved, so that its
    results of then and of now have one hash.
    """
    card = {} if model.card is None else model.card.config
    values = {name: value for name, value in _settings(model, card).items() if name != "recipe"}
    if isinstance(model, Ensemble):
        told = [dict(member["config"]) for member in card.get("members", values["members"])]
        members = zip(values["members"], model.models, told, strict=True)
        values["members"] = [{**member, "config": _settings(each, names)} for member, each, names in members]
    return stable_hash(values)


def _settings(model: Model, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that a card tells, or whose value is not the one from before they were fields."""
    values = dataclasses.asdict(model.config)
    before = {f.name: f.default for f in dataclasses.fields(model.config)} | dict(model.config.older(values))
    return {name: value for name, value in values.items() if name in told or before[name] != value}


def texts_digest(model: Model, genes: Sequence[str]) -> str:
    """A short hash of a model's gene embeddings; "" for one with a fixed panel."""
    return hashlib.sha256(model.text_vectors(genes).tobytes()).hexdigest()[:16] if model.is_text_queried else ""
