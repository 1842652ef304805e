"""Models: one file each, loading of trained ones, and the base class of your own.

The directory is the list: a class in a new file is found, offered and tested without another line.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict._arguments import check_arguments
from stpredict._card import card_file, find_model, read_card, shipped

if TYPE_CHECKING:
    import pandas as pd

    from stpredict.models._base import Model as Model
    from stpredict.models._base import predict_batch as predict_batch
    from stpredict.models._ensemble import Ensemble as Ensemble
    from stpredict.models._fields import Config as Config
    from stpredict.models._fields import Recipe as Recipe
    from stpredict.models._info import ModelInfo as ModelInfo
    from stpredict.models._registry import register as register
    from stpredict.models._samples import Batch as Batch
    from stpredict.models._samples import Patch as Patch
    from stpredict.models._samples import PatchSamples as PatchSamples
    from stpredict.models._samples import Samples as Samples
    from stpredict.models._windows import WindowSamples as WindowSamples
    from stpredict.models.bleep import BLEEP as BLEEP
    from stpredict.models.bleep import BLEEPConfig as BLEEPConfig
    from stpredict.models.deepspot import DeepSpot as DeepSpot
    from stpredict.models.deepspot import DeepSpotConfig as DeepSpotConfig
    from stpredict.models.egn import EGN as EGN
    from stpredict.models.egn import EGNConfig as EGNConfig
    from stpredict.models.encoderridge import EncoderRidge as EncoderRidge
    from stpredict.models.encoderridge import EncoderRidgeConfig as EncoderRidgeConfig
    from stpredict.models.feast import FEAST as FEAST
    from stpredict.models.feast import FEASTConfig as FEASTConfig
    from stpredict.models.genequery import GeneQuery as GeneQuery
    from stpredict.models.genequery import GeneQueryConfig as GeneQueryConfig
    from stpredict.models.he2rna import HE2RNA as HE2RNA
    from stpredict.models.he2rna import HE2RNAConfig as HE2RNAConfig
    from stpredict.models.histogene import HisToGene as HisToGene
    from stpredict.models.histogene import HisToGeneConfig as HisToGeneConfig
    from stpredict.models.mean import Mean as Mean
    from stpredict.models.pixnet import PixNet as PixNet
    from stpredict.models.pixnet import PixNetConfig as PixNetConfig
    from stpredict.models.ridge import Ridge as Ridge
    from stpredict.models.sgn import SGN as SGN
    from stpredict.models.sgn import SGNConfig as SGNConfig
    from stpredict.models.stnet import STNet as STNet
    from stpredict.models.stnet import STNetConfig as STNetConfig
    from stpredict.models.triplex import TRIPLEX as TRIPLEX
    from stpredict.models.triplex import TRIPLEXConfig as TRIPLEXConfig

    __all__: list[str]

# for authors of models, by the file that each stands in
_SHARED = {
    "Batch": "_samples", "Config": "_fields", "Ensemble": "_ensemble", "Model": "_base", "ModelInfo": "_info",
    "Patch": "_samples", "PatchSamples": "_samples",
    "Recipe": "_fields", "Samples": "_samples", "WindowSamples": "_windows", "predict_batch": "_base",
    "register": "_registry",
}  # fmt: skip
_HERE = ("cite", "list_models", "load")
_WITHOUT_CHOICES = ("MeanConfig", "RidgeConfig")  # beside the panel and mpp, which the constructors take


def _classes() -> dict[str, type[Model]]:
    """The models of this package by name."""
    from stpredict.models._registry import own_classes

    return own_classes()


def _public() -> list[str]:
    """Every name that this namespace offers."""
    configs = {kind.config_class.__name__ for kind in _classes().values()} - set(_WITHOUT_CHOICES)
    return sorted({*_classes(), *configs, *_SHARED, *_HERE})


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _public()
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _SHARED:
        return getattr(importlib.import_module(f"{__name__}.{_SHARED[name]}"), name)
    kind = _classes().get(name.removesuffix("Config"))
    if kind is None:
        raise AttributeError(f"stpredict.models has no {name!r}; it has {_public()}")
    return kind if name == kind.__name__ else kind.config_class


def __dir__() -> list[str]:
    return _public()


def list_models(*, trained: bool = True) -> pd.DataFrame:
    """The trained models that come with the package, or the classes that can be trained, one row each.

    Parameters
    ----------
    trained : bool, default True
        Whether trained models are listed; else the classes, those that were registered among them.

    Returns
    -------
    DataFrame
        Of trained models: name (for `load`), model (class), n_genes, mpp (um per pixel), cell_um (side of a cell of the
        map; NaN for models of spots), encoder, sections (training), licence. Of classes: the fields of `ModelInfo`;
        None where something is not known.

    Raises
    ------
    ValueError
        For `trained` that is not a bool.

    Examples
    --------
    >>> "pixnet-her2st" in stp.models.list_models()["name"].tolist()
    True
    >>> "PixNet" in stp.models.list_models(trained=False)["name"].tolist()
    True
    """
    import pandas as pd

    check_arguments(list_models, locals())
    if not trained:
        return _class_table()
    cards = {name: read_card(folder) for name, folder in shipped().items()}
    rows = [
        {
            "name": name,
            "model": card.model,
            "n_genes": len(card.genes),
            "mpp": card.mpp,
            "cell_um": card.cell_um,
            "encoder": card.encoder,
            "sections": ", ".join(card.sections),
            "licence": card.licence,
        }
        for name, card in cards.items()
    ]
    columns = ["name", "model", "n_genes", "mpp", "cell_um", "encoder", "sections", "licence"]
    return pd.DataFrame(rows, columns=columns).astype({"cell_um": float})


def _class_table() -> pd.DataFrame:
    import pandas as pd

    from stpredict.models._info import ModelInfo
    from stpredict.models._registry import known_classes

    rows = [
        {"name": name} if kind.info is None else asdict(kind.info) for name, kind in sorted(known_classes().items())
    ]
    return pd.DataFrame(rows, columns=[field.name for field in fields(ModelInfo)], dtype=object)


def cite(name: str) -> str:
    """A BibTeX entry of the paper behind a model class.

    Parameters
    ----------
    name : str
        Of the class, such as "PixNet".

    Returns
    -------
    str
        The text of the entry, with what is known of the paper.

    Raises
    ------
    ValueError
        For a name that no class has, and for a class without a paper.

    Examples
    --------
    >>> print(stp.models.cite("PixNet").splitlines()[0])
    @misc{pixnet2026,
    """
    from stpredict.models._registry import known_classes

    check_arguments(cite, locals())
    known = known_classes()
    if name not in known:
        raise ValueError(f"name={name!r} is no model class; there are {sorted(known)}.")
    info = known[name].info
    if info is None:
        raise ValueError(f"{name} says nothing of its source; set info = stp.models.ModelInfo(...) in its class.")
    return info.bibtex()


def load(name_or_path: str | Path, *, model_class: type | None = None) -> Model:
    """A trained model, ready to predict: a shipped name (`list_models`) or a folder of `model.save`.

    A folder is read as data, whoever made it: nothing is unpickled or downloaded, no file outside it is opened, and its
    network is compared with the weights (hash, names, shapes, types, finite values) before memory is taken for it. Its
    card names a class and never says where code lies: the class is one of this package, one that you registered
    (`register`), one that an installed package offers as an entry point of the group "stpredict.models", or
    `model_class`.

    Parameters
    ----------
    name_or_path : str | Path
        Name of a shipped model, or folder of a saved one.
    model_class : type, optional
        The class of the model, for one of your own that is not registered; None: the class that the card names.

    Returns
    -------
    Model
        The model in evaluation mode, with its card.

    Raises
    ------
    FileNotFoundError
        For an unknown name, and for a folder that lacks a file.
    ValueError
        For a damaged or foreign folder, and for a class that is not known or not the one of the card. Both name the
        file.

    Examples
    --------
    >>> ridge.save("my-ridge")
    >>> stp.models.load("my-ridge").genes == ridge.genes
    True
    """
    from stpredict.models._ensemble import Ensemble
    from stpredict.models._folder import read_model
    from stpredict.models._registry import class_named

    check_arguments(load, locals())
    folder = find_model(name_or_path)
    card = read_card(folder)
    if model_class is not None:
        kind = _checked_class(model_class, folder)
    else:
        kind = Ensemble if card.model == "Ensemble" else class_named(card.model, card_file(folder))
    model: Model = read_model(folder, kind)
    if isinstance(model, Ensemble):
        model.take_card(card)
    model.loaded_from = str(name_or_path) if str(name_or_path) in shipped() else str(folder.resolve())
    return model


def _checked_class(model_class: type, folder: Path) -> type[Model]:
    """The class that the caller passed; ValueError where it is no model, or not the one of the card."""
    from stpredict.models._base import Model

    if not issubclass(model_class, Model):
        raise ValueError(f"model_class={model_class!r} must be a subclass of stp.models.Model.")
    saved = read_card(folder).model
    if saved != model_class.__name__:
        raise ValueError(f"{card_file(folder)}: model is {saved!r}; model_class is {model_class.__name__!r}.")
    return model_class
