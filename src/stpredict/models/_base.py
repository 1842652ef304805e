"""Interface and base class of all models."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict import _html
from stpredict._arguments import check_arguments
from stpredict._card import FIRST_VERSION, Card, check_version, is_hub_name
from stpredict._embeddings import GeneEmbeddings
from stpredict._messages import warn
from stpredict._section import Section
from stpredict.models._constructor import constructor, first_seed
from stpredict.models._declaration import Tiling, check_declaration
from stpredict.models._fields import Config, Recipe
from stpredict.models._folder import write_model
from stpredict.models._hub import push
from stpredict.models._info import ModelInfo
from stpredict.models._samples import Batch, Samples, sections_of
from stpredict.models._texts import Vocabulary
from stpredict.nn.pool import pool
from stpredict.nn.state import sha256_of

__all__ = [
    "Model",
    "Recipe",
    "Tiling",
    "as_panel",
    "check_panel",
    "constructor",
    "first_seed",
    "new_card",
    "predict_batch",
    "weights_sha256",
]


class Model(nn.Module, ABC):
    """A model: what it cuts from sections, what it sees in an image, and how that becomes expression.

    Concrete classes are final. What one must declare is checked when it is made; a class from which several are to be
    made names ABC among its bases.

    Parameters
    ----------
    config : Config
        Of the class `config_class`; `genes`, `mpp` and `recipe` are taken from it.

    Attributes
    ----------
    output
        "spots": a latent for every shape; "raster": a latent map, pooled inside shapes.
    context
        What an answer depends on. "shape": on the image of its own shape. "neighbours": on the other shapes of the
        section too, which its samples carry in `Batch.extra`; the head takes shapes one by one. "section": the head
        takes all shapes of a section together, so a batch holds whole sections.
    config_class
        Frozen dataclass of all choices; its fields are what a card keeps.
    n_auxiliary
        Last columns of the latent that are no feature: the constant of maps, places.
    info
        Where the method comes from.
    genes, mpp, recipe
        Ordered panel; micrometres per pixel at which the model sees; how it is trained.
    stride
        Of the latent map, in pixels; dense models only.
    card, loaded_from
        Card once trained or loaded; name or folder once saved or loaded. Of a model of a hub the name says the commit.

    Raises
    ------
    ValueError
        For a panel that is empty or names a gene twice.
    TypeError
        When a class is made that lacks something; it says what to write.
    """

    output: ClassVar[Literal["raster", "spots"]]
    context: Literal["shape", "neighbours", "section"]
    config_class: ClassVar[type[Config]]
    n_auxiliary: ClassVar[int] = 0
    info: ClassVar[ModelInfo | None] = None

    genes: tuple[str, ...]
    mpp: float
    config: Config
    recipe: Recipe
    stride: float
    card: Card | None = None
    loaded_from: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_declaration(cls, Model)

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_panel(config.genes, type(self).__name__)
        self.config = config
        self.genes, self.mpp, self.recipe = config.genes, config.mpp, config.recipe
        self._gene_index = {gene: i for i, gene in enumerate(config.genes)}

    def __repr__(self) -> str:
        """One line: the layers are in `named_modules`."""
        made = (
            "not trained" if self.card is None else f"trained on {', '.join(self.card.sections) or 'unnamed sections'}"
        )
        encoder = getattr(self.config, "encoder", None)
        with_encoder = f", encoder={encoder!r}" if encoder else ""
        with_cell = "" if self.cell_um is None else f", cell_um={self.cell_um:g}"
        return f"{type(self).__name__}({len(self.genes)} genes, mpp={self.mpp:g}{with_cell}{with_encoder}, {made})"

    def _repr_html_(self) -> str:
        """The line of `repr`, and the card once there is one; else the genes, folded where they are many."""
        return _html.block(repr(self), _html.genes(self.genes) if self.card is None else self.card._repr_html_())

    @property
    def cell_um(self) -> float | None:
        """Side of a cell of the map in micrometres: what is finer is not told apart; None for a model of spots."""
        return float(self.stride * self.mpp) if self.output == "raster" else None

    @property
    def gene_texts(self) -> Vocabulary | None:
        """The embeddings of genes that a text-queried model answers by; None: a fixed panel."""
        return None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every gene it can be asked for; more than the panel for models that answer by text."""
        return self.genes if self.gene_texts is None else self.gene_texts.known

    @property
    def uses_section_context(self) -> bool:
        """Whether the answer for a shape depends on the other shapes of its section."""
        return self.context != "shape"

    @property
    def is_text_queried(self) -> bool:
        """Whether it can be asked for any gene that has a text."""
        return self.gene_texts is not None

    @property
    def tiling(self) -> Tiling | None:
        """How a dense model goes over an image; None for a model of spots."""
        if self.output != "raster":
            return None
        return Tiling(**{field.name: getattr(self.config, field.name) for field in fields(Tiling)})

    def gene_index(self, genes: Sequence[str]) -> list[int]:
        """Where these genes stand in the panel.

        Parameters
        ----------
        genes : Sequence[str]
            Names.

        Returns
        -------
        list[int]
            Positions, in the order of `genes`.

        Raises
        ------
        ValueError
            For genes that are not in it.
        """
        missing = [gene for gene in genes if gene not in self._gene_index]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(genes)} genes are not in this {type(self).__name__}'s panel: {missing[:5]}. "
                "Choose from model.genes, or use a text-queried model."
            )
        return [self._gene_index[gene] for gene in genes]

    def gene_index_or_unseen(self, genes: Sequence[str], device: torch.device) -> Int[Tensor, " g"]:
        """Where these genes stand in the panel, those that are not in it included.

        Parameters
        ----------
        genes : Sequence[str]
            Names.
        device : torch.device
            Where the positions are put.

        Returns
        -------
        Int[Tensor, " g"]
            Positions, in the order of `genes`; -1 for those that are not in the panel.
        """
        return torch.tensor([self._gene_index.get(gene, -1) for gene in genes], device=device)

    def add_embeddings(self, embeddings: GeneEmbeddings) -> None:
        """Take in the texts of further genes, for this process; see `Vocabulary.add_embeddings`.

        Parameters
        ----------
        embeddings : GeneEmbeddings
            Embeddings of these genes, of the model's own text encoder.

        Raises
        ------
        ValueError
            For a model with a fixed panel, and for embeddings of another space than the model's.
        """
        self._known_texts("does not answer by text; leave out embeddings=").add_embeddings(embeddings)

    def text_vectors(self, genes: Sequence[str]) -> NDArray[np.float32]:
        """Centred and scaled embeddings of genes, for models that answer by text.

        Parameters
        ----------
        genes : Sequence[str]
            Names.

        Returns
        -------
        ndarray of float32
            (g, w) vectors, in the order of `genes`.

        Raises
        ------
        ValueError
            For a model with a fixed panel, and for genes without an embedding.
        """
        return self._known_texts("keeps no embeddings of genes").rows(genes).detach().cpu().numpy()

    def _known_texts(self, otherwise: str) -> Vocabulary:
        if self.gene_texts is None:
            raise ValueError(f"{type(self).__name__} has a fixed panel and {otherwise}.")
        return self.gene_texts

    def know(self, embeddings: GeneEmbeddings) -> None:
        """`add_embeddings` by its old name, which goes in the next version.

        Parameters
        ----------
        embeddings : GeneEmbeddings
            As for `add_embeddings`.

        Raises
        ------
        ValueError
            Where `add_embeddings` raises it.
        """
        _warn_renamed("know", "add_embeddings")
        self.add_embeddings(embeddings)

    @property
    def answers_text(self) -> bool:
        """`is_text_queried` by its old name."""
        _warn_renamed("answers_text", "is_text_queried")
        return self.is_text_queried

    @property
    def sees_section(self) -> bool:
        """`uses_section_context` by its old name."""
        _warn_renamed("sees_section", "uses_section_context")
        return self.uses_section_context

    @abstractmethod
    def prepare(self, sections: Sequence[Section]) -> None:
        """Before training, from training sections only: scaler, output bias, a closed form.

        Parameters
        ----------
        sections : Sequence[Section]
            Training sections.
        """

    @abstractmethod
    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """What to cut from the sections, and how to collate it into batches.

        Parameters
        ----------
        sections : Sequence[Section]
            What is cut.
        train : bool
            Whether for training, with random draws, or for prediction.
        seed : int, default 0
            Of the random draws.

        Returns
        -------
        Samples
            The samples.
        """

    @abstractmethod
    def query(self, genes: Sequence[str]) -> Tensor:
        """What the head needs to know of each gene.

        Parameters
        ----------
        genes : Sequence[str]
            Names.

        Returns
        -------
        Tensor
            (g, d), in the order of `genes`.
        """

    def channels(self, genes: Sequence[str]) -> list[str]:
        """What the columns are that `head` gives for these genes: they alone, unless overridden.

        A link may need more: of `PixNetConfig.link` = "counts" the last column is the rate of all RNA, `__total__`.
        Rasters keep them all, since they are read before the link.

        Parameters
        ----------
        genes : Sequence[str]
            Names.

        Returns
        -------
        list[str]
            Names of the c columns, those of `genes` first.
        """
        return list(genes)

    @abstractmethod
    def latent(self, batch: Batch) -> Tensor:
        """All that is needed of the batch's images.

        Parameters
        ----------
        batch : Batch
            Images with the shapes in them.

        Returns
        -------
        Tensor
            A map (b, d, h / stride, w / stride), or rows (n, d).
        """

    @abstractmethod
    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """Values before the link, a column for each of `channels`.

        Of a dense model they are linear in `latent`, so that pooling and head can change places. A model with
        ``context="section"`` is given all rows of a section and may compute any function of them.

        Parameters
        ----------
        latent : Float[Tensor, "n d"]
            Rows of the latent, pooled inside shapes for dense models.
        query : Float[Tensor, "g q"]
            What `query` returned.

        Returns
        -------
        Float[Tensor, "n g"]
            Values before the link.
        """

    def link(self, values: Tensor) -> Tensor:
        """Values in units of the target; applied once, after pooling and head. The head's own, unless overridden.

        Parameters
        ----------
        values : Tensor
            What `head` returned.

        Returns
        -------
        Tensor
            Values of the same shape.
        """
        return values

    @abstractmethod
    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """The training loss of a batch, for the genes of `query`.

        Parameters
        ----------
        batch : Batch
            Images with measured shapes.
        query : Tensor
            What `query` returned.

        Returns
        -------
        Tensor
            A scalar.
        """

    def finish(self, sections: Sequence[Section]) -> None:
        """After training: a reference bank, if the model keeps one. Nothing, unless overridden.

        Parameters
        ----------
        sections : Sequence[Section]
            Training sections.
        """

    def choose(self, predict: Callable[[], NDArray[np.float32]], score: Callable[[NDArray[np.float32]], float]) -> None:
        """After `finish`, where shapes were held out: settle what they decide. Nothing, unless overridden.

        Parameters
        ----------
        predict : Callable[[], ndarray of float32]
            Predictions (n, g) of the held-out shapes by the model as it is when this is called, in units of the target.
        score : Callable[[ndarray of float32], float]
            Of predictions, once there were some: the mean over genes of the correlation with what was measured; NaN
            where there is none.
        """

    @property
    def revision(self) -> str | None:
        """Commit of the hub that it was loaded from or pushed as; None for a model of no hub."""
        name = self.loaded_from
        return name.rpartition("@")[2] if name is not None and is_hub_name(name) else None

    def save(self, path: str | Path, *, overwrite: bool = False, version: str | None = None) -> None:
        """Write the model to a folder: `model.safetensors`, `card.json`, and `README.md`, the card for reading.

        Parameters
        ----------
        path : str | Path
            The folder.
        overwrite : bool, default False
            Replace a model that is there already; whoever is killed meanwhile leaves the old one or the new one.
        version : str, optional
            Version of the model, such as "1.2.0"; None: that of its card, which is "0.1.0" after training.

        Raises
        ------
        ValueError
            For a model that was never trained (it has no card), for what is no version, and for an empty path.
        FileExistsError
            Where there is a model already and `overwrite` is not given, and where the path is a file.
        """
        check_arguments(Model.save, locals())
        folder = Path(path)
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file, and a model is a folder. Pass another path.")
        card = self._card_to_save(version)
        self.card = write_model(folder, _state(self), card, overwrite=overwrite, info=self.info)
        self.loaded_from = str(folder.resolve())

    def push_to_hub(
        self, repo_id: str, *, revision: str | None = None, private: bool = True, version: str | None = None
    ) -> str:
        """Put the model on a hub, with its card: one commit of what `save` writes.

        The hub is that of huggingface_hub, or where the environment variable HF_ENDPOINT says. The account is that of
        `hf auth login`, or of HF_TOKEN.

        Parameters
        ----------
        repo_id : str
            "owner/name" of the repository; it is made where it does not exist.
        revision : str, optional
            Branch that gets the commit, made where it does not exist; None: "main".
        private : bool, default True
            Whether a repository that is made is private; one that exists stays as it is. A model may hold what it was
            trained on (the reference bank of `BLEEP`, say), and what was public once cannot be called back.
        version : str, optional
            As for `save`.

        Returns
        -------
        str
            Name of exactly this model, "hf://owner/name@commit", for `stp.models.load`, `stp.tl.predict` and so on.

        Raises
        ------
        ValueError
            For a model that was never trained, and for what is no name, branch or version.
        PermissionError
            Where nobody is logged in, and where the account may not write there.
        ConnectionError
            Where the hub cannot be reached, or HF_HUB_OFFLINE is set.
        OSError
            For whatever else the hub refuses.
        """
        check_arguments(Model.push_to_hub, locals())
        card = self._card_to_save(version)
        self.card, self.loaded_from = push(
            repo_id, _state(self), card, revision=revision, private=private, info=self.info
        )
        return self.loaded_from

    def _card_to_save(self, version: str | None) -> Card:
        if self.card is None:
            raise ValueError(f"this {type(self).__name__} was never trained, so it has no card. Call tl.train first.")
        if version is None:
            return self.card
        check_version(version)
        return replace(self.card, version=version)


def _warn_renamed(old: str, new: str) -> None:
    warn(
        f"Model.{old} is now called Model.{new}; the old name goes in the next version.",
        DeprecationWarning,
    )


def _state(model: Model) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def weights_sha256(model: Model) -> str:
    """The hash that `model.safetensors` has, or would have if the model were saved now."""
    return sha256_of(_state(model))


def predict_batch(model: Model, batch: Batch, query: Tensor) -> Tensor:
    """Predictions in target units for the shapes of a batch; only `latent` runs under autocast.

    Parameters
    ----------
    model : Model
        The model.
    batch : Batch
        Images with the shapes in them.
    query : Tensor
        What `model.query` returned.

    Returns
    -------
    Tensor
        (n, g) float32, in target units.
    """
    latent = model.latent(batch).float()
    rows = latent if batch.pooling is None else pool(latent, batch.pooling)
    whole = sections_of(batch) if model.context == "section" else [slice(None)]
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cat([model.link(model.head(rows[part], query.float())) for part in whole])


def as_panel(genes: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises ValueError for a single name in place of a list."""
    if isinstance(genes, str):
        raise ValueError(f"a panel is a list of gene names, got {genes!r}. Pass [{genes!r}].")
    return tuple(genes)


def check_panel(genes: Sequence[str], model: str) -> None:
    """Raise ValueError for a panel that is empty or names a gene twice, and for a single name."""
    genes = as_panel(genes)
    if not genes or len(set(genes)) < len(genes):
        raise ValueError(
            f"{model} needs a panel of distinct genes, got {len(genes)} names of which {len(set(genes))} are distinct. "
            "Choose one with stp.pp.gene_panel."
        )


def new_card(model: Model, **content: Any) -> Card:
    """The card of a model as it stands, with `content` filled in by whoever trained it."""
    return Card(
        model=type(model).__name__,
        config=asdict(model.config),
        genes=model.genes,
        mpp=model.mpp,
        cell_um=model.cell_um,
        encoder=getattr(model.config, "encoder", None),
        versions={name: importlib.metadata.version(name) for name in ("stpredict", "torch", "timm")},
        version=FIRST_VERSION,
        **content,
    )
