"""Ensemble: several models of one panel as one, whose answers are averaged and whose disagreement is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stpredict._card import Card
from stpredict._embeddings import GeneEmbeddings
from stpredict._schema import shown
from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor, new_card
from stpredict.models._declaration import Tiling
from stpredict.models._fields import Config
from stpredict.models._folder import config_from
from stpredict.models._registry import class_named
from stpredict.models._samples import Batch, Samples
from stpredict.models._texts import Vocabulary

MOST = 64  # members of an ensemble
PROBE = torch.linspace(0.0, 10.0, 11)  # values by which links are compared


@dataclass(frozen=True)
class EnsembleConfig(Config):
    """What makes an ensemble: its members, and what they have in common.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 1.0
        Micrometres per pixel.
    link : str, default "identity"
        Of dense members: what stands between the average of their maps and the units of the target.
    members : tuple[Mapping[str, Any], ...], default ()
        Of each: "model", the name of its class, and "config", the fields of its configuration.
    recipe : Recipe, optional
        That of the first; every member is trained by its own.
    """

    genes: tuple[str, ...]
    mpp: float = 1.0
    link: str = "identity"
    members: tuple[Mapping[str, Any], ...] = ()
    recipe: Recipe = field(default_factory=Recipe)

    def parts(self) -> Sequence[tuple[Sequence[str], Callable[[], Model]]]:
        """Its members; those whose descriptions are equal are one entry."""
        alike: dict[str, list[int]] = {}
        for i, each in enumerate(_checked(self.members)):
            alike.setdefault(repr(each), []).append(i)
        return [([f"members.{i}." for i in k], partial(_made, self.members[k[0]])) for k in alike.values()]


class Ensemble(Model):
    """Several models of one panel as one: the average of their answers, and how far they lie apart.

    Dense members are averaged before the link, where maps add up, so that layer and raster agree; members that look at
    patches are averaged in units of the target. Where `stp.tl.predict` writes a layer it also writes the spread,
    ``layers[f"{key}_sd"]``: the standard deviation over members of their values in units of the target.

    `stp.tl.train` trains the members one after the other, in place, with the seeds `seed`, `seed + 1`, ...; give each
    first weights of its own: ``Ensemble([PixNet(panel, seed=k) for k in range(3)])``. Ensembles of trained models need
    no further training.

    Parameters
    ----------
    members : Sequence[Model], default ()
        At least two models, which agree in genes (and their order), mpp and kind; dense ones also in link, stride and
        tiling.
    config : EnsembleConfig, optional
        In place of `members`: of a saved ensemble.

    Attributes
    ----------
    members
        The models, in a `torch.nn.ModuleList`.

    Raises
    ------
    ValueError
        For fewer than two members, one that is given twice or is an ensemble, and members that do not agree; it names
        in what, and which.

    Notes
    -----
    The latent of dense members is theirs side by side, then their constant channels: with ``output="latent"`` a map has
    the channels of all members.

    References
    ----------
    Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017:
    the same network from several first weights. Its members also predict a variance of their own; ours do not.

    Examples
    --------
    >>> members = [stp.models.STNet(genes, mpp=2.0, seed=k) for k in range(2)]
    >>> model = stp.models.Ensemble(members)
    >>> len(model.models)
    2
    """

    context = "shape"
    config_class: ClassVar = EnsembleConfig
    config: EnsembleConfig

    @constructor
    def __init__(self, members: Sequence[Model] = (), *, config: EnsembleConfig | None = None) -> None:
        members = list(members) if config is None else [_made(each) for each in _checked(config.members)]
        _check_members(members)
        made = _config_of(members)
        for name in () if config is None else ("genes", "mpp", "link"):
            if getattr(config, name) != getattr(made, name):
                raise ValueError(
                    f"{name} is {shown(getattr(config, name))}, and that of its members {shown(getattr(made, name))}: "
                    "an ensemble and its members have the same."
                )
        super().__init__(made if config is None else config)
        self.members = nn.ModuleList(members)
        if members[0].output == "raster":
            self.stride = members[0].stride
        if config is None:
            self.card = _card_of(self)

    def __repr__(self) -> str:
        """One line."""
        made = "not trained" if self.card is None else f"trained on {', '.join(self.card.sections) or 'no named ones'}"
        kinds = ", ".join(dict.fromkeys(type(each).__name__ for each in self.models))
        return f"Ensemble({len(self.models)} x {kinds}, {len(self.genes)} genes, mpp={self.mpp:g}, {made})"

    @property
    def models(self) -> list[Model]:
        """The members as a list."""
        return cast("list[Model]", list(self.members))

    @property
    def output(self) -> Literal["raster", "spots"]:  # type: ignore[override]
        """That of its members."""
        return self.models[0].output

    @property
    def n_auxiliary(self) -> int:  # type: ignore[override]
        """The constant channels of dense members, which come last."""
        return len(self.models) if self.output == "raster" else 0

    @property
    def tiling(self) -> Tiling | None:
        """That of its members."""
        return self.models[0].tiling

    @property
    def gene_texts(self) -> Vocabulary | None:
        """The embeddings that its members answer by; None: a fixed panel."""
        return self.models[0].gene_texts

    def add_embeddings(self, embeddings: GeneEmbeddings) -> None:
        """Give every member the embeddings of further genes."""
        for each in self.models:
            each.add_embeddings(embeddings)

    def prepare(self, sections: Sequence[Section]) -> None:
        """That of every member."""
        for each in self.models:
            each.prepare(sections)

    def finish(self, sections: Sequence[Section]) -> None:
        """That of every member."""
        for each in self.models:
            each.finish(sections)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The windows of dense members; others have samples of their own each."""
        self._check_dense("samples")
        return self.models[0].samples(sections, train=train, seed=seed)

    def channels(self, genes: Sequence[str]) -> list[str]:
        """Those of dense members."""
        return self.models[0].channels(genes) if self.output == "raster" else list(genes)

    def query(self, genes: Sequence[str]) -> Float[Tensor, "c d"]:
        """What the heads of the members need to know of these genes, so that `head` is the average of theirs."""
        rows = [each.query(genes) for each in self.models]
        if self.output != "raster":
            return torch.cat([each.flatten(1) for each in rows], dim=1)
        return _constants_last(rows) / len(rows)

    def latent(self, batch: Batch) -> Float[Tensor, "b d r c"]:
        """The maps of the members side by side, then their constant channels."""
        self._check_dense("latent")
        return _constants_last([each.latent(batch) for each in self.models])

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """The average over members before the link."""
        return latent @ query.T

    def link(self, values: Tensor) -> Tensor:
        """That of dense members; values of others are in units of the target as they are."""
        return self.models[0].link(values) if self.output == "raster" else values

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """Not one of all members together.

        Raises
        ------
        TypeError
            Always: each member is trained by its own.
        """
        raise TypeError("an Ensemble has no loss of its own; stp.tl.train trains one member after the other.")

    def spread(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "c d"]) -> Float[Tensor, "n g"]:
        """Standard deviation (n - 1) over dense members of their values in units of the target.

        Parameters
        ----------
        latent : Float[Tensor, "n d"]
            Rows of the latent, pooled inside shapes.
        query : Float[Tensor, "g d"]
            What `query` returned.

        Returns
        -------
        Float[Tensor, "n g"]
            In units of the target, at least 0.
        """
        k, gene = len(self.models), self.genes[:1]
        ends = [0, *accumulate(each.query(gene).shape[1] - 1 for each in self.models)]
        values = []
        for i, (each, (a, b)) in enumerate(zip(self.models, pairwise(ends), strict=True)):
            at = [*range(a, b), ends[-1] + i]
            values.append(each.link(each.head(latent[:, at], k * query[:, at])))
        return torch.stack(values).std(dim=0)

    def take_card(self, card: Card) -> None:
        """Give the ensemble its card, and each member one of its own that says nothing of held-out data."""
        self.card = card
        for each in self.models:
            each.card = new_card(
                each, target=card.target, n_target_genes=card.n_target_genes, sections=card.sections,
                licence=card.licence, protocol=card.protocol, domain=card.domain, about=card.about,
            )  # fmt: skip

    def _check_dense(self, what: str) -> None:
        if self.output != "raster":
            raise TypeError(f"members that look at patches have no {what} in common; ask each of ensemble.models.")


def _constants_last(parts: Sequence[Tensor]) -> Tensor:
    """Columns (or channels) of all parts side by side, the last of each at the end."""
    return torch.cat([*(part[:, :-1] for part in parts), *(part[:, -1:] for part in parts)], dim=1)


def _checked(members: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """What a config says of members; ValueError where it is not two things of each, or too many."""
    if len(members) > MOST:
        raise ValueError(f"members has {len(members)} entries; an ensemble may have {MOST}.")
    for each in members:
        if set(each) != {"model", "config"} or not isinstance(each["model"], str):
            raise ValueError(f"each of members must have 'model' (a name) and 'config', got {shown(sorted(each))}.")
        if not isinstance(each["config"], Mapping) or each["model"] == "Ensemble":
            raise ValueError(f"members: a {shown(each['model'])} with such a config cannot be one.")
    return members


def _made(spec: Mapping[str, Any]) -> Model:
    """A member as a saved ensemble's config describes it; its weights are still to come."""
    kind: Any = class_named(spec["model"], Path("members of the ensemble"))
    return kind(config=config_from(spec["config"], kind.config_class))


def _check_members(members: Sequence[Model]) -> None:
    """Raise ValueError where these models cannot be one."""
    if not 2 <= len(members) <= MOST:
        raise ValueError(f"an ensemble needs 2 to {MOST} members, got {len(members)}.")
    if len({id(each) for each in members}) < len(members):
        raise ValueError("a model is given twice as a member; make one for each, with a seed of its own.")
    if any(isinstance(each, Ensemble) for each in members):
        raise ValueError("a member is an Ensemble itself; pass its members (ensemble.models).")
    first = _common(members[0])
    for i, each in enumerate(members[1:], start=1):
        found = _common(each)
        for name in first:
            if found.get(name) != first[name]:
                raise ValueError(
                    f"members must agree in {name}: that of member 0 ({type(members[0]).__name__}) is "
                    f"{shown(first[name])}, that of member {i} ({type(each).__name__}) is {shown(found.get(name))}."
                )

    targets = {each.card.target for each in members if each.card is not None}
    if len(targets) > 1:
        raise ValueError(f"members must agree in target: they were trained on {sorted(targets)}.")


def _common(model: Model) -> dict[str, Any]:
    """What the members of an ensemble must have in common, by what a message calls it."""
    texts = None if model.gene_texts is None else {k: model.gene_texts.spec[k] for k in ("encoder", "revision")}
    found: dict[str, Any] = {
        "kind (output)": model.output,
        "genes": model.genes,
        "mpp": model.mpp,
        "texts of genes": texts,
    }
    if model.output == "raster":
        values = model.link(PROBE[:, None].expand(-1, len(model.channels(model.genes))))
        found["link"] = getattr(model.config, "link", "identity"), values.tolist()
        found["stride"] = model.stride
        found["tiling"] = model.tiling
    return found


def _config_of(members: Sequence[Model]) -> EnsembleConfig:
    first = members[0]
    link = str(getattr(first.config, "link", "identity")) if first.output == "raster" else "identity"
    parts = tuple({"model": type(each).__name__, "config": asdict(each.config)} for each in members)
    return EnsembleConfig(genes=first.genes, mpp=first.mpp, link=link, members=parts, recipe=first.recipe)


def _card_of(ensemble: Ensemble) -> Card | None:
    """The card of an ensemble of trained models; None where one is not trained. It knows of no held-out data."""
    cards = [each.card for each in ensemble.models]
    if not all(cards):
        return None
    known = cast("list[Card]", cards)
    numbers = [each.n_target_genes for each in known if each.n_target_genes is not None]
    return new_card(
        ensemble,
        target=known[0].target,
        n_target_genes=min(numbers, default=None),
        sections=tuple(dict.fromkeys(name for each in known for name in each.sections)),
        image_digests=tuple(dict.fromkeys(digest for each in known for digest in each.image_digests))
        if all(each.image_digests for each in known)
        else (),
        seed=known[0].seed,
        licence="; ".join(dict.fromkeys(each.licence for each in known)),
        protocol=known[0].protocol,
        domain=known[0].domain if all(each.domain == known[0].domain for each in known) else {},
        about={
            name: sorted({value for each in known for value in each.about.get(name, ())})
            for name in dict.fromkeys(name for each in known for name in each.about)
        },
    )
