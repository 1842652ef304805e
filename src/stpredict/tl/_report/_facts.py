"""Texts of the HTML report: headline figures, warnings, provenance, and what the numbers do not show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpredict import __version__, _spatialdata
from stpredict.tl.reliability import GOOD, LIKE_RIDGE, LITTLE, MOST_OUTSIDE, NOTHING, OUTSIDE

if TYPE_CHECKING:
    from stpredict.tl._report._content import Content
    from stpredict.tl._report._measured import Measured, Scores
    from stpredict.tl._report._source import Source

UNITS = {"log1p_cp10k": "log1p of counts per 10,000", "as_is": "units of the training layer"}
SHORT_UNITS = {"log1p_cp10k": "log1p cp10k", "as_is": "training units"}
RECORD = {  # what of the record is shown, and what it is called
    "model": "model", "model_path": "loaded from", "revision": "commit of the hub",
    "weights_sha256": "weights, sha256", "encoder": "encoder",
    "mpp": "the model sees at, µm per pixel", "raster_mpp": "step of the map, µm", "target": "target", "link": "link",
    "reduction": "reduction", "n_models": "models of the ensemble", "training_sections": "trained on",
    "held_out": "held out", "held_out_um2": "area of held-out shapes, µm²", "seed": "seed", "device": "device",
    "precision": "number format", "protocol": "protocol", "image_digest": "image, digest",
    "shapes_digest": "shapes, digest", "config_digest": "settings, digest", "texts_digest": "texts, digest",
    "raster": "read from the map", "stat": "statistic", "made_by": "made by",
}  # fmt: skip


def unit(source: Source, *, short: bool = False) -> str:
    """What a colour bar calls the values."""
    if not source.record.get("target"):
        return "unit not recorded"
    return (SHORT_UNITS if short else UNITS).get(source.target, str(source.target))


def cards(
    source: Source, known: pd.DataFrame | None, found: Measured, scored: Scores, *, tissue_mm2: float | None
) -> list[dict[str, str]]:
    """The figures on top: a title, a value, and what it is."""
    out = [{"title": "genes predicted", "value": f"{len(source.genes):,}", "note": f"by {_model(source)}"}]
    if known is not None and known["val_pcc"].notna().any():
        said = known["verdict"].value_counts()
        others = {LITTLE: "weakly", LIKE_RIDGE: "no better than Ridge", NOTHING: "not predicted"}
        note = "; ".join(
            ["genes", *(f"{said[verdict]:,} {word}" for verdict, word in others.items() if verdict in said)]
        )
        out.append({"title": "predicted on held-out data", "value": f"{said.get(GOOD, 0):,}", "note": note})
        out.append({"title": "held-out correlation", "value": _two(known["val_pcc"].mean()), "note": _company(known)})
    if scored.table is not None and scored.genes is not None:
        ceiling = scored.genes["ceiling"].mean()
        title = "correlation on this slide" + (", which was trained on" if trained_on(source) else "")
        note = f"mean over genes, {found.n_used:,} shapes" + (
            f"; ceiling {_two(ceiling)}" if ceiling == ceiling else ""
        )
        out.append({"title": title, "value": _two(scored.table.loc[source.key, "PCC@M"]), "note": note})
    share = np.nan if known is None or known.empty else float(known["in_domain"].iloc[0])
    if share == share:
        out.append({"title": "tissue that the model knows", "value": f"{share:.0%}", "note": "of the shapes in domain"})
    if tissue_mm2 is not None:
        out.append({"title": "tissue", "value": f"{tissue_mm2:.3g} mm²", "note": f"outline {source.tissue_key!r}"})
    return out


def _company(known: pd.DataFrame) -> str:
    parts = [
        f"{name} {_two(known[column].mean())}"
        for name, column in (("Ridge", "ridge_pcc"), ("ceiling", "ceiling"))
        if known[column].notna().any()
    ]
    return "mean over genes" + (f"; {', '.join(parts)}" if parts else "")


def notices(
    source: Source, known: pd.DataFrame | None, found: Measured, scored: Scores, made: Content, *, n_drawn: int,
    why_drawn: str,
) -> list[dict[str, str]]:  # fmt: skip
    """What to know before looking: level ("bad", "warn", "note") and text."""
    out: list[dict[str, str]] = []

    def say(level: str, text: str) -> None:
        out.append({"level": level, "text": text})

    if trained_on(source):
        sure = "training_images" in source.record
        where = "on this slide, so that" if sure else f"on a section called {_name(source)!r}. If it is this one,"
        say(
            "bad",
            f"The model was trained {where} maps and scores here are of what the model has seen, and better than on "
            "any other slide: only the held-out figures count.",
        )
    if source.layer is None:
        say(
            "warn",
            "This is a map alone. Reliability, domain and scores are kept with a layer of a table, which is not there: "
            f"stp.tl.predict(..., output='both') writes both, stp.tl.aggregate(sdata, {source.key!r}, shapes_key=...) "
            "reads the map inside shapes.",
        )
    elif known is None or not known["val_pcc"].notna().any():
        say("bad", "No held-out evidence comes with this prediction: nothing here says which genes can be trusted.")
    elif scored.table is None and not trained_on(source):
        other = source.record.get("held_out", "of the training")
        say(
            "note",
            f"What is said of genes was measured elsewhere ({other}); nothing is measured here. Expect less of another "
            "patient, and less again of another laboratory or organ.",
        )
    if known is not None and len(known):
        share = float(known["in_domain"].iloc[0])
        if share < MOST_OUTSIDE:
            say("bad", f"Only {share:.0%} of the shapes look like what the model was trained on: {OUTSIDE}.")
        elif share < 0.9:
            say("warn", f"{1 - share:.0%} of the shapes do not look like what the model was trained on.")
    if found.values is None and found.why_not:
        say("note", f"Nothing measured is shown: {found.why_not}.")
    if source.raster_key is not None and not made.cut:
        say("warn", "The map covers the whole picture, bare glass too: predict with tissue_key= to cut it.")
    if why_drawn:
        say("note", f"Pictures are of {n_drawn:,} of {len(source.genes):,} genes: {why_drawn}. The table has all.")
    if made.gridded:
        say("note", "There are too many shapes to draw each: a pixel shows the mean of those whose centre lies in it.")
    if source.um is None:
        say("warn", f"There is no scale bar: {source.why_no_um}")
    if scored.targeted is not None:
        say("note", f"Totals are of a targeted panel of {scored.targeted:,} genes, not of a whole transcriptome.")
    if "toy" in source.sdata.attrs:
        say("note", "This tissue is simulated.")
    return out


def limits(source: Source, found: Measured, *, factor: int) -> list[str]:
    """What the numbers do not say, as far as it depends on what is there."""
    sections = source.record.get("training_sections") or []
    out = [
        "Nothing here is a measurement of this tissue: every value was inferred from the look of the H&E. Where a "
        "decision hangs on one gene, measure it.",
        "A correlation says whether a gene goes up and down in the right places. It says nothing about its level, and "
        "it is of whole shapes: a map looks sharper than what was tested.",
    ]
    if source.record.get("held_out"):
        out.append(
            f"Held-out evidence is of: {source.record['held_out']}"
            + (f"; the model was trained on {len(sections)} section{'s' * (len(sections) > 1)}" if sections else "")
            + ". A gene that was predicted there may fail on another patient, stain, scanner or organ."
        )
    out.append(
        "The ceiling is what a perfect predictor could reach at the depth of those counts, and an upper bound. A gene "
        "with a low one was hardly measured. It is estimated from the counts, so that the correlation of a gene may "
        "lie a little above it by chance."
    )
    out.append(
        "In domain means that the tissue looks like the training tissue in colour, form and scale. Tissue that looks "
        "the same and is not cannot be told."
    )
    if found.values is not None:
        out.append(
            "Measured values are noisy counts of single shapes. Predictions vary less than measurements do: on one "
            "colour scale for both they look flat, which is no error."
        )
    out.append(
        "Pictures are reduced"
        + (f" ({factor} pixels of the map to one along each side)" if factor > 1 else "")
        + " and have 255 steps between the smallest and the largest value of a gene; use the store to compute."
    )
    return out


def provenance(source: Source) -> list[tuple[str, str]]:
    """Where the numbers come from, as names and values."""
    record, store = source.record, source.sdata.path
    out = [] if store is None else [("store", Path(store).name)]
    out += [("key", source.key), ("image", source.image_key)]
    out += [(name, value) for name, value in (("shapes", source.shapes_key), ("table", source.table_name)) if value]
    out += [("tissue", source.tissue_key)] if source.tissue_key else []
    out += [("micrometres per pixel of the image", f"{source.um:.4g}")] if source.um else []
    merged = {**source.raster_record, **record}
    out += [(name, _plain(merged[field])) for field, name in RECORD.items() if merged.get(field) not in (None, "", [])]
    versions = merged.get("versions")
    if isinstance(versions, Mapping):
        out.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    out.append(("report made by", f"stpredict {__version__}"))
    return [(name, str(value)) for name, value in out]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def trained_on(source: Source) -> bool:
    """Whether the model was trained on this image; on a section of this name where its card has no hashes of images."""
    if "training_images" in source.record:
        return _spatialdata.picture_digest(source.sdata, source.image_key) in source.record["training_images"]
    return _name(source) in (source.record.get("training_sections") or [])


def _name(source: Source) -> str:
    return _spatialdata.section_name(source.sdata, source.image_key)


def _model(source: Source) -> str:
    return str(source.record.get("model") or source.key)


def _two(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"
