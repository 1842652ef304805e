"""Several sections of one object: its scales (bins of 16, 8 and 2 um, spots and cells), or its samples (regions)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stpredict._spatialdata._sections import section_name, training_section
from stpredict._spatialdata._spec import SectionSpec
from stpredict._spatialdata._target import NoUsableShape

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict._section import Section


Key = str | Sequence[str] | None


def specs_of(
    spec: SectionSpec, *, shapes_key: Key = None, table_name: Key = None, image_key: Key = None
) -> list[SectionSpec]:
    """The spec of every section that an object has: those of lists side by side, what is no list the same for all.

    Raises ValueError for lists of different lengths, for an empty one, and for one section that is named twice.
    """
    keys = {"shapes_key": shapes_key, "table_name": table_name, "image_key": image_key}
    lists = {name: list(value) for name, value in keys.items() if value is not None and not isinstance(value, str)}
    single: dict[str, Any] = {name: value for name, value in keys.items() if isinstance(value, str)}
    if not lists:
        return [dataclasses.replace(spec, **single)]
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise ValueError(
            f"{said}: lists must be of one length, one entry a section of the object. What is the same for all may be "
            "a single name."
        )
    n = next(iter(lengths.values()))
    values: list[dict[str, Any]] = [single | {name: value[k] for name, value in lists.items()} for k in range(n)]
    specs = [dataclasses.replace(spec, **each) for each in values]
    twice = [f"{s.shapes_key!r} with table {s.table_name!r}" for k, s in enumerate(specs) if s in specs[:k]]
    if twice:
        raise ValueError(f"{' and '.join(lists)} name {twice[0]} more than once. Name every section once.")
    return specs


def training_sections(
    sdatas: Sequence[SpatialData], specs: Sequence[SectionSpec], *, genes: Sequence[str], at_mpp: float
) -> list[Section]:
    """The sections of every object, one a spec, as `training_section` makes them.

    Of several specs, a section is called by its object and its shapes: "C2/square_008um".

    Raises ValueError as `training_section` does, and says which section of several has no usable shape.
    """
    sections = []
    for sdata in sdatas:
        for spec in specs:
            spec = spec.resolved(sdata)
            name = section_name(sdata, spec.image)
            name = name if len(specs) == 1 else f"{name}/{spec.shapes}"
            try:
                section = training_section(sdata, spec, genes=genes, at_mpp=at_mpp, name=name)
            except NoUsableShape as error:
                if len(specs) == 1:
                    raise
                raise ValueError(
                    f"section {name!r}, one of {len(sdatas) * len(specs)}, has {error} Or leave it out, and go on with "
                    "the others."
                ) from error
            sections.append(section)
    return sections
