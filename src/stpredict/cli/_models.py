"""`stpredict models`: list the trained models that come with the package, or print the card of one."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

import stpredict as stp
from stpredict._card import Card
from stpredict.cli._options import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH = 100


def models(
    model: Annotated[
        str | None, Parameter(help="Name or folder of a model, or hf://owner/name, to read its card.")
    ] = None,
    /,
) -> None:
    """List the trained models that come with the package, or print the card of one."""
    if model is not None:
        print(card_text(stp.models.read_card(model)))
        return
    table = stp.models.list_models()
    if table.empty:
        print("No trained model comes with this version; train one with `stpredict train`.")
    else:
        print(shown(table.set_index("name")))


def card_text(card: Card) -> str:
    """A card for reading: what the model is, what it saw, how far it can be trusted, and its genes."""
    known = sorted(((v, k) for k, v in card.val_pcc.items() if v is not None), reverse=True)
    quality = {"measured on": card.val_source or "nothing was held out"}
    if known:
        quality |= {
            "mean PCC": f"{sum(v for v, _ in known) / len(known):.3f} over {len(known)} genes",
            "best": _gene_list(known[:5]),
            "worst": _gene_list(known[-5:]),
        }
    cell = "" if card.cell_um is None else f"{card.cell_um:g} um a side"
    target = card.target + (f" over {card.n_target_genes} genes" if card.n_target_genes else "")
    texts = {
        "model": card.model, "encoder": card.encoder, "mpp": f"{card.mpp:g} um per pixel",
        "cell": cell, "target": target,
        "sections": ", ".join(card.sections), "licence": card.licence, "seed": card.seed, "protocol": card.protocol,
        "version": card.version,
        "made with": ", ".join(f"{k} {v}" for k, v in card.versions.items()), "sha256": card.weights_sha256,
    }  # fmt: skip
    hidden = {"genes", "mpp", "encoder"}
    config = {k: v for k, v in card.config.items() if k not in hidden}
    parts = [_block("Card", texts), _block("Reliability", quality), _block("Scores", card.scores)]
    genes = textwrap.fill(" ".join(card.genes), WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n\n".join([*filter(None, parts), _block("Config", config), f"Genes ({len(card.genes)})\n{genes}"])


def _gene_list(scored: list[tuple[float, str]]) -> str:
    return ", ".join(f"{gene} {value:.2f}" for value, gene in scored)


def _block(title: str, content: Mapping[str, Any]) -> str:
    """A heading and a line for each entry, nested entries indented; empty for no content."""
    return "\n".join([title, *_lines(content, "  ")]) if content else ""


def _lines(content: Mapping[str, Any], indent: str) -> list[str]:
    width = max((len(str(key)) for key in content), default=0) + 2
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        else:
            text = f"{value:.4g}" if isinstance(value, float) else "-" if value in (None, "", {}) else str(value)
            lines.append(f"{indent}{str(key):<{width}}{text}")
    return lines
