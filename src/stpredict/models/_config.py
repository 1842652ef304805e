"""Resolve `config=`, a panel and `mpp=` into the configuration of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from stpredict._embeddings import GeneEmbeddings
from stpredict.models._base import as_panel, check_panel
from stpredict.models._fields import EncoderConfig
from stpredict.models._texts import text_spec
from stpredict.nn.architecture import described

CALLER_FIELDS: Mapping[str, Any] = {"genes": (), "vocabulary": (), "text": {}}  # what only the caller can say


def resolve_config[C: EncoderConfig](
    config: str | C,
    kind: type[C],
    published: Mapping[str, Any],
    genes: Sequence[str],
    embeddings: GeneEmbeddings | None = None,
    *,
    small: Mapping[str, Any] | None = None,
    **given: Any,
) -> C:
    """A named configuration or the caller's own, with what else was given put into it.

    What a hub says of an encoder that it describes becomes part of the configuration, see `described`.

    Parameters
    ----------
    kind : type[C]
        The dataclass of the model, "Config" after its name.
    published, small
        Where the named configurations differ from its defaults.
    given
        Further values of fields; None leaves the configuration's.

    Raises
    ------
    ValueError
        For an unknown name, a field of the wrong type or range, an empty or duplicated panel, and an encoder that is to
        be trained at a rate of 0.
    ConnectionError
        Where a hub has to be asked and cannot be.
    """
    named: dict[str, Mapping[str, Any]] = {"small": small or {}, "published": published}
    if isinstance(config, str):
        if config not in named:
            raise ValueError(f"config={config!r} is unknown. Choose one of {sorted(named)}, or pass a {kind.__name__}.")
        config = kind(**{**_blank(kind), **named[config]})
    if not isinstance(config, kind):
        raise ValueError(f"config={config!r} must be one of {sorted(named)}, or a {kind.__name__}.")
    values = {"genes": as_panel(genes) or None, **given}
    if embeddings is not None:
        values |= {"vocabulary": embeddings.genes, "text": text_spec(embeddings)}
    made = replace(config, **{key: value for key, value in values.items() if value is not None})
    if made.encoder is not None:
        colours = made.encoder_mean, made.encoder_std
        made = replace(made, **described(made.encoder, made.encoder_kwargs, *colours))
    check_panel(made.genes, kind.__name__.removesuffix("Config"))
    if "text" in _blank(kind) and not getattr(made, "text", None):
        raise ValueError(
            f"{kind.__name__.removesuffix('Config')} answers by text: pass embeddings=stp.tl.embed_genes("
            "stp.pp.describe_genes(genes, source=...), encoder=...)."
        )
    silent = sorted(set(made.genes) - set(getattr(made, "vocabulary", ()))) if getattr(made, "text", None) else []
    if silent and embeddings is None:
        raise ValueError(f"genes that the vocabulary lacks: {silent[:5]} ({len(silent)}); each needs its embedding.")
    if made.encoder is not None and not getattr(made, "frozen", True) and made.recipe.encoder_lr == 0:
        raise ValueError("frozen=False trains the encoder, but the recipe's encoder_lr is 0; give it a rate.")
    return made


def _blank(kind: type) -> dict[str, Any]:
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    return {name: CALLER_FIELDS[name] for name in required}
