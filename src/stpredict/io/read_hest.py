"""HEST-1k: one sample of its folders, as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict.io._assemble import ARRAY_COLUMNS, assemble, check_on_image
from stpredict.io._counts import read_counts
from stpredict.io._files import read_json_object, reading
from stpredict.io._grid import pitch_px
from stpredict.io._pixels import open_pixels

PLACES = {"st": ".h5ad", "wsis": ".tif", "metadata": ".json"}
MPP, DIAMETER, PITCH = "pixel_size_um_estimated", "spot_diameter", "inter_spot_dist"  # keys of the metadata
TOLERANCE = 0.1  # of the pitch: what is measured against what is stated


def read_hest(
    path: str | Path,
    *,
    name: str | None = None,
    mpp: float | None = None,
    spot_diameter_um: float | None = None,
) -> SpatialData:
    """A sample of HEST-1k: H&E image, spots, raw counts.

    Parameters
    ----------
    path : str | Path
        The data set's folder, with `st/{name}.h5ad` (raw counts; obsm["spatial"] = column and row in pixels of the
        full-resolution image), `wsis/{name}.tif` and `metadata/{name}.json`. Its other folders are not read.
    name : str, optional
        The sample's id, such as "TENX96"; None where `st/` holds a single one.
    mpp : float, optional
        Micrometres per pixel of the image's finest level; None: `pixel_size_um_estimated` of the metadata.
    spot_diameter_um : float, optional
        Diameter of a spot; None: `spot_diameter` of the metadata. The pseudo-spots of Xenium and Visium HD samples,
        squares of that side, are read as circles, too.

    Returns
    -------
    SpatialData
        The layout of `read_st`: images["image"] (the pyramid of the file), shapes["spots"] (circles, radius in pixels),
        tables["table"] (CSR float32; in_tissue, array_row and array_col where the sample has them), coordinate systems
        "global" (pixels) and "micrometers".

    Raises
    ------
    FileNotFoundError
        Where files are missing; it names them and what is there.
    ValueError
        Where the scale or the size of the spots is not known or contradicts the spots, and where `read_st` raises it.

    Notes
    -----
    Where the metadata state both the pixel size and the distance of the spots (`inter_spot_dist`), the distance that is
    measured has to agree within 10 %, unless `mpp` or `spot_diameter_um` is given.

    References
    ----------
    Jaume et al., NeurIPS 2024 (Datasets and Benchmarks); its licence is CC BY-NC-SA 4.0.
    """
    check_arguments(read_hest, locals())
    folder = Path(path)
    sample = _only_sample(folder) if name is None else name
    counts, image, metadata = _files(folder, sample)
    stated = read_json_object(metadata)
    scale = _length(stated, MPP, mpp, "mpp", metadata)
    diameter = _length(stated, DIAMETER, spot_diameter_um, "spot_diameter_um", metadata)
    with reading(counts):
        source = ad.read_h5ad(counts)
    spot_table = _spot_table(source, counts)
    pixels = open_pixels(image)
    check_on_image(spot_table, pixels.shape, str(counts))
    if mpp is None and spot_diameter_um is None and _is_length(stated.get(PITCH)):
        _check_pitch(spot_table, scale, float(stated[PITCH]), metadata)
    table = read_counts(source)
    if "in_tissue" in source.obs:
        table.obs["in_tissue"] = source.obs["in_tissue"].to_numpy()
    return assemble(table, spot_table, pixels, mpp=scale, spot_diameter_um=diameter, name=sample)


def _only_sample(folder: Path) -> str:
    present = _samples(folder)
    if len(present) != 1:
        raise ValueError(f"{folder} holds {len(present)} samples; give name=, one of {present[:10]}.")
    return present[0]


def _samples(folder: Path) -> list[str]:
    if not (folder / "st").is_dir():
        raise FileNotFoundError(
            f"no folder st/ in {folder}. Give the folder of HEST-1k, with {', '.join(f'{place}/' for place in PLACES)}."
        )
    return sorted(file.stem for file in (folder / "st").glob("*.h5ad"))


def _files(folder: Path, sample: str) -> list[Path]:
    files = [folder / place / f"{sample}{suffix}" for place, suffix in PLACES.items()]
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"sample {sample!r}: no {missing} in {folder}. Samples in its st/: {_samples(folder)[:10]}."
        )
    return files


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value)) and value > 0


def _length(stated: dict[str, Any], key: str, given: float | None, argument: str, source: Path) -> float:
    """`given`, else what the metadata state under `key`."""
    if given is not None:
        return float(given)
    if not _is_length(stated.get(key)):
        raise ValueError(f"{source} states no {key} (it is {stated.get(key)!r}). Give {argument}=, in micrometres.")
    return float(stated[key])


def _spot_table(source: AnnData, path: Path) -> pd.DataFrame:
    if "spatial" not in source.obsm:
        raise ValueError(f'{path}: no obsm["spatial"] (found {list(source.obsm)}), so no positions.')
    xy = np.asarray(source.obsm["spatial"], dtype=np.float64)[:, :2]
    spot_table = pd.DataFrame(xy, index=source.obs_names.astype(str).rename(None), columns=["x_px", "y_px"])
    lost = spot_table.index[~np.isfinite(spot_table).all(axis=1)].tolist()
    if lost:
        raise ValueError(f"{path}: spots without a pixel position: {lost[:5]} ({len(lost)} of {len(spot_table)}).")
    obs: pd.DataFrame = source.obs
    if set(ARRAY_COLUMNS) <= set(obs.columns):
        array = obs[list(ARRAY_COLUMNS)].to_numpy(dtype=np.float64)
        if np.isfinite(array).all():  # pseudo-spots have no array
            spot_table[list(ARRAY_COLUMNS)] = np.rint(array).astype(np.int64)
    return spot_table


def _check_pitch(spot_table: pd.DataFrame, mpp: float, stated_um: float, source: Path) -> None:
    measured_um = mpp * pitch_px(spot_table[["x_px", "y_px"]].to_numpy(), None)
    if abs(measured_um - stated_um) > TOLERANCE * stated_um:
        raise ValueError(
            f"{source} states spots {stated_um:g} um apart and {mpp:g} um per pixel, but at that scale they lie "
            f"{measured_um:.0f} um apart. Give mpp= where the scale is wrong, or spot_diameter_um= where the spots are."
        )
