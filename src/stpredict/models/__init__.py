"""The models: one file each. This directory is the registry."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict._card import CARD, Card, find_model, shipped

if TYPE_CHECKING:
    import pandas as pd

    from stpredict.models._base import Model, Recipe
    from stpredict.models.bleep import BLEEP, BLEEPConfig
    from stpredict.models.egn import EGN, EGNConfig
    from stpredict.models.genequery import GeneQuery, GeneQueryConfig
    from stpredict.models.histogene import HisToGene, HisToGeneConfig
    from stpredict.models.mean import Mean
    from stpredict.models.pixnet import PixNet, PixNetConfig
    from stpredict.models.ridge import Ridge
    from stpredict.models.sgn import SGN, SGNConfig
    from stpredict.models.stnet import STNet, STNetConfig
    from stpredict.models.triplex import TRIPLEX, TRIPLEXConfig

__all__ = [
    "BLEEP",
    "BLEEPConfig",
    "EGN",
    "EGNConfig",
    "GeneQuery",
    "GeneQueryConfig",
    "HisToGene",
    "HisToGeneConfig",
    "Mean",
    "Model",
    "PixNet",
    "PixNetConfig",
    "Recipe",
    "Ridge",
    "SGN",
    "SGNConfig",
    "STNet",
    "STNetConfig",
    "TRIPLEX",
    "TRIPLEXConfig",
    "list_models",
    "load",
]

_SHARED = {"Model": "_base", "Recipe": "_base"}


def _classes() -> dict[str, str]:
    """Class name -> module of every model file, found by looking (a model file holds one class of its own name)."""
    files = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    found = {}
    for file in files:
        module = importlib.import_module(f"{__name__}.{file}")
        base = importlib.import_module(f"{__name__}._base").Model
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
                found[name] = file
    return found


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    # a model's config lives beside it
    file = _SHARED.get(name) or _classes().get(name.removesuffix("Config"))
    if file is None:
        raise AttributeError(f"stpredict.models has no {name!r}; it has {sorted(set(_classes()) | set(__all__))}")
    return getattr(importlib.import_module(f"{__name__}.{file}"), name)


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(_classes()))


def list_models() -> pd.DataFrame:
    """The trained models that come with the package, one row each.

    Columns: name (for `load`), model (class), n_genes, mpp (um per pixel), encoder, sections (training), licence.
    """
    import pandas as pd

    cards = {name: Card.read(folder / CARD) for name, folder in shipped().items()}
    rows = [
        {
            "name": name,
            "model": card.model,
            "n_genes": len(card.genes),
            "mpp": card.mpp,
            "encoder": card.encoder,
            "sections": ", ".join(card.sections),
            "licence": card.licence,
        }
        for name, card in cards.items()
    ]
    return pd.DataFrame(rows, columns=["name", "model", "n_genes", "mpp", "encoder", "sections", "licence"])


def load(name_or_path: str | Path) -> Model:
    """A trained model, ready to predict: a shipped name (`list_models`) or a folder of `model.save`.

    Weights are checked against the card (hash, names, shapes); nothing is unpickled or downloaded.

    Raises FileNotFoundError for an unknown name, ValueError for a damaged or foreign folder.
    """
    from stpredict.models._base import load_weights

    folder = find_model(name_or_path)
    card = Card.read(folder / CARD)
    if card.model not in _classes():
        raise ValueError(f"{folder} holds a {card.model!r}, which this version does not know: {sorted(_classes())}.")
    model = _build(getattr(importlib.import_module(f"{__name__}.{_classes()[card.model]}"), card.model), card.config)
    load_weights(model, folder)
    model.loaded_from = str(name_or_path) if str(name_or_path) in shipped() else str(folder.resolve())
    return model


def _build(model_class: type[Model], config: Mapping[str, Any]) -> Model:
    """A model from its class and the fields of its config, with random weights."""
    config_class = model_class.config_class
    known = {f.name for f in dataclasses.fields(config_class)}
    if set(config) - known:
        raise ValueError(
            f"the card has fields that {config_class.__name__} does not know: {sorted(set(config) - known)}."
        )
    from stpredict.models._base import Recipe

    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    if "recipe" in values:
        values["recipe"] = Recipe(**values["recipe"])
    return model_class(config=config_class(**values))
