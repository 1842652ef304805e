"""Record of a result: every field that it may have, and which of them two results share to be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["layer", "raster"]


@dataclass(frozen=True)
class Field:
    """One field of the record.

    Parameters
    ----------
    differs : str, optional
        What a message calls results that differ in it. None: it says how a result came about, and is not compared.
    of : {"result", "genes", "sample", "run"}
        "result": the same in all samples of a result; "genes": what was asked for; "sample": what it was read from,
        where and when, which may differ between the samples of a result; "run": of an interrupted run alone.
    only : {"layer", "raster"}, optional
        Which kind of result it decides; None: both.
    """

    differs: str | None = None
    of: Literal["result", "genes", "sample", "run"] = "result"
    only: Kind | None = None


FIELDS: Mapping[str, Field] = {
    # the model
    "weights_sha256": Field("model"),
    "config_digest": Field("settings of the model"),
    "mpp": Field("mpp"),
    "core_px": Field("tiles"),
    "halo_px": Field("tiles"),
    "precision": Field("precision"),
    "model": Field(),
    "encoder": Field(),
    "target": Field(),
    "link": Field(),
    "reduction": Field(),
    "seed": Field(),
    "n_models": Field(),
    "held_out": Field(),
    "held_out_um2": Field(),
    "training_sections": Field(),
    "training_images": Field(),
    "protocol": Field(),
    # the genes
    "genes": Field("genes", of="genes"),
    "unseen_genes": Field(of="genes"),
    "texts_digest": Field("text of its genes", of="genes"),
    # the sample
    "image_digest": Field("image, mpp or tissue", of="sample"),
    "shapes_digest": Field("shapes", of="sample", only="layer"),
    "raster": Field("tool", of="sample"),
    "device": Field(of="sample"),
    "versions": Field(of="sample"),
    "model_path": Field(of="sample"),
    "revision": Field(of="sample"),
    # the form
    "stat": Field(),
    "raster_mpp": Field("raster_mpp", only="raster"),
    "latent": Field("output", only="raster"),
    "dtype": Field("dtype", only="raster"),
    "output": Field(of="run"),
    "batch_size": Field(of="run"),
    "compile": Field(of="run"),
}
ALWAYS = ("weights_sha256", "genes")  # records of older versions have fewer fields, but these


def fields_of(*kinds: str) -> list[str]:
    """Names of the fields that are "of" one of these."""
    return [name for name, field in FIELDS.items() if field.of in kinds]


def differences(record: Mapping[str, Any], wanted: Mapping[str, Any], kind: Kind) -> set[str]:
    """What a result differs in from the one that is wanted, in the words of a message; of the fields that it has."""
    return {
        field.differs
        for name, field in FIELDS.items()
        if field.differs is not None
        and field.only in (None, kind)
        and (name in record or name in ALWAYS)
        and not _equal(record, wanted, [name])
    }


def of_one_result(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records may be of samples of one result: one model, its genes and its settings."""
    return bool(record) and _equal(record, other, {*record, *other} - {*fields_of("sample")})


def _equal(record: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether they agree in these fields; lists come back from a store as arrays."""
    return all(np.asarray(record.get(name)).tolist() == np.asarray(other.get(name)).tolist() for name in names)


def hashed_settings(settings: Any) -> Any:
    """Settings as they enter the hash of a kept run: without `min_steps` of a recipe where it is 0.

    Runs from before it was a field then have the hash that they had.
    """
    if isinstance(settings, Mapping):
        kept = {name: value for name, value in settings.items() if (name, value) != ("min_steps", 0)}
        return {name: hashed_settings(value) for name, value in kept.items()}
    return [hashed_settings(each) for each in settings] if isinstance(settings, list | tuple) else settings


def stable_hash(*values: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
