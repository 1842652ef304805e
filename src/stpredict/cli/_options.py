"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = Path(__file__).parents[1]
DATA = Group("What is read", sort_key=1)
MODEL = Group("Model", sort_key=2)
RESULT = Group("What is written", sort_key=3)
RUN = Group("How it runs", sort_key=4)


@cache
def described(verb: str, name: str) -> str:
    """What the docstring of a verb says of a parameter, as the help of an option.

    The file of the verb is parsed and not imported, for help must not wait for torch.

    Parameters
    ----------
    verb : str
        Such as "tl.predict".
    name : str
        A parameter of it, under "Parameters" of its docstring.
    """
    namespace, function = verb.split(".")
    tree = ast.parse((PACKAGE / namespace / f"{function}.py").read_text(encoding="utf-8"))
    (node,) = (each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == function)
    _, _, section = (ast.get_docstring(node) or "").partition("\nParameters\n----------\n")
    section = re.split(r"\n\n\w+\n-+\n", section)[0] + "\n"
    entries = re.findall(r"^(\w[\w, ]*?)(?: : .*)?\n((?:(?: {4}.*)?\n)+)", section, re.MULTILINE)
    texts = {each: " ".join(text.split()) for names, text in entries for each in names.split(", ")}
    if name not in texts:
        raise KeyError(f"the docstring of {verb} has no parameter {name}.")
    text = re.sub(r"(^|[;.] )None: ", lambda start: ". "[: len(start[1])] + "Default: ", texts[name])
    return re.sub(r"`(\w+)`", lambda of: f"`--{of[1].replace('_', '-')}`" if of[1] in texts else of[0], text)


def of_verb(verb: str, name: str, **settings: Any) -> Parameter:
    """An option with the help of a verb's parameter (see `described`), and other settings of cyclopts."""
    return Parameter(help=described(verb, name), **settings)


Stores = Annotated[list[Path], Parameter(help="SpatialData stores (.zarr), one a section.", negative=())]
ImageKey = Annotated[str | None, of_verb("tl.predict", "image_key", group=DATA)]
ShapesKey = Annotated[str | None, of_verb("tl.predict", "shapes_key", group=DATA)]
TableName = Annotated[str, of_verb("tl.train", "table_name", group=DATA)]
Layer = Annotated[str | None, of_verb("tl.train", "layer", group=DATA)]
ImageMpp = Annotated[float | None, of_verb("tl.predict", "mpp", group=DATA)]
TissueKey = Annotated[str | None, of_verb("tl.train", "tissue_key", group=DATA)]
MinCounts = Annotated[float | None, of_verb("tl.train", "min_counts", group=DATA)]
Genes = Annotated[
    list[str] | None,
    Parameter(
        help="Genes: several names, or one file with a name a line.", consume_multiple=True, negative=(), group=MODEL
    ),
]
Device = Annotated[str, of_verb("tl.predict", "device", group=RUN)]
Precision = Annotated[str, of_verb("tl.predict", "precision", group=RUN)]
Progress = Annotated[bool, of_verb("tl.predict", "progress", group=RUN)]


def checked(stores: Sequence[Path]) -> list[Path]:
    """The stores, for a verb to open; FileNotFoundError names the one that is not there."""
    for store in stores:
        check_store(store)
    return list(stores)


def check_store(store: Path) -> None:
    """Raise FileNotFoundError where there is no zarr store."""
    if not store.is_dir():
        raise FileNotFoundError(
            f"there is no store {str(store)!r}; name a SpatialData folder (.zarr). Of a picture make one in Python: "
            "stp.io.read_image(path, mpp=...), stp.pp.tissue, stp.pp.tile_grid, and sdata.write."
        )
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
