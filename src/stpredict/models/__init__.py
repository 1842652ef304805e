"""Models: one file each, loading of trained ones, and the base class of your own.

The directory is the list: a class in a new file is found, offered and tested without another line.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict._arguments import check_arguments
from stpredict._card import card_file, find_model, is_hub_name, shipped
from stpredict._card import read_card as card_of

if TYPE_CHECKING:
    import pandas as pd

    from stpredict._card import Card
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
_HERE = ("cite", "list_models", "load", "read_card")
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
        known = {each.casefold(): each for each in _public()}
        close = difflib.get_close_matches(name.casefold(), known, n=1)
        said = f"Did you mean {known[close[0]]!r}?" if close else f"It has {', '.join(_public())}."
        raise AttributeError(f"stpredict.models has no {name!r}. {said}", name=name)
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
        map; NaN for models of spots), encoder, sections (training), licence, version. Of classes: the fields of
        `ModelInfo`; None where something is not known.

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

    from stpredict._frames import ModelsFrame, named

    check_arguments(list_models, locals())
    if not trained:
        return _class_table()
    cards = {name: card_of(folder) for name, folder in shipped().items()}
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
            "version": card.version,
        }
        for name, card in cards.items()
    ]
    columns = ["name", "model", "n_genes", "mpp", "cell_um", "encoder", "sections", "licence", "version"]
    return named(pd.DataFrame(rows, columns=columns).astype({"cell_um": float}), ModelsFrame)


def _class_table() -> pd.DataFrame:
    import pandas as pd

    from stpredict._frames import ModelsFrame, named
    from stpredict.models._info import ModelInfo
    from stpredict.models._registry import known_classes

    rows = [
        {"name": name} if kind.info is None else asdict(kind.info) for name, kind in sorted(known_classes().items())
    ]
    return named(pd.DataFrame(rows, columns=[field.name for field in fields(ModelInfo)], dtype=object), ModelsFrame)


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


def read_card(name_or_path: str | Path) -> Card:
    """The card of a trained model, without its weights; nothing is built or run.

    Parameters
    ----------
    name_or_path : str | Path
        As for `load`; of a model on a hub its card alone is fetched.

    Returns
    -------
    Card
        The card.

    Raises
    ------
    FileNotFoundError
        For a model that is not there.
    ValueError
        For what is no card of this version.
    PermissionError
        For a gated or private repository.
    ConnectionError
        Where a hub cannot be reached and its cache does not have the card.
    OSError
        For whatever else a hub refuses.
    """
    check_arguments(read_card, locals())
    if not is_hub_name(name_or_path):
        return card_of(find_model(name_or_path))
    from stpredict.models._hub import find

    return card_of(find(name_or_path, weights=False)[0])


def load(name_or_path: str | Path, *, model_class: type | None = None) -> Model:
    """A trained model, ready to predict: a shipped name (`list_models`), a folder of `model.save`, or one of a hub.

    A folder is read as data, whoever made it: nothing is unpickled or downloaded, no file outside it is opened, and its
    network is compared with the weights (hash, names, shapes, types, finite values) before memory is taken for it. Its
    card names a class and never says where code lies: the class is one of this package, one that you registered
    (`register`), one that an installed package offers as an entry point of the group "stpredict.models", or
    `model_class`. What comes from a hub is read in the same way.

    Parameters
    ----------
    name_or_path : str | Path
        Name of a shipped model, folder of a saved one, or "hf://owner/name" of one on a hub, with "@revision" (branch,
        tag or commit) after it where it is not the newest. Card and weights are fetched through huggingface_hub into
        its cache, from where HF_ENDPOINT says. Where the hub cannot be reached, or with HF_HUB_OFFLINE=1, the cache
        serves alone; `loaded_from` of the model says which commit it is.
    model_class : type, optional
        The class of the model, for one of your own that is not registered; None: the class that the card names.

    Returns
    -------
    Model
        The model in evaluation mode, with its card.

    Raises
    ------
    FileNotFoundError
        For an unknown name, a folder that lacks a file, and a repository or revision that a hub does not have.
    ValueError
        For a damaged or foreign folder, and for a class that is not known or not the one of the card. Both name the
        file. For a repository that holds something else, it says what.
    PermissionError
        For a gated repository, and for a private one without leave.
    ConnectionError
        Where a hub cannot be reached and its cache does not have the model.
    OSError
        For whatever else a hub refuses.

    Examples
    --------
    >>> ridge.save("my-ridge")
    >>> stp.models.load("my-ridge").genes == ridge.genes
    True
    """
    check_arguments(load, locals())
    return _loaded(name_or_path, model_class, ask_hub=True)


def load_recorded(name_or_path: str) -> Model:
    """The model that the record of a result names; a stranger may have written it, so no hub is asked, only its cache.

    Raises as `load` does, FileNotFoundError for a model of a hub that is not in the cache.
    """
    return _loaded(name_or_path, None, ask_hub=False)


def _loaded(name_or_path: str | Path, model_class: type | None, *, ask_hub: bool) -> Model:
    from stpredict.models._ensemble import Ensemble
    from stpredict.models._folder import read_model
    from stpredict.models._hub import find, said_of_hub
    from stpredict.models._registry import class_named

    folder, loaded_from = find(name_or_path, ask_hub=ask_hub)
    with said_of_hub(loaded_from, folder):
        card = card_of(folder)
        if model_class is not None:
            kind = _checked_class(model_class, folder)
        else:
            kind = Ensemble if card.model == "Ensemble" else class_named(card.model, card_file(folder))
        model: Model = read_model(folder, kind)
    if isinstance(model, Ensemble):
        model.take_card(card)
    model.loaded_from = loaded_from
    return model


def _checked_class(model_class: type, folder: Path) -> type[Model]:
    """The class that the caller passed; ValueError where it is no model, or not the one of the card."""
    from stpredict.models._base import Model

    if not issubclass(model_class, Model):
        raise ValueError(f"model_class={model_class!r} must be a subclass of stp.models.Model.")
    saved = card_of(folder).model
    if saved != model_class.__name__:
        raise ValueError(f"{card_file(folder)}: model is {saved!r}; model_class is {model_class.__name__!r}.")
    return model_class
