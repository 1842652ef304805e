"""Whether a result is there already, so that resuming has nothing to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _sdata
from stpredict._section import fingerprint
from stpredict.tl._job import Asked, provenance, raster_factor, section_of
from stpredict.tl._place import existing_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpredict")

# What a finished result must share with the call, and how it is called in the message.
SAME = {
    "weights_sha256": "model", "genes": "genes", "core_px": "tiles", "halo_px": "tiles", "mpp": "mpp",
    "precision": "precision", "image_digest": "image, mpp or tissue", "raster": "tool",
    "texts_digest": "text of its genes", "config_digest": "settings of the model",
}  # fmt: skip
OF_LAYERS = SAME | {"shapes_digest": "shapes"}
OF_IMAGES = SAME | {"raster_mpp": "raster_mpp", "latent": "output"}


def is_done(sdata: SpatialData, asked: Asked) -> bool:
    """Whether an earlier call wrote all of this, so that resuming has nothing to do: said, and left as it is.

    Raises ValueError for a result of that name that was made of something else, unless it may be overwritten.
    """
    if not asked.resume or sdata.path is None:
        return False
    _sdata.recover(sdata.path)
    if _sdata.run_folder(sdata, asked.key).is_dir():
        return False
    shapes_key = None
    if asked.output in ("layer", "both"):
        shapes_key = _sdata.resolve_shapes(
            sdata, asked.shapes_key, table_name=asked.table_name, tissue_key=asked.tissue_key
        )
    found = _found(sdata, asked, shapes_key)
    there = [record for record, _ in found if record is not None]
    if not there:
        return False
    wanted = _wanted(sdata, asked, shapes_key)
    other = {name for record, same in found if record is not None for name in _unlike(record, wanted, same)}
    if other and not asked.overwrite:
        raise ValueError(
            f"{sdata.path} has a result called {asked.key!r} already, which differs from this call in: "
            f"{'; '.join(sorted(other))}. Pass another key_added, or overwrite=True to replace it."
        )
    done = not other and len(there) == len(found)
    if done:
        logger.info("%s has %r of this model already", sdata.path, asked.key)
    return done


def _found(
    sdata: SpatialData, asked: Asked, shapes_key: str | None
) -> list[tuple[Mapping[str, Any] | None, Mapping[str, str]]]:
    """The provenance of every result that is asked for, None where it is not there, and what it must share."""
    found: list[tuple[Mapping[str, Any] | None, Mapping[str, str]]] = []
    if asked.output != "layer":
        record = sdata.attrs.get("stpredict", {}).get(f"images/{asked.key}")
        found.append((record if asked.key in sdata.images else None, OF_IMAGES))
    if shapes_key is not None:
        name = asked.table_added or existing_table(sdata, shapes_key, asked.table_name)
        table = sdata.tables.get(name) if name else None
        if table is None or asked.key not in table.layers:
            found.append((None, OF_LAYERS))
        else:
            found.append((table.uns.get("stpredict", {}).get(asked.key), OF_LAYERS))
    return found


def _wanted(sdata: SpatialData, asked: Asked, shapes_key: str | None) -> dict[str, Any]:
    """The provenance that a result of this call would have."""
    wanted = provenance(asked, fingerprint(section_of(sdata, asked, shapes_key)))
    if asked.output == "layer":
        return wanted
    step = raster_factor(asked.model, asked.raster_mpp) * asked.model.stride * asked.model.mpp
    return wanted | {"raster_mpp": step, "latent": asked.output == "latent"}


def _unlike(record: Mapping[str, Any], wanted: Mapping[str, Any], same: Mapping[str, str]) -> set[str]:
    """What differs, of what the record has: older ones say less, and lists come back from a store as arrays."""
    there = [key for key in same if key in record or key in ("weights_sha256", "genes")]
    return {same[key] for key in there if np.asarray(record.get(key)).tolist() != np.asarray(wanted.get(key)).tolist()}
