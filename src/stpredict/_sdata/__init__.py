"""The only door between SpatialData and Sections: keys, affines, mpp, joins, targets, genes."""

from __future__ import annotations

from stpredict._sdata._affine import affines, is_micrometres, pixel_size, relative_affine
from stpredict._sdata._genes import match_genes
from stpredict._sdata._join import table_rows
from stpredict._sdata._mpp import DIAMETER_COLUMN, check_resolution, image_mpp
from stpredict._sdata._open import all_opened, opened
from stpredict._sdata._read import image_section, matrix_of, section, section_name, training_section, usable_rows
from stpredict._sdata._resolve import (
    finest,
    image_levels,
    missing_key,
    raster_size,
    regions,
    resolve_image,
    resolve_shapes,
    resolve_table,
)
from stpredict._sdata._results import (
    Change,
    Entry,
    Image,
    Table,
    check_layer,
    check_layer_size,
    check_obsm,
    check_table_size,
    commit,
    layer,
    new_table,
)
from stpredict._sdata._run import KeptParts, Run, recover, run_folder
from stpredict._sdata._shapes import check_some_inside, place, rows_of, shapes_of, tissue
from stpredict._sdata._store import check_element_key, check_key, check_stored
from stpredict._sdata._store_raster import RasterTarget, check_raster_size, raster_transformations
from stpredict._sdata._store_shapes import add_shapes
from stpredict._sdata._target import Target, check_counts, check_target, sparse_target, target, totals, usable

__all__ = [
    "Change",
    "DIAMETER_COLUMN",
    "Entry",
    "Image",
    "KeptParts",
    "RasterTarget",
    "Run",
    "Table",
    "Target",
    "add_shapes",
    "all_opened",
    "affines",
    "check_counts",
    "check_element_key",
    "check_key",
    "check_layer",
    "check_layer_size",
    "check_stored",
    "check_table_size",
    "check_obsm",
    "check_raster_size",
    "check_resolution",
    "check_some_inside",
    "check_target",
    "commit",
    "finest",
    "image_levels",
    "image_mpp",
    "image_section",
    "is_micrometres",
    "layer",
    "match_genes",
    "matrix_of",
    "missing_key",
    "new_table",
    "opened",
    "pixel_size",
    "place",
    "raster_size",
    "recover",
    "raster_transformations",
    "regions",
    "relative_affine",
    "resolve_image",
    "resolve_shapes",
    "resolve_table",
    "rows_of",
    "run_folder",
    "section",
    "section_name",
    "shapes_of",
    "sparse_target",
    "table_rows",
    "target",
    "tissue",
    "totals",
    "training_section",
    "usable",
    "usable_rows",
]
