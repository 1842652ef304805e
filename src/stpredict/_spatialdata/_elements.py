"""Open an object and resolve which image, shapes and table are meant; errors list the choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation
from xarray import DataTree

from stpredict._messages import warn
from stpredict._spatialdata._store._checkpoint import recover

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from xarray import DataArray


COLOURS = ("r", "g", "b", "red", "green", "blue")
UNNAMED = re.compile(r"(c|ch|channel|band|image)?[ _:-]?\d+([:_-]\d+)*", re.IGNORECASE)  # as readers number channels
REDUCED = ("hires_image", "lowres_image", "cytassist_image")  # as spatialdata-io calls Space Ranger's own pictures
TISSUE_COLUMN = "tissue_mm2"  # pp.tissue says here how large a part of the tissue is: it is no spot
RASTER_PLACE = "images/{}"  # where the provenance of an image that stpredict wrote is kept


def missing_key(key: str, existing: Iterable[str], *, what: str, argument: str) -> ValueError:
    """The error for a key that is not there: what was got, the closest names, what exists."""
    names = sorted(map(str, existing))
    if not names:
        return ValueError(f"{argument}={key!r}: the object has no {what} at all.")
    close = get_close_matches(str(key), names, n=3, cutoff=0.5)
    hint = f"Closest: {', '.join(map(repr, close))}. " if close else ""
    return ValueError(f"no {what} {key!r}. {hint}Pass {argument}= one of {names}.")


def resolve_image(sdata: SpatialData, image_key: str | None = None, *, shapes_key: str | None = None) -> str:
    """The key of the image: the one given, else the only one that stpredict did not write, else the only RGB one.

    Of several, as in an object of several samples, the only one that shares a coordinate system with the shapes.

    Raises ValueError for a key that is not there, for an object without an image, for several and no key.
    """
    if image_key is not None:
        if image_key not in sdata.images:
            raise missing_key(image_key, sdata.images, what="image", argument="image_key")
        return image_key
    written = sdata.attrs.get("stpredict", {})
    candidates = [key for key in sdata.images if RASTER_PLACE.format(key) not in written]
    if not candidates:
        raise ValueError(f"the object has no H&E image; it has {_inventory(sdata)}. Add one to sdata.images.")
    if len(candidates) > 1:  # Space Ranger's reduced copies of the slide are not meant where the slide is there
        whole = [key for key in candidates if not key.endswith(REDUCED)]
        candidates = whole or candidates
    if len(candidates) > 1:
        colour = [key for key in candidates if _is_colour(finest(sdata.images[key]))]
        candidates = colour if len(colour) == 1 else candidates
    if len(candidates) > 1 and shapes_key is not None and shapes_key in sdata:
        beside = [key for key in candidates if _systems(sdata, key) & _systems(sdata, shapes_key)]
        candidates = beside if len(beside) == 1 else candidates
    if len(candidates) > 1:
        raise ValueError(f"the object has several images: {sorted(candidates)}. Choose one with image_key=.")
    return candidates[0]


def _systems(sdata: SpatialData, key: str) -> set[str]:
    """The coordinate systems of an element."""
    return set(get_transformation(sdata[key], get_all=True))


def resolve_shapes(
    sdata: SpatialData, shapes_key: str | None = None, *, table_name: str | None = None, tissue_key: str | None = None
) -> str:
    """The key of the shapes: the one given, else the only one, else the only one that a table annotates.

    A key may also name labels, every one of which is a shape.

    Parameters
    ----------
    table_name : str, optional
        A table that may decide between several elements; a name that is not there decides nothing here. None: all
        tables with measurements.
    tissue_key : str, optional
        Shapes that outline tissue, these and those of `pp.tissue`, are not candidates.

    Raises
    ------
    ValueError
        For a key that is not there, for an object without shapes, for several and no key.
    """
    known = [*sdata.shapes, *sdata.labels]
    if tissue_key is not None and tissue_key not in known:  # which would be taken for one of the candidates
        raise missing_key(tissue_key, known, what="tissue shapes or labels", argument="tissue_key")
    if shapes_key is not None:
        if shapes_key not in known:
            raise missing_key(shapes_key, known, what="shapes", argument="shapes_key")
        return shapes_key
    candidates = [key for key in sdata.shapes if key != tissue_key and TISSUE_COLUMN not in sdata.shapes[key]]
    if not candidates:
        raise ValueError(
            f"the object has no shapes to work in; it has {_inventory(sdata)}. "
            "Add spots or cells to sdata.shapes, or write a grid with pp.tile_grid."
        )
    if len(candidates) > 1:
        tables = [sdata.tables[table_name]] if table_name in sdata.tables else []
        if table_name is None:
            tables = [table for table in sdata.tables.values() if not is_predicted(table)]
        region_names = {name for table in tables for name in regions(table)}
        annotated = [key for key in candidates if key in region_names]
        candidates = annotated if len(annotated) == 1 else candidates
    if len(candidates) > 1:
        raise ValueError(f"the object has several shapes: {sorted(candidates)}. Choose one with shapes_key=.")
    return candidates[0]


def resolve_table(sdata: SpatialData, table_name: str | None, *, shapes_key: str, or_else: str = "") -> str | None:
    """The name of the table of some shapes: the one given, else the only one that annotates them; None where none does.

    Of several, those of predictions alone, which stpredict has written, are no candidates. A table that is named is not
    checked against the shapes here: `table_rows` does that. `or_else` ends the message
    about several tables: what else the caller can do.

    Raises ValueError for a name that is not there, and where several tables annotate the shapes and none is named.
    """
    if table_name is not None:
        if table_name not in sdata.tables:
            raise missing_key(table_name, sdata.tables, what="table", argument="table_name")
        return table_name
    candidates = [name for name, table in sdata.tables.items() if shapes_key in regions(table)]
    if len(candidates) > 1:
        measured = [name for name in candidates if not is_predicted(sdata.tables[name])]
        candidates = measured if len(measured) == 1 else candidates
    if len(candidates) > 1:
        raise ValueError(
            f"several tables annotate the shapes {shapes_key!r}: {sorted(candidates)}. Choose one with "
            f"table_name={or_else}."
        )
    return candidates[0] if candidates else None


def regions(table: AnnData) -> list[str]:
    """The elements that a table annotates; empty for a table that annotates nothing."""
    if not table.uns.get("spatialdata_attrs"):
        return []
    region = get_table_keys(table)[0]
    return [region] if isinstance(region, str) else [str(name) for name in region]


def is_predicted(table: AnnData) -> bool:
    """Whether a table holds predictions alone: its X is one of its predicted layers, as in a new table of `tl.predict`.

    Layers are predicted where `var` says of which genes, as it does beside every result; a copy of measured counts in a
    layer is none.
    """
    values: Any = table.X
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        return False
    few = slice(0, 64)
    names = [key for key in table.layers.keys() if key is not None]  # None: X
    marked = [key for key in names if key in table.var and table.var[key].dtype == bool]
    layers: list[Any] = [table.layers[key] for key in marked]
    return any(
        isinstance(layer, np.ndarray) and np.array_equal(layer[few], values[few], equal_nan=True) for layer in layers
    )


def image_levels(sdata: SpatialData, image_key: str) -> list[DataArray]:
    """The pyramid levels of an RGB image, (3, y, x) uint8 each, the finest first.

    Raises ValueError for an image that is not RGB uint8.
    """
    image = sdata.images[image_key]
    levels = [_only_array(image[name]) for name in image] if isinstance(image, DataTree) else [image]
    _check_rgb(levels[0], image_key)
    return levels


def warn_of_missing_chunks(sdata: SpatialData, image_key: str) -> None:
    """Warn where chunks of an image are not in its store: they are read as black, whatever they were."""
    folder = None if sdata.path is None else Path(sdata.path) / "images" / image_key
    if folder is None or not folder.is_dir():
        return
    group = zarr.open_group(folder, mode="r")
    described: Any = group.attrs.get("ome", group.attrs)
    array: Any = group[described["multiscales"][0]["datasets"][0]["path"]]
    n_missing = array.nchunks - array.nchunks_initialized
    if n_missing > 0:
        warn(
            f"{n_missing} of {array.nchunks} chunks of image {image_key!r} are not in {sdata.path}, and are read as "
            "black. That is right where the image is black, as writers leave such chunks out; else the store is not "
            "whole: copy it again.",
        )


def raster_size(sdata: SpatialData, key: str) -> tuple[int, int]:
    """(height, width) in pixels of an image or of labels, at the finest level."""
    level = finest(sdata[key])
    return level.sizes["y"], level.sizes["x"]


def finest(raster: DataArray | DataTree) -> DataArray:
    """The finest level of an image or of labels."""
    return _only_array(raster["scale0"]) if isinstance(raster, DataTree) else raster


def _is_colour(level: DataArray) -> bool:
    return level.dims == ("c", "y", "x") and level.shape[0] == 3 and level.dtype == np.uint8


def _only_array(node: Any) -> DataArray:
    return next(iter(node.data_vars.values()))


def _check_rgb(level: DataArray, image_key: str) -> None:
    names = [str(name) for name in np.asarray(level.coords["c"])] if "c" in level.coords else []
    got = f"image {image_key!r} is not RGB: expected dims (c, y, x) with 3 channels of uint8, got dims {level.dims} "
    got += f"of shape {level.shape} and dtype {level.dtype}, channels {names[:6]}."
    if level.dims != ("c", "y", "x"):
        raise ValueError(f"{got} Pass image_key= of a two-dimensional H&E image.")
    if level.shape[0] != 3:
        do = "Drop the alpha channel" if level.shape[0] == 4 else "Pass image_key= of the H&E image, not of stains"
        raise ValueError(f"{got} {do}; an image of three channels is needed.")
    if level.dtype != np.uint8:
        raise ValueError(f"{got} Convert it to uint8 in 0..255.")
    stains = [name for name in names if not (name.lower() in COLOURS or UNNAMED.fullmatch(name))]
    if stains:
        raise ValueError(
            f"{got} Channels of these names are stains, not colours. Pass image_key= of the H&E image; if it is one, "
            "name its channels: sdata.set_channel_names(image_key, ['r', 'g', 'b'], write=True)."
        )
    short = "".join(name[:1].lower() for name in names)
    if sorted(short) == ["b", "g", "r"] and short != "rgb":
        raise ValueError(f"{got} Put the channels in the order red, green, blue.")


def _inventory(sdata: SpatialData) -> str:
    parts = {"images": sdata.images, "labels": sdata.labels, "shapes": sdata.shapes, "tables": sdata.tables}
    return ", ".join(f"{kind} {sorted(elements)}" for kind, elements in parts.items())


def path_of(sdata: SpatialData | str | Path) -> Path | None:
    """The store of an object, or the one that is named; None for an object in memory."""
    path = sdata if isinstance(sdata, str | Path) else sdata.path
    return None if path is None else Path(path)


def opened(sdata: SpatialData | str | Path) -> SpatialData:
    """The object, read from its store where a path is given.

    Raises FileNotFoundError for a path where nothing is, ValueError for what is no store.
    """
    if not isinstance(sdata, str | Path):
        return sdata
    from spatialdata import read_zarr

    if not Path(sdata).exists():
        raise FileNotFoundError(f"there is no store {str(sdata)!r}.")
    recover(Path(sdata))
    try:
        return read_zarr(sdata)
    except MemoryError:
        raise
    except Exception as error:  # zarr, anndata and spatialdata each have their own
        raise ValueError(f"{str(sdata)!r} cannot be read as a SpatialData store: {error}") from error


def all_opened(
    sdatas: SpatialData | str | Path | Sequence[SpatialData | str | Path], argument: str = "sdatas"
) -> list[SpatialData]:
    """One or several objects or paths of stores as a list of objects. Raises as `opened`, and ValueError for none."""
    many = listed(sdatas)
    if not many:
        raise ValueError(f"{argument} is an empty list: give at least one section.")
    return [opened(each) for each in many]


def listed(sdatas: SpatialData | str | Path | Sequence[SpatialData | str | Path]) -> list[SpatialData | str | Path]:
    """One or several objects or paths, as a list; an array or a column of a frame will do."""
    return [sdatas] if isinstance(sdatas, str | Path) or hasattr(sdatas, "tables") else list(sdatas)
