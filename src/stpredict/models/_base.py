"""The questions that every model answers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from stpredict._arguments import check_arguments
from stpredict._card import Card
from stpredict._embeddings import GeneEmbeddings
from stpredict._section import Section
from stpredict.models._fields import Recipe
from stpredict.models._folder import write_model
from stpredict.models._samples import Batch, Samples, sections_of
from stpredict.nn.pool import pool

__all__ = [
    "Model",
    "Recipe",
    "as_panel",
    "check_panel",
    "constructor",
    "first_seed",
    "new_card",
    "predict_batch",
    "weights_sha256",
]

_FIRST_SEED: ContextVar[int] = ContextVar("seed of first weights", default=0)


class Model(nn.Module, ABC):
    """A model: what it cuts from sections, what it sees in an image, and how that becomes expression.

    Concrete classes are final: nothing concrete is overridden. `genes` is the ordered panel, `mpp` the resolution at
    which the model sees, `card` its card once trained or loaded.
    """

    output: ClassVar[Literal["raster", "spots"]]
    context: Literal["shape", "section"]
    config_class: ClassVar[type]
    n_last: ClassVar[int] = 0  # last columns of the latent that are no feature: the constant of maps, places

    genes: tuple[str, ...]
    mpp: float
    config: Any
    recipe: Recipe
    stride: float  # of the latent map, in pixels; dense models only
    card: Card | None = None
    loaded_from: str | None = None  # name or folder

    def __repr__(self) -> str:
        """One line: the layers are in `named_modules`."""
        made = (
            "not trained" if self.card is None else f"trained on {', '.join(self.card.sections) or 'unnamed sections'}"
        )
        encoder = getattr(self.config, "encoder", None)
        with_encoder = f", encoder={encoder!r}" if encoder else ""
        return f"{type(self).__name__}({len(self.genes)} genes, mpp={self.mpp:g}{with_encoder}, {made})"

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every gene it can be asked for; more than the panel for models that answer by text."""
        return self.genes

    @property
    def sees_section(self) -> bool:
        """Whether the answer for a shape depends on the other shapes of its section."""
        return self.context == "section"

    @property
    def answers_text(self) -> bool:
        """Whether it can be asked for any gene that has a text."""
        return False

    def know(self, embeddings: GeneEmbeddings) -> None:
        """Take in the texts of further genes; a model with a fixed panel raises ValueError."""
        raise ValueError(f"{type(self).__name__} has a fixed panel and does not answer by text; leave out embeddings=.")

    def text_vectors(self, genes: Sequence[str]) -> NDArray[np.float32]:
        """(g, w) centred and scaled embeddings of genes, for models that answer by text."""
        raise ValueError(f"{type(self).__name__} has a fixed panel and keeps no embeddings of genes.")

    @abstractmethod
    def prepare(self, sections: Sequence[Section]) -> None:
        """Before training, from training sections only: scaler, output bias, a closed form."""

    @abstractmethod
    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """What to cut from the sections, and how to collate it into batches."""

    @abstractmethod
    def query(self, genes: Sequence[str]) -> Tensor:
        """(g, d): what the head needs to know of each gene, in the order of `genes`."""

    @abstractmethod
    def latent(self, batch: Batch) -> Tensor:
        """All that is needed of the batch's images: a map (b, d, h / stride, w / stride) or rows (n, d)."""

    @abstractmethod
    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """Values before the link; linear in `latent`, so that pooling and head can change places."""

    @abstractmethod
    def link(self, values: Tensor) -> Tensor:
        """Values in units of the target; applied once, after pooling and head."""

    @abstractmethod
    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """The training loss of a batch, for the genes of `query`."""

    @abstractmethod
    def finish(self, sections: Sequence[Section]) -> None:
        """After training: a reference bank, if the model keeps one."""

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a folder: `model.safetensors` and `card.json`.

        overwrite
            Replace a model that is there already; whoever is killed meanwhile leaves the old one or the new one.

        Raises ValueError for a model that was never trained (it has no card), FileExistsError where there is a model
        already and `overwrite` is not given.
        """
        if self.card is None:
            raise ValueError(f"this {type(self).__name__} was never trained, so it has no card. Call tl.train first.")
        folder = Path(path)
        self.card = write_model(folder, _state(self), self.card, overwrite=overwrite)
        self.loaded_from = str(folder.resolve())


def constructor[**P](init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor check its arguments, draw weights by its `seed`, and leave torch's generator as it was.

    The same arguments then give the same model, whatever was drawn before: a run is repeated by the seeds it names.
    Weights are drawn on the CPU; those that `torch.set_default_device` puts elsewhere are not of the seed.
    """

    @wraps(init)
    def made(*args: P.args, **kwargs: P.kwargs) -> None:
        given = inspect.signature(init).bind(*args, **kwargs).arguments
        check_arguments(init, given)
        seed = given.get("seed")
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(_FIRST_SEED.get() if seed is None else int(seed))
        try:
            init(*args, **kwargs)
        finally:
            generator.set_state(before)

    return made


@contextmanager
def first_seed(seed: int) -> Generator[None]:
    """Within it, models that are made without `seed` draw their first weights by this one, and so does torch."""
    torch.manual_seed(seed)
    token = _FIRST_SEED.set(seed)
    try:
        yield
    finally:
        _FIRST_SEED.reset(token)


def _state(model: Model) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def weights_sha256(model: Model) -> str:
    """The hash that `model.safetensors` has, or would have if the model were saved now."""
    return hashlib.sha256(save(_state(model))).hexdigest()


def predict_batch(model: Model, batch: Batch, query: Tensor) -> Tensor:
    """(n, g) float32 predictions in target units for the shapes of a batch; only `latent` runs under autocast."""
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
        encoder=getattr(model.config, "encoder", None),
        versions={name: importlib.metadata.version(name) for name in ("stpredict", "torch", "timm")},
        **content,
    )
