"""Results that are kept as files, so that an interrupted comparison goes on where it was."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stpredict import _spatialdata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from spatialdata import SpatialData


def cached_json(file: Path | None, of: str, make: Callable[[], dict[str, Any]], *, what: str) -> dict[str, Any]:
    """What `make` returns, from its file if there is one; without a file, made anew.

    Parameters
    ----------
    of : str
        A hash of all that decides the result. Raises ValueError for a file of another, with `what` it is.
    """
    if file is None:
        return make()
    if file.is_file():
        known = json.loads(file.read_text())
        if known["of"] != of:
            raise ValueError(
                f"{file} was made of other genes, sections, counts, settings or first weights than {what}. Give this "
                "run another path=, or delete the file."
            )
        return known["result"]
    result = make()
    write_json(file, {"of": of, "result": result})
    return result


def write_json(file: Path, values: Any) -> None:
    """Write a file that is there at once and whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(values, indent=1))
    aside.replace(file)


def environment_info(device: torch.device, precision: str) -> dict[str, Any]:
    """What made a result, besides its settings: device, format of the training, threads, versions."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("stpredict", "torch", "timm")}
    return {"device": str(device), "precision": precision, "threads": torch.get_num_threads(), "versions": versions}


def count_rules(sdatas: Mapping[str, SpatialData], spec: _spatialdata.SectionSpec) -> dict[str, Any]:
    """What a record says of counts, by section: how many a shape needs, and of how many genes a targeted panel is.

    None for both where the target is no count; tables of a whole transcriptome are not named as panels.
    """
    if spec.target == "as_is":
        return {"min_counts_used": None, "targeted_panels": None}
    genes = {name: _spatialdata.n_targeted_genes(s.tables[spec.table_name]) for name, s in sdatas.items()}
    return {
        "min_counts_used": {name: _spatialdata.needed_counts(sdata, spec) for name, sdata in sdatas.items()},
        "targeted_panels": {name: n for name, n in genes.items() if n is not None},
    }


def count_summary(sdata: SpatialData, spec: _spatialdata.SectionSpec) -> dict[str, Any]:
    """How many spots are used, why others are not, and a hash of what was measured."""
    rows, dropped = _spatialdata.usable_rows(sdata, spec)
    matrix = sparse.csr_array(_spatialdata.matrix_of(sdata.tables[spec.table_name], spec.layer, what="table")[rows])
    matrix.sum_duplicates()
    parts = (matrix.data.astype(np.float64), matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64))
    digest = hashlib.sha256(b"".join(each.tobytes() for each in parts)).hexdigest()[:16]
    return {"n_spots": len(rows), "dropped": dropped, "counts": digest}
