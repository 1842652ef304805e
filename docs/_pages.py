"""Parts of the pages that are made from the package: what `models.list_models` and the cards say."""

from __future__ import annotations

import re
from pathlib import Path

import stpredict as stp
from stpredict.models._readme import body


def classes() -> str:
    """A table of all model classes of the package: paper, code, and where the answer comes from; nulls last."""
    found = [getattr(stp.models, name).info for name in stp.models.list_models(trained=False)["name"]]
    rows = ["| model | paper | the authors' code | where the answer comes from |", "|---|---|---|---|"]
    for info in sorted(found, key=lambda each: (not each.paper, each.name.lower())):
        code = f"[code]({info.code})" + (f", {info.code_licence}" if info.code_licence else "") if info.code else ""
        rows.append(f"| `{info.name}` | {info.paper or 'none: a null'} | {code} | {info.task} |")
    return "\n".join(rows) + "\n"


def shipped() -> str:
    """A table of the trained models that come with the package, and the card of each, folded."""
    table = stp.models.list_models()
    rows = [
        "| name | version | model | genes | trained on | species, organ | licence |",
        "|---|---|---|---|---|---|---|",
    ]
    cards = []
    for name in table["name"]:
        card = stp.models.read_card(name)
        about = ", ".join((*card.about.get("species", ()), *card.about.get("organ", ())))
        rows.append(
            f"| `{name}` | {card.version} | {card.model} | {len(card.genes)} | {', '.join(card.sections)} | {about} | "
            f"{card.licence} |"
        )
        text = body(card, info=getattr(stp.models, card.model).info, name=name)
        lower = re.sub(r"^(#+) ", r"##\1 ", text, flags=re.MULTILINE).replace("\n#### ", f"\n#### {name}: ")
        cards.append(re.sub(r"^### .*$", f"### The card of {name}", lower, count=1, flags=re.MULTILINE))
    return "\n".join(rows) + "\n\n" + "\n\n".join(cards) + "\n"


def write(folder: Path) -> None:
    """Write both where `models.md` includes them."""
    folder.mkdir(exist_ok=True)
    for name, text in (("classes.inc", classes()), ("shipped.inc", shipped())):
        (folder / name).write_text(text, encoding="utf-8")
