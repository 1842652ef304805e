"""README of a saved model: its card for a reader, with the metadata block that a hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from stpredict._card import Card
from stpredict.models._info import ModelInfo

# licences as a hub names them; any other text is handed on as it is
LICENCES = (
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "mit",
)  # fmt: skip
ABOUT = ("species", "organ", "technology", "stain", "patient")  # what a card may say of its training sections
COMPANY = {"val_pcc": "this model", "ridge_pcc": "Ridge on colour (a null)", "ceiling": "ceiling of the measurement"}
SCORE_NAMES = {
    "pcc_f": "PCC@F",
    "pcc_s": "PCC@S",
    "pcc_m": "PCC@M",
    "heg": "PCC@HEG",
    "hvg": "PCC@HVG",
    "mse": "MSE",
    "mae": "MAE",
}
MOST_GENES = 12  # named at either end
LITTLE = 0.1  # a correlation under which a gene was not predicted


def readme(card: Card, *, info: ModelInfo | None = None, name: str | None = None) -> str:
    """The README of a model, from its card: use, data, scores beside nulls, limits, licence, citation.

    Parameters
    ----------
    card : Card
        The card.
    info : ModelInfo, optional
        Of its class: paper and code.
    name : str, optional
        By which it is loaded; None: a folder.

    Returns
    -------
    str
        Markdown, after a block of YAML.
    """
    licence = card.licence.strip()
    known = licence.lower() in LICENCES
    data = ModelCardData(
        library_name="stpredict",
        license=licence.lower() if known else None if licence == "not stated" else "other",
        license_name=None if known or licence == "not stated" else licence,
        tags=["stpredict", "spatial-transcriptomics", "histology", "gene-expression", "scverse", card.model.lower()],
        model_version=card.version or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body(card, info=info, name=name)}")).rstrip() + "\n"


def body(card: Card, *, info: ModelInfo | None = None, name: str | None = None) -> str:
    """The README without its metadata block, as `readme` makes it."""
    parts = [_head(card), _use(name), _data(card), _scores(card), _limits(card), _terms(card, info)]
    return "\n\n".join(parts)


def _head(card: Card) -> str:
    cell = "" if card.cell_um is None else f", a value every {card.cell_um:g} µm"
    encoder = f" with the encoder `{_plain(card.encoder)}`" if card.encoder else ""
    version = f"Version {_plain(card.version)}" if card.version else "Version not stated"
    return (
        f"# {_plain(card.model)} for {len(card.genes)} genes\n\n"
        f"Predicts spatially resolved gene expression from an H&E image: a {_plain(card.model)}{encoder}, which sees "
        f"{card.mpp:g} µm per pixel{cell}, in units of `{_plain(card.target)}`. {version}, weights "
        f"`{str(card.weights_sha256)[:12]}`. This page was written from `card.json`, which has everything."
    )


def _use(name: str | None) -> str:
    model = f'"{name or "path/of/this/folder"}"'
    return (
        "## Use\n\n```python\nimport stpredict as stp\n\n"
        'sdata = stp.io.read_visium("slide/")  # or any SpatialData with an H&E image\n'
        f"stp.tl.predict(sdata, {model})\n"
        f"stp.models.read_card({model})  # the whole card, without the weights\n```"
    )


def _data(card: Card) -> str:
    rows = [("sections", ", ".join(card.sections) or "not stated")]
    rows += [(name, ", ".join(card.about.get(name, ())) or "not stated") for name in ABOUT]
    if card.min_counts:
        counts = sorted(set(card.min_counts))
        rows.append(("counts that a shape needed", ", ".join(f"{value:g}" for value in counts)))
    if card.n_target_genes:
        rows.append(("genes behind the target", f"{card.n_target_genes:,}"))
    return f"## Data it was trained on\n\n{table(['', ''], rows)}\n\nGenes: {gene_line(card.genes)}"


def _scores(card: Card) -> str:
    source = card.val_source or "nothing was held out"
    out = ["## Scores, beside nulls", f"Held out: {_plain(source)}. Protocol `{_plain(card.protocol)}`."]
    per_gene = {"val_pcc": card.val_pcc, **{k: v for k, v in card.held_out.items() if k in COMPANY}}
    rows = [
        (label, f"{sum(values) / len(values):.3f}", str(len(values)))
        for field, label in COMPANY.items()
        if (values := [value for value in per_gene.get(field, {}).values() if value is not None])
    ]
    if rows:
        out.append(table(["correlation on held-out shapes", "mean over genes", "genes"], rows))
    ranked = sorted(((v, k) for k, v in card.val_pcc.items() if v is not None), reverse=True)
    if ranked:
        out.append(f"Best predicted: {_ranked(ranked[:5])}. Worst: {_ranked(ranked[-5:])}.")
    out += _score_tables(card.scores)
    if len(out) == 2:
        out.append("**No scores come with this model.** Measure it (`stp.tl.evaluate`) before relying on it.")
    return "\n\n".join(out)


def _score_tables(scores: Mapping[str, Any]) -> Iterator[str]:
    """What a card keeps of each fold or section: a table with a row for each model; what has another form, as it is."""
    rows, other = [], []
    for fold, of in scores.items():
        if not isinstance(of, Mapping):
            other.append((fold, _number(of)))
            continue
        ceiling = of.get("ceiling")
        for model, values in of.items():
            if isinstance(values, Mapping):
                rows.append((fold, model, *(_number(values.get(key)) for key in SCORE_NAMES), _number(ceiling)))
            elif model != "ceiling":
                other.append((f"{fold}, {model}", _number(values)))
    if rows:
        yield table(["", "model", *SCORE_NAMES.values(), "ceiling"], rows)
    if other:
        yield table(["", ""], other)


def _limits(card: Card) -> str:
    patients, said = card.about.get("patient", ()), []
    if len(patients) == 1:
        said.append("It saw one patient. How it does on another was not measured by its training.")
    elif not patients:
        said.append("Its card does not say how many patients it saw.")
    weak = [gene for gene, value in card.val_pcc.items() if value is not None and value < LITTLE]
    if weak:
        said.append(
            f"{len(weak)} of {len(card.val_pcc)} genes were not predicted on held-out shapes (under {LITTLE:g})."
        )
    lacking = [name for name in ABOUT[:4] if not card.about.get(name)]
    if lacking:
        said.append(f"Not stated of its training sections: {', '.join(lacking)}.")
    said.append("Another tissue, stain, scanner or species than those above: expect less, and measure it.")
    if card.cell_um is not None:
        said.append(f"Its map tells apart nothing finer than {card.cell_um:g} µm.")
    said.append("Predicted expression is a hypothesis about tissue, not a measurement, and not for clinical use.")
    return "## Limits\n\n" + "\n".join(f"- {_plain(each)}" for each in said)


def _terms(card: Card, info: ModelInfo | None) -> str:
    out = [f"## Licence\n\n{_plain(card.licence)}"]
    versions = ", ".join(f"{_plain(name)} {_plain(value)}" for name, value in card.versions.items())
    if info is not None and info.title is not None:
        out.append(f"## Citation\n\nThe method:\n\n```bibtex\n{info.bibtex()}\n```")
    else:
        out.append("## Citation\n\nThe method has no paper; cite stpredict, and the data it was trained on.")
    return "\n\n".join([*out, f"Made with {versions}." if versions else ""]).rstrip()


def _ranked(ranked: Sequence[tuple[float, str]]) -> str:
    return ", ".join(f"{_plain(gene)} {value:.2f}" for value, gene in ranked)


def gene_line(genes: Sequence[str]) -> str:
    """A list of genes, folded where it is long."""
    named = ", ".join(map(_plain, genes[:MOST_GENES]))
    if len(genes) <= MOST_GENES:
        return named
    rest = ", ".join(map(_plain, genes))
    return f"{named}, ...\n\n<details><summary>all {len(genes)}</summary>\n\n{rest}\n\n</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_plain(str(cell)) for cell in line)} |" for line in lines)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:g}"
    return "" if value is None else str(value)


def _plain(text: object) -> str:
    """A text of a card in Markdown: one line, which makes no table, tag, link or code."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str(text).split()))
