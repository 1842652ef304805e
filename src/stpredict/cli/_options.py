"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    import pandas as pd

DATA = Group("What is read", sort_key=1)
MODEL = Group("Model", sort_key=2)
RESULT = Group("What is written", sort_key=3)
RUN = Group("How it runs", sort_key=4)

Stores = Annotated[list[Path], Parameter(help="SpatialData stores (.zarr), one a section.", negative=())]
ImageKey = Annotated[str | None, Parameter(group=DATA, help="Which image; needed where a store has several.")]
ShapesKey = Annotated[
    str | None,
    Parameter(group=DATA, help="Which shapes (spots, bins, cells) or labels; needed where a store has several."),
]
TableName = Annotated[str, Parameter(group=DATA, help="Which table.")]
Layer = Annotated[str | None, Parameter(group=DATA, help="Layer of the table that holds raw counts. Default: X.")]
ImageMpp = Annotated[
    float | None,
    Parameter(
        group=DATA,
        help="Micrometres per pixel of the full-resolution image. Default: found from a coordinate system in "
        "micrometres, or from known spot geometry.",
    ),
]
TissueKey = Annotated[
    str | None, Parameter(group=DATA, help="Shapes or labels that outline the tissue. Default: the whole image.")
]
Genes = Annotated[
    list[str] | None,
    Parameter(
        help="Genes: several names, or one file with a name a line.", consume_multiple=True, negative=(), group=MODEL
    ),
]
Device = Annotated[str, Parameter(group=RUN, help="auto, cpu, cuda, cuda:1, mps. Never another than the one named.")]
Precision = Annotated[str, Parameter(group=RUN, help="auto (bf16 where the processor has it), 32, bf16, 16.")]
Progress = Annotated[bool, Parameter(group=RUN, help="Progress bars.")]


def checked(stores: Sequence[Path]) -> list[Path]:
    """The stores, for a verb to open; FileNotFoundError names the one that is not there."""
    for store in stores:
        check_store(store)
    return list(stores)


def check_store(store: Path) -> None:
    """Raise FileNotFoundError where there is no zarr store."""
    if not store.is_dir():
        raise FileNotFoundError(f"there is no store {str(store)!r}; name a SpatialData folder (.zarr).")
    if not any((store / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise FileNotFoundError(f"{str(store)!r} is a folder but no zarr store; name a SpatialData folder (.zarr).")


def gene_names(values: Sequence[str] | None) -> list[str] | None:
    """The genes of `--genes`: the names given, or the lines of the one file given."""
    if values is None or len(values) != 1 or not Path(values[0]).is_file():
        return None if values is None else list(values)
    names = [line.strip() for line in Path(values[0]).read_text().splitlines()]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise ValueError(f"--genes: the file {values[0]!r} holds no gene; write one name a line.")
    return names


def shown(table: pd.DataFrame, *, index: bool = True) -> str:
    """A table as text: three decimals (two digits of what is smaller), whole numbers without any, NaN written out."""
    return table.map(_number).to_string(index=index)


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "NaN"
    return f"{value:.0f}" if value.is_integer() else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"
