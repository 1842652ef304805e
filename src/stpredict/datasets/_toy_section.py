"""One toy section from its settings: tissue, cells, image, rate, spots, counts, put together as SpatialData."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

from stpredict import _coverage
from stpredict._window import Window
from stpredict.datasets._toy_cells import place_cells
from stpredict.datasets._toy_field import components, owners
from stpredict.datasets._toy_genes import COMPONENTS, N_GENES_MIN, gene_names, profiles
from stpredict.datasets._toy_image import draw, draw_stain
from stpredict.datasets._toy_tissue import FIELD_MPP, build_tissue
from stpredict.io import MICROMETERS, coordinate_systems, image_element

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIELD_KEY, TISSUE_KEY, PROFILES_KEY = "field", "tissue", "toy_profiles"
FIELD_CHUNK = 512


@dataclass(frozen=True)
class Settings:
    """What decides a toy section, besides its number; the fields are the arguments of `toy`."""

    seed: int
    size_um: tuple[float, float]
    mpp: float
    n_genes: int
    cells_per_mm2: float
    umi_per_spot: float
    efficiency_sd: float
    spot_diameter_um: float
    pitch_um: float
    field_length_um: float
    visible: float

    def __post_init__(self) -> None:
        for size in self.size_um:
            check_number("size_um", size, above=0.0, high=50_000.0)
        check_number("seed", self.seed, low=0, whole=True)
        check_number("mpp", self.mpp, low=0.2, high=4.0)
        check_number("n_genes", self.n_genes, low=N_GENES_MIN, whole=True)
        check_number("cells_per_mm2", self.cells_per_mm2, low=500.0, high=8000.0)
        check_number("umi_per_spot", self.umi_per_spot, above=0.0)
        check_number("efficiency_sd", self.efficiency_sd, low=0.0)
        check_number("spot_diameter_um", self.spot_diameter_um, above=0.0)
        check_number("pitch_um", self.pitch_um, low=self.spot_diameter_um)
        check_number("field_length_um", self.field_length_um, low=FIELD_MPP)
        check_number("visible", self.visible, low=0.0, high=1.0)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return round(self.size_um[0] / self.mpp), round(self.size_um[1] / self.mpp)


def check_number(
    name: str, value: float, *, low: float = -np.inf, high: float = np.inf, above: float = -np.inf, whole: bool = False
) -> None:
    """Raise ValueError for a value that is not a finite number in [low, high] and larger than `above`."""
    number = isinstance(value, (int, np.integer)) or (isinstance(value, (float, np.floating)) and not whole)
    if number and not isinstance(value, bool) and np.isfinite(value) and low <= value <= high and value > above:
        return
    bounds = [f"above {above:g}"] if np.isfinite(above) else []
    bounds += [f"at least {low:g}"] if np.isfinite(low) else []
    bounds += [f"at most {high:g}"] if np.isfinite(high) else []
    raise ValueError(f"{name} must be a {'whole ' if whole else ''}number {' and '.join(bounds)}, got {value!r}.")


def simulate(settings: Settings, number: int) -> SpatialData:
    """Section `number` (from 0); it does not depend on how many others there are.

    Each part draws from its own stream, so that the counting depth changes neither tissue nor image.
    """
    streams = np.random.SeedSequence([settings.seed, 1 + number]).spawn(5)
    of_tissue, of_cells, of_stain, of_image, of_counts = (np.random.default_rng(stream) for stream in streams)
    profile = profiles(np.random.default_rng([settings.seed, 0]), settings.n_genes)
    size_um = settings.shape[0] * settings.mpp, settings.shape[1] * settings.mpp
    tissue = build_tissue(of_tissue, size_um, field_length_um=settings.field_length_um, visible=settings.visible)
    cells = place_cells(of_cells, tissue, per_mm2=settings.cells_per_mm2)
    owner = owners(tissue, cells)
    pixels = draw(of_image, tissue, cells, owner, draw_stain(of_stain), shape=settings.shape, mpp=settings.mpp)
    field = components(tissue, cells, owner)
    spots = _spots(settings, size_um, shapely.Polygon(tissue.outline[:, ::-1]))
    amount = amounts(field, _circles(spots, settings, FIELD_MPP))
    usual = settings.umi_per_spot / np.median(amount.sum(axis=1))
    field *= np.float32(usual)
    table = _table(of_counts, settings, spots, amount * usual, profile)
    outline = shapely.Polygon(tissue.outline[:, ::-1] / settings.mpp)
    return _assemble(settings, number, pixels, field, spots, table, outline)


def amounts(field: NDArray[np.float32], shapes: _coverage.Shapes) -> NDArray[np.float64]:
    """RNA of every component inside every shape, (n, k), by exact area.

    Parameters
    ----------
    field : ndarray of float32
        (k, h, w) RNA per square micrometre.
    shapes : Shapes
        (n,) in pixels of the field.
    """
    window = Window(0, 0, *field.shape[1:])
    area = _coverage.coverage(shapes, window) * FIELD_MPP**2
    return np.stack([area @ component.ravel().astype(np.float64) for component in field], axis=1)


def _spots(settings: Settings, size_um: tuple[float, float], outline: shapely.Polygon) -> pd.DataFrame:
    """The spots of a hexagonal array that lie wholly on the image with their centre on tissue.

    Columns: y_um, x_um, array_row, array_col; index: instance ids.
    Array coordinates as on Visium: in even rows even columns, in odd rows odd ones.
    """
    step_y, step_x = settings.pitch_um * np.sqrt(0.75), settings.pitch_um / 2.0
    margin = settings.spot_diameter_um / 2.0 + settings.mpp
    n_rows, n_columns = (int((n - 2.0 * margin) // s) + 1 for n, s in zip(size_um, (step_y, step_x), strict=True))
    row, column = (index.ravel() for index in np.indices((max(n_rows, 0), max(n_columns, 0))))
    row, column = row[(row + column) % 2 == 0], column[(row + column) % 2 == 0]
    y = size_um[0] / 2.0 + (row - (n_rows - 1) / 2.0) * step_y
    x = size_um[1] / 2.0 + (column - (n_columns - 1) / 2.0) * step_x
    spots = pd.DataFrame({"y_um": y, "x_um": x, "array_row": row, "array_col": column})
    spots.index = pd.Index(spots["array_row"].astype(str) + "x" + spots["array_col"].astype(str))
    spots = spots[shapely.contains_xy(outline, x, y)]
    if len(spots) < 2:
        raise ValueError(
            f"a section of {size_um[0]:g} x {size_um[1]:g} um holds {len(spots)} spots of "
            f"{settings.spot_diameter_um:g} um at a pitch of {settings.pitch_um:g} um; at least 2 are needed. "
            "Raise size_um= or lower pitch_um=."
        )
    return spots


def _circles(spots: pd.DataFrame, settings: Settings, mpp: float) -> _coverage.Shapes:
    centre = spots[["x_um", "y_um"]].to_numpy() / mpp
    return _coverage.Shapes(shapely.points(centre), np.full(len(spots), settings.spot_diameter_um / 2.0 / mpp))


def _table(
    rng: np.random.Generator, settings: Settings, spots: pd.DataFrame, amount: NDArray, profile: NDArray
) -> AnnData:
    """Poisson counts of what each spot covers times its capture efficiency."""
    efficiency = np.exp(settings.efficiency_sd * rng.standard_normal(len(spots)))
    counts = rng.poisson(efficiency[:, None] * (amount @ profile.T))
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["spots"] * len(spots)),
            "instance_id": spots.index.to_numpy(),
            "array_row": spots["array_row"].to_numpy(),
            "array_col": spots["array_col"].to_numpy(),
            "capture_efficiency": efficiency,
        },
        index=spots.index,
    )
    var = pd.DataFrame(index=pd.Index(gene_names(settings.n_genes)))
    table = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    table.varm[PROFILES_KEY] = profile
    table.obsm["spatial"] = spots[["x_um", "y_um"]].to_numpy() / settings.mpp
    return TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")


def _assemble(
    settings: Settings,
    number: int,
    pixels: NDArray[np.uint8],
    field: NDArray[np.float32],
    spots: pd.DataFrame,
    table: AnnData,
    outline: shapely.Polygon,
) -> SpatialData:
    systems = coordinate_systems(settings.mpp)
    ratio = FIELD_MPP / settings.mpp
    of_field = {
        "global": Scale([ratio, ratio], axes=("x", "y")),
        MICROMETERS: Scale([FIELD_MPP, FIELD_MPP], axes=("x", "y")),
    }
    maps = da.from_array(field, chunks=(len(COMPONENTS), FIELD_CHUNK, FIELD_CHUNK))
    rate = Image2DModel.parse(maps, dims=("c", "y", "x"), c_coords=list(COMPONENTS), transformations=of_field)
    shapes = _circles(spots, settings, settings.mpp)
    circles = GeoDataFrame({"radius": shapes.radius}, geometry=shapes.geometry, index=spots.index)
    return SpatialData(
        images={"image": image_element([da.from_array(pixels)], mpp=settings.mpp), FIELD_KEY: rate},
        shapes={
            "spots": ShapesModel.parse(circles, transformations=systems),
            TISSUE_KEY: ShapesModel.parse(GeoDataFrame(geometry=[outline]), transformations=systems),
        },
        tables={"table": table},
        attrs=_attrs(settings, number),
    )


def _attrs(settings: Settings, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {name: np.asarray(value).tolist() for name, value in asdict(settings).items()}
    message |= {"section": number, "unit": "UMI per um^2"}
    # the place of the field is named so that nobody takes it for the H&E image
    return {"name": f"toy{number}", "toy": message, "stpredict": {f"images/{FIELD_KEY}": {"made_by": "datasets.toy"}}}
