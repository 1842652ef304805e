"""Whether a model knows tissue like that of an object: its domain from training sections, and what lies outside."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _caches, _spatialdata
from stpredict._appearance import describe, spatial_groups
from stpredict._domain import FACTORS, Domain, outside
from stpredict._messages import warn
from stpredict._places import tissues
from stpredict._section import Section, take

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._card import Card
    from stpredict.models import Model
    from stpredict.tl._predict._job import Resolved

type Source = tuple[SpatialData, _spatialdata.SectionSpec]  # an object, and a resolved spec of one of its sections

logger = logging.getLogger("stpredict")

MOST_SHAPES = 1000  # of a training section that are described
ABOUT = ("species", "organ", "technology", "stain", "patient")  # attributes of an object that say what it is of

_told: set[str] = set()  # weights without a domain that the log has named


def domain_record(sources: Sequence[Source], sections: Sequence[Section], *, seed: int) -> dict[str, Any]:
    """What the card keeps of the domain of these training sections; empty where they are too small to show one.

    Of several scales of a tissue the first is described.
    """
    features, groups = [], []
    for each in tissues(sections):
        (sdata, spec), section = sources[each[0]], sections[each[0]]
        rows = np.arange(section.n_shapes)
        if len(rows) > MOST_SHAPES:
            rows = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_SHAPES, replace=False))
        some = take(section, rows)
        views = [_spatialdata.domain_view(sdata, spec, factor) for factor in FACTORS]
        features.append([describe(view, some, factor) for view, factor in zip(views, FACTORS, strict=True)])
        groups.append(spatial_groups(some))
    domain = Domain.fit(features, groups)
    if domain is None:
        logger.info("the training sections are too small to say what tissue the model knows: it has no domain")
        return {}
    return domain.record()


def about(sdatas: Sequence[SpatialData]) -> dict[str, list[str]]:
    """What the attributes of the training objects say they are of (`ABOUT`), each value once."""
    found = {name: sorted({str(s.attrs[name]) for s in sdatas if s.attrs.get(name)}) for name in ABOUT}
    return {name: values for name, values in found.items() if values}


def domain_percentiles(resolved: Resolved) -> NDArray[np.float64] | None:
    """Percentile (n,) of each shape among left-out training shapes; None without a table, or where it is not known.

    Without a table points of the tissue are looked at. Warns of shapes on glass, and of tissue unlike that of the
    training.
    """
    sdata, request, section, table, _ = resolved
    assert request.model.card is not None
    on_glass, seen = None, _sampled(section) if table is None else section
    if request.spec.tissue_key is None:
        measured = None
        if table is not None and not table.is_new:
            measured = _spatialdata.measured_shapes(sdata, table.table_name, table.shapes_key)
        on_glass = _spatialdata.warn_of_background(sdata, request.spec, section, seen.shapes, measured=measured)
    percentile, unfamiliar = _percentiles(request.model, sdata, request.spec, seen, skipped=on_glass)
    mismatched = _mismatch(request.model.card, sdata)
    if mismatched is not None:
        warn(f"section {section.name!r} says of itself that it is of {mismatched}.")
    if unfamiliar is not None:
        warn(
            f"section {section.name!r}: {unfamiliar}. Expect less than the model's scores, or nothing; see "
            f"obs['{request.key}_domain'] and docs/trust.md.",
        )
    return None if table is None else percentile


def _mismatch(card: Card, sdata: SpatialData) -> str | None:
    """What the object says of itself that the training sections were not, in words.

    Patients may differ. Another technology is logged only: it is counted otherwise, but looks the same.
    """
    other = []
    for name in ABOUT[:-1]:
        own, known = sdata.attrs.get(name), card.about.get(name, [])
        if own and known and str(own).casefold() not in {str(value).casefold() for value in known}:
            said = f"{name} {own!r}, and the model was trained on {', '.join(map(repr, known))}"
            if name == "technology":
                logger.info("the object is of %s", said)
            else:
                other.append(said)
    return "; ".join(other) or None


def _percentiles(
    model: Model, sdata: SpatialData, spec: _spatialdata.SectionSpec, section: Section, *,
    skipped: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64] | None, str | None]:  # fmt: skip
    """Where shapes (n,) lie among left-out training shapes, in [0, 100], and what is to be said; None without a domain.

    Parameters
    ----------
    spec
        With a resolved image.
    skipped
        (n,) shapes of which is said elsewhere that there is no tissue under them.
    """
    assert model.card is not None
    record: Mapping[str, Any] = model.card.domain
    domain = Domain.from_record(record)
    if domain is None:
        known = model.card.weights_sha256 or str(id(model))
        if known not in _told:
            _told.add(known)
            logger.warning(
                "this %s has no record of the tissue it was trained on (an older card, or few training shapes), so "
                "whether it knows tissue like that of %r is not checked",
                type(model).__name__, section.name,
            )  # fmt: skip
        return None, None
    features = describe(_spatialdata.domain_view(sdata, spec), section)
    found, said = outside(domain, features)
    if skipped is not None and skipped.any() and said is not None:
        said = outside(domain, np.where(skipped[:, None], np.nan, features))[1]
    return found, said


def _sampled(section: Section, *, most: int = 400) -> Section:
    """A section without shapes as one of points in a grid on its tissue, or on all of its image."""
    import shapely

    height, width = section.image.height, section.image.width
    step = max(1.0, float(np.sqrt(height * width / (4 * most))))
    y, x = np.mgrid[step / 2 : height : step, step / 2 : width : step].reshape(2, -1)
    if section.tissue is not None:
        on = shapely.contains_xy(section.tissue, x, y)
        y, x = y[on], x[on]
    n = len(x)
    return dataclasses.replace(
        section, geometry=shapely.points(x, y), radius=np.ones(n), ids=np.arange(n), area=np.full(n, np.pi)
    )


_caches.register("models without a domain that were named", _told.clear)
