"""The only package that reads and writes SpatialData: elements, transformations, mpp, genes, sections and stores."""

from __future__ import annotations

from stpredict._spatialdata._arrays import DIAMETER_COLUMN
from stpredict._spatialdata._background import tissue_outline, warn_of_background
from stpredict._spatialdata._elements import (
    TISSUE_COLUMN,
    all_opened,
    finest,
    image_levels,
    listed,
    missing_key,
    opened,
    path_of,
    raster_size,
    regions,
    resolve_image,
    resolve_shapes,
    resolve_table,
)
from stpredict._spatialdata._nuclei import picture_mpp
from stpredict._spatialdata._scale import BY_HAND, MAX_CONTRADICTION, image_mpp, warn_of_mpp
from stpredict._spatialdata._sections import (
    areas_um2,
    image_section,
    measured_shapes,
    needed_counts,
    section,
    section_name,
    training_section,
    usable_rows,
)
from stpredict._spatialdata._several import specs_of, training_sections
from stpredict._spatialdata._shapes import (
    check_some_inside,
    clip_locally,
    geometry_of,
    shapes_element,
    shapes_in_pixels,
    tissue,
)
from stpredict._spatialdata._spec import SectionSpec, domain_view, picture_digest
from stpredict._spatialdata._store._checkpoint import Checkpoint, PartialFiles, checkpoint_folder, recover
from stpredict._spatialdata._store._element import NewNames, add_shapes
from stpredict._spatialdata._store._raster import RasterTarget, raster_transformations
from stpredict._spatialdata._store._results import (
    Change,
    TableElement,
    TableEntry,
    check_layer_size,
    check_table_size,
    commit,
    layer,
    new_table,
)
from stpredict._spatialdata._store._transaction import Store, open_store
from stpredict._spatialdata._tables import (
    ENSEMBL,
    is_gene,
    match_genes,
    matrix_of,
    n_targeted_genes,
    rows_of_table,
    table_rows,
)
from stpredict._spatialdata._target import Target, check_counts, sparse_target, target, totals, usable
from stpredict._spatialdata._transformations import (
    affines,
    check_resolution,
    is_micrometres,
    pixel_size,
    relative_affine,
)

__all__ = [
    "BY_HAND",
    "ENSEMBL",
    "Change",
    "Checkpoint",
    "DIAMETER_COLUMN",
    "MAX_CONTRADICTION",
    "NewNames",
    "PartialFiles",
    "RasterTarget",
    "SectionSpec",
    "Store",
    "TISSUE_COLUMN",
    "TableElement",
    "TableEntry",
    "Target",
    "add_shapes",
    "affines",
    "all_opened",
    "areas_um2",
    "check_counts",
    "check_layer_size",
    "check_resolution",
    "check_some_inside",
    "check_table_size",
    "checkpoint_folder",
    "clip_locally",
    "commit",
    "domain_view",
    "finest",
    "geometry_of",
    "image_levels",
    "image_mpp",
    "image_section",
    "is_gene",
    "is_micrometres",
    "layer",
    "listed",
    "match_genes",
    "matrix_of",
    "measured_shapes",
    "missing_key",
    "n_targeted_genes",
    "needed_counts",
    "new_table",
    "opened",
    "open_store",
    "path_of",
    "picture_mpp",
    "pixel_size",
    "raster_size",
    "raster_transformations",
    "recover",
    "regions",
    "relative_affine",
    "resolve_image",
    "resolve_shapes",
    "resolve_table",
    "rows_of_table",
    "section",
    "picture_digest",
    "section_name",
    "shapes_element",
    "shapes_in_pixels",
    "sparse_target",
    "specs_of",
    "table_rows",
    "target",
    "tissue",
    "totals",
    "tissue_outline",
    "training_section",
    "training_sections",
    "usable",
    "usable_rows",
    "warn_of_background",
    "warn_of_mpp",
]
