"""The toy: simulated H&E sections whose expression is known at every pixel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from xarray import DataArray

from stpredict import _coverage
from stpredict._arguments import check_arguments
from stpredict._spatialdata import SectionSpec, geometry_of, relative_affine, usable_rows
from stpredict.datasets._toy_field import log1p_cp10k as log_rate
from stpredict.datasets._toy_field import pooled
from stpredict.datasets._toy_section import FIELD_KEY, PROFILES_KEY, Settings, amounts, check_number, simulate
from stpredict.datasets._toy_tissue import FIELD_MPP
from stpredict.metrics import log1p_cp10k, summary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def toy(
    n_sections: int = 2,
    *,
    seed: int = 0,
    size_um: float | tuple[float, float] = 2400.0,
    mpp: float = 1.0,
    n_genes: int = 120,
    cells_per_mm2: float = 4500.0,
    umi_per_spot: float = 8000.0,
    efficiency_sd: float = 0.35,
    spot_diameter_um: float = 55.0,
    pitch_um: float = 100.0,
    field_length_um: float = 300.0,
    visible: float = 0.5,
) -> list[SpatialData]:
    """Simulated sections of a tumour: H&E, spots with counts, and the rate behind them at every pixel.

    Tumour nests, glands with lumens, stroma, vessels and infiltrates, of five cell types. At a pixel the rate of gene g
    is the sum over types k of density_k x profile_k(g), where a type's profile slides between two programmes with its
    state, a smooth field in (0, 1). The image shows types and densities, and part of the state (nuclear size and
    chromatin of the tumour, mucin of the glands, collagen of the stroma); it shows neither the rest of the state nor
    how much RNA one cell holds. So neither zero nor perfect prediction is possible.

    Parameters
    ----------
    n_sections : int, default 2
        How many sections.
    seed : int, default 0
        Of all that is drawn; see Notes.
    size_um : float | tuple[float, float], default 2400.0
        Height and width of the image in micrometres; one number for a square. The tissue covers about three quarters.
    mpp : float, default 1.0
        Micrometres per pixel of the image, 0.2 to 4. The tissue does not depend on it; memory grows with the number of
        pixels (about 0.1 GB a million).
    n_genes : int, default 120
        Genes in all, at least 17: housekeeping genes (80 % of the RNA), markers of the types, then TOY001, TOY002, ...
    cells_per_mm2 : float, default 4500.0
        Cells per square millimetre of tissue, roughly (it depends on the composition), 500 to 8,000.
    umi_per_spot : float, default 8000.0
        Counting depth: the median over spots of the expected counts over all genes, at the usual efficiency.
    efficiency_sd : float, default 0.35
        Standard deviation of a spot's log capture efficiency (median 1); a spot's counts are Poisson given it.
    spot_diameter_um : float, default 55.0
        Diameter of the spots in micrometres.
    pitch_um : float, default 100.0
        Distance of neighbouring spots on a hexagonal array, in micrometres; spots whose centre is on tissue are kept.
    field_length_um : float, default 300.0
        Length of the states: correlation exp(-d² / (2 length²)) at distance d before they are squeezed into (0, 1).
    visible : float, default 0.5
        Share of a state's variance that the image shows, 0 to 1.

    Returns
    -------
    list[SpatialData]
        One object a section, which holds images["image"] (uint8 RGB), shapes["spots"], tables["table"] (raw counts; obs
        "capture_efficiency"), shapes["tissue"] (one polygon), coordinate systems "global" (pixels) and "micrometers";
        and the truth: images["field"] (component, y, x) float32 at 2 um per pixel, RNA in expected counts per square
        micrometre at efficiency 1, 0 off the tissue, whose components mix the columns of varm["toy_profiles"].
        attrs["toy"] keeps the settings and, under "oracle", the score of the truth itself against the spots (see
        `toy_oracle`).

    Raises
    ------
    ValueError
        For a setting outside its range, and for a section that holds fewer than two spots.

    Notes
    -----
    Deterministic: section i depends on `seed` and i alone, not on `n_sections`; profiles on `seed` and `n_genes` alone.
    Depth, efficiency and pitch change neither tissue nor image.

    Examples
    --------
    >>> (section,) = stp.datasets.toy(1, size_um=600, n_genes=20)
    >>> sorted(section.shapes), section.tables["table"].n_vars
    (['spots', 'tissue'], 20)
    """
    check_arguments(toy, locals())
    check_number("n_sections", n_sections, low=1, whole=True)
    settings = Settings(
        seed=seed,
        size_um=_height_width(size_um),
        mpp=mpp,
        n_genes=n_genes,
        cells_per_mm2=cells_per_mm2,
        umi_per_spot=umi_per_spot,
        efficiency_sd=efficiency_sd,
        spot_diameter_um=spot_diameter_um,
        pitch_um=pitch_um,
        field_length_um=field_length_um,
        visible=visible,
    )
    sections = [simulate(settings, number) for number in range(n_sections)]
    for section in sections:
        scores = toy_oracle(section)
        section.attrs["toy"]["oracle"] = {name: float(value) for name, value in scores.items()}
    return sections


def toy_truth(sdata: SpatialData, *, genes: Iterable[str] | None = None, mpp: float = 8.0) -> DataArray:
    """The truth of a toy section as a map: log1p of the cp10k rate pooled over each pixel.

    Parameters
    ----------
    sdata : SpatialData
        A section of `toy`.
    genes : Iterable[str], optional
        Which genes, in this order; None: all.
    mpp : float, default 8.0
        Side of a pixel in micrometres. At 2 um, the grid of the field, it is the rate itself; a coarser pixel holds
        log1p of the rate pooled over its area, as a spot of that size would measure it without noise. All genes at 2 um
        are about 700 MB for the usual section.

    Returns
    -------
    DataArray
        (c, y, x) float32, log1p of the cp10k rate. The grid starts at the upper left corner of the image; y and x are
        pixel centres in micrometres. NaN where a pixel holds no tissue at all.

    Raises
    ------
    ValueError
        For an object that is no toy section, genes that it lacks, and an mpp that is not positive.

    Examples
    --------
    >>> stp.datasets.toy_truth(slide, genes=genes, mpp=20.0).sizes["c"]
    4
    """
    check_arguments(toy_truth, locals())
    check_number("mpp", mpp, above=0.0)
    field, profile, names = _truth(sdata, genes)
    amount = pooled(field, step=mpp / FIELD_MPP)
    values = np.empty((len(names), *amount.shape[1:]), dtype=np.float32)
    for row in range(amount.shape[1]):  # the whole map in float64 would not fit everywhere
        values[:, row] = log_rate(amount[:, row].T, profile).T
    y, x = ((np.arange(n) + 0.5) * mpp for n in values.shape[1:])
    return DataArray(
        values,
        dims=("c", "y", "x"),
        coords={"c": names, "y": y, "x": x},
        attrs={"mpp": float(mpp), "unit": "log1p cp10k"},
    )


def toy_truth_shapes(
    sdata: SpatialData, shapes_key: str = "spots", *, genes: Iterable[str] | None = None
) -> pd.DataFrame:
    """The truth of a toy section inside shapes: log1p of the cp10k rate pooled over each one, by exact area.

    Parameters
    ----------
    sdata : SpatialData
        A section of `toy`.
    shapes_key : str, default "spots"
        Circles, polygons or multipolygons of any size that share a coordinate system with images["field"].
    genes : Iterable[str], optional
        Which genes, in this order; None: all.

    Returns
    -------
    DataFrame
        Float32, rows the shapes in element order, columns the genes; NaN where a shape holds no tissue.

    Raises
    ------
    ValueError
        For an object that is no toy section, shapes or genes that it lacks, and shapes that cannot be placed on the
        field.

    Examples
    --------
    >>> truth = stp.datasets.toy_truth_shapes(slide, "spots", genes=genes)
    >>> truth.shape == (len(slide.shapes["spots"]), 4)
    True
    """
    check_arguments(toy_truth_shapes, locals())
    field, profile, names = _truth(sdata, genes)
    if shapes_key not in sdata.shapes:
        raise ValueError(f"no shapes {shapes_key!r}; there are {sorted(sdata.shapes)}. Pass shapes_key= one of them.")
    shapes = _coverage.transform(geometry_of(sdata, shapes_key), relative_affine(sdata, shapes_key, FIELD_KEY))
    rate = log_rate(amounts(field, shapes), profile)
    return pd.DataFrame(rate, index=sdata.shapes[shapes_key].index, columns=pd.Index(names))


def toy_oracle(sdata: SpatialData, *, genes: Iterable[str] | None = None) -> pd.Series:
    """The score that the truth itself reaches against the noisy counts of its spots: how difficult the section is.

    Parameters
    ----------
    sdata : SpatialData
        A section of `toy`.
    genes : Iterable[str], optional
        Which genes are scored; None: all.

    Returns
    -------
    Series
        The figures of `metrics.summary` (protocol stp-2: usable spots, target from all counts of the table) for the
        true rate pooled over every spot.

    Raises
    ------
    ValueError
        Where `toy_truth_shapes` raises it, and where no spot is usable.

    Examples
    --------
    >>> best = stp.datasets.toy_oracle(slide, genes=genes)
    >>> bool(best["pcc_m"] < 1)  # counts are noisy
    True
    """
    check_arguments(toy_oracle, locals())
    truth = toy_truth_shapes(sdata, "spots", genes=genes)
    rows, _ = usable_rows(sdata, SectionSpec(image_key="image", shapes_key="spots", table_name="table"))
    table = sdata.tables["table"][rows]
    counts = table[:, list(truth.columns)].X.toarray()
    measured = log1p_cp10k(counts, np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel())
    return summary(truth.loc[table.obs["instance_id"]].to_numpy(), measured)


def _truth(sdata: SpatialData, genes: Iterable[str] | None) -> tuple[NDArray[np.float32], NDArray, list[str]]:
    """The component maps (k, h, w), the genes' shares in them (g, k), and the genes' names."""
    if FIELD_KEY not in sdata.images or "table" not in sdata.tables or PROFILES_KEY not in sdata.tables["table"].varm:
        raise ValueError(
            f"the object is no toy section: it needs images[{FIELD_KEY!r}] and "
            f"tables['table'].varm[{PROFILES_KEY!r}], and has images {sorted(sdata.images)} and tables "
            f"{sorted(sdata.tables)}. Make one with stpredict.datasets.toy."
        )
    table = sdata.tables["table"]
    names = [str(name) for name in (table.var_names if genes is None else genes)]
    at = table.var_names.get_indexer(names)
    lost = [name for name, place in zip(names, at, strict=True) if place < 0]
    if lost:
        raise ValueError(
            f"genes that the toy section lacks: {lost[:5]} ({len(lost)} of {len(names)}). It has "
            f"{table.n_vars}: {list(table.var_names[:5])} ... Choose from tables['table'].var_names."
        )
    return np.asarray(sdata.images[FIELD_KEY].data), np.asarray(table.varm[PROFILES_KEY])[at], names


def _height_width(size_um: float | Sequence[float]) -> tuple[float, float]:
    sizes = tuple(size_um) if isinstance(size_um, Sequence) else (size_um, size_um)
    if len(sizes) != 2:
        raise ValueError(f"size_um must be one number or (height, width), got {size_um!r}.")
    return sizes
