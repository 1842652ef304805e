"""The models: one file each. This directory is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict._arguments import check_arguments
from stpredict._card import card_file, find_model, read_card, shipped
from stpredict._schema import shown

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

    cards = {name: read_card(folder) for name, folder in shipped().items()}
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

    A folder is read as data, whoever made it: nothing is unpickled or downloaded, no file outside it is opened, and its
    network is compared with the weights (hash, names, shapes, types, finite values) before memory is taken for it.

    Raises FileNotFoundError for an unknown name, ValueError for a damaged or foreign folder; all name the file.
    """
    from stpredict.models._folder import read_model

    check_arguments(load, locals())
    folder = find_model(name_or_path)
    card = read_card(folder)
    if card.model not in _classes():
        known = sorted(_classes())
        raise ValueError(
            f"{card_file(folder)}: model is {shown(card.model)}, which this version does not know: {known}."
        )
    kind = getattr(importlib.import_module(f"{__name__}.{_classes()[card.model]}"), card.model)
    model: Model = read_model(folder, kind)
    model.loaded_from = str(name_or_path) if str(name_or_path) in shipped() else str(folder.resolve())
    return model
