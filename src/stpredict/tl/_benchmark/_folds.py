"""Which sections, or blocks of one, a fold trains on and which it is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from scipy.spatial import KDTree
from spatialdata import SpatialData

from stpredict import _spatialdata
from stpredict._places import common_blocks, tissues
from stpredict._section import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 3  # blocks along either axis of a section, for cv="blocks"
Explicit = Mapping[str, tuple[Sequence[str], Sequence[str]]]


@dataclass(frozen=True)
class Fold:
    """Training and test parts by name; `kept` says for a part which usable rows of its table it has (None: all)."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    kept: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None

    def parts(self, sections: Mapping[str, SpatialData], table_name: str) -> tuple[dict[str, SpatialData], ...]:
        """{name: object} to train on, and {name: object} to test on."""
        if self.kept is None:
            return {n: sections[n] for n in self.train}, {n: sections[n] for n in self.test}
        train = {n: _only(sections[n], self.kept[n][0], n, table_name) for n in self.train}
        return train, {n: _only(sections[n], self.kept[n][1], n, table_name) for n in self.test}


def named_sections(sdatas: Sequence[SpatialData], spec: _spatialdata.SectionSpec) -> dict[str, SpatialData]:
    """The sections by their names. Raises ValueError for names that are not unique."""
    images = [_spatialdata.resolve_image(s, spec.image_key, shapes_key=spec.shapes_key) for s in sdatas]
    names = [_spatialdata.section_name(s, image) for s, image in zip(sdatas, images, strict=True)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names:
        raise ValueError(
            f"{len(names)} sections, and these names are not unique: {twice}. Give each its own: "
            'sdata.attrs["name"] = "...".'
        )
    return dict(zip(names, sdatas, strict=True))


def groups_of(
    sections: Mapping[str, SpatialData], groups: Sequence[str] | None, reason: str | None, cv: object
) -> dict[str, str] | None:
    """The group of every section by its name; None where nothing tells them apart. ValueError for too few."""
    if cv == "blocks":
        return None
    if groups is None:
        if not reason:
            raise ValueError(
                "groups= says which patient every section is of, so that no patient is trained and tested on. If "
                'sections cannot be told apart so, pass groups=None with groups_reason="...", which the result keeps.'
            )
        return None
    if isinstance(groups, str) or len(groups) != len(sections):
        raise ValueError(
            f"groups names {1 if isinstance(groups, str) else len(groups)} patients for {len(sections)} sections "
            f"({', '.join(sections)}); give one a section, in their order."
        )
    return dict(zip(sections, map(str, groups), strict=True))


def section_folds(names: Sequence[str], cv: str | int | Explicit, groups: Mapping[str, str] | None) -> list[Fold]:
    """Folds over whole sections; those of a group stay together.

    Parameters
    ----------
    cv : str | int | Mapping[str, tuple[Sequence[str], Sequence[str]]]
        "leave-one-section-out", a number of folds, or {fold: (names to train on, names to test on)}.
    groups : Mapping[str, str] | None
        Group of every section; None: every section is its own.

    Raises
    ------
    ValueError
        For too few sections or groups, unknown names, and explicit folds that part a group.
    """
    own = dict(zip(names, names, strict=True)) if groups is None else dict(groups)
    if isinstance(cv, Mapping):
        return [_explicit(name, *parts, own) for name, parts in cv.items()]
    units = list(dict.fromkeys(own[n] for n in names))
    n_folds = cv if isinstance(cv, int) else len(units)
    if isinstance(cv, int) and cv < 2:
        raise ValueError(f'cv={cv} leaves nothing to train on: pass 2 folds or more, or cv="blocks".')
    what = "sections" if groups is None else "groups"
    if len(units) < max(2, n_folds):
        alone = len(names) == 1
        out = 'Pass cv="blocks" to hold out parts of it.' if alone else "Add sections of others, or ask for fewer folds"
        way = "" if alone or groups is None else ", or pass groups=None with groups_reason=, which the result keeps"
        raise ValueError(
            f"{max(2, n_folds)} folds need as many {what}, and there {'is' if len(units) == 1 else 'are'} {len(units)} "
            f"({len(names)} section{'s' * (not alone)}). {out}{way}{'' if alone else '.'}"
        )
    folds = []
    for k in range(n_folds):
        held = set(units[k::n_folds])
        test = tuple(n for n in names if own[n] in held)
        folds.append(Fold(", ".join(test), tuple(n for n in names if n not in test), test))
    return folds


def _explicit(name: str, train: Sequence[str], test: Sequence[str], own: Mapping[str, str]) -> Fold:
    for what, part in (("train", train), ("test", test)):
        unknown = [n for n in part if n not in own]
        if isinstance(part, str) or not part or unknown:
            raise ValueError(f"cv[{name!r}]: {what}={part!r} must be names of sections; there are {sorted(own)}.")
    both = sorted({own[n] for n in train} & {own[n] for n in test})
    if both:
        raise ValueError(f"cv[{name!r}] trains and tests on the same group: {both}. Keep its sections together.")
    return Fold(name, tuple(train), tuple(test))


def block_folds(sections: Mapping[str, SpatialData], *, margin_um: float, spec: _spatialdata.SectionSpec) -> list[Fold]:
    """Three folds over blocks of every section, on a 3 x 3 grid of quantiles of its usable spots.

    A fold tests three blocks that share no row and no column of the grid, and trains on the spots of the others that
    are at least `margin_um` (between centres) away from every spot it tests. Sections of one image have one grid, and
    spots that are tested in one keep those of the others away.
    """
    laid = {name: usable_spots(sdata, spec) for name, sdata in sections.items()}
    names, spots = tuple(laid), [section for _, section in laid.values()]
    images = [(group, common_blocks([spots[i] for i in group], SIDE)) for group in tissues(spots)]
    folds = []
    for k in range(SIDE):
        tests = {i: (b // SIDE + b) % SIDE == k for group, found in images for i, b in zip(group, found, strict=True)}
        tested = [np.concatenate([centres_um(spots[i])[tests[i]] for i in group]) for group, _ in images]
        trees = {i: KDTree(centre) for (group, _), centre in zip(images, tested, strict=True) for i in group}
        kept = {}
        for i, (name, (rows, section)) in enumerate(laid.items()):
            far = trees[i].query(centres_um(section))[0] >= margin_um
            kept[name] = (rows[~tests[i] & far], rows[tests[i]])
            if not len(kept[name][0]) or not len(kept[name][1]):
                raise ValueError(
                    f"section {name!r} has {len(rows)} usable spots, too few to test blocks of it and to train on what "
                    f"is {margin_um:g} um away from them. Lower margin_um=, or leave whole sections out."
                )
        folds.append(Fold(f"blocks {k + 1} of {SIDE}", names, names, kept))
    return folds


def usable_spots(sdata: SpatialData, spec: _spatialdata.SectionSpec) -> tuple[NDArray[np.int64], Section]:
    """Usable rows of the table, and the section of their shapes at the image's own resolution."""
    rows, _ = _spatialdata.usable_rows(sdata, spec)
    spec = spec.resolved(sdata)
    own = _spatialdata.image_mpp(sdata, spec.image, spec.shapes_key, spec.mpp)
    any_gene = [str(sdata.tables[spec.table_name].var_names[0])]
    return rows, _spatialdata.training_section(sdata, spec, genes=any_gene, at_mpp=own)


def centres_um(section: Section) -> NDArray[np.float64]:
    """(n, 2) centres of the shapes in micrometres."""
    return shapely.get_coordinates(shapely.centroid(section.geometry)) * section.mpp


def diameter_um(section: Section) -> float:
    """The median diameter of the circles that have the shapes' areas."""
    return float(np.median(2 * np.sqrt(section.area / np.pi)) * section.mpp)


def _only(sdata: SpatialData, rows: NDArray[np.int64], name: str, table_name: str) -> SpatialData:
    """The object with only some rows of its table; images and shapes are shared."""
    tables = {table_name: _spatialdata.rows_of_table(sdata.tables[table_name], rows)}
    out = SpatialData(images=dict(sdata.images), labels=dict(sdata.labels), shapes=dict(sdata.shapes), tables=tables)
    out.attrs |= {**sdata.attrs, "name": name}
    return out
