"""Which element is meant, and what is said where that is not clear."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from stpredict._spatialdata import image_levels, raster_size, regions, resolve_image, resolve_shapes, resolve_table

from .builders import boxes, circles, counts_table, make_spots, mask_labels, polygons, rgb, square_grid


def test_the_only_element_needs_no_key(spots):
    assert resolve_image(spots) == "image"
    assert resolve_shapes(spots) == "spots"
    assert resolve_table(spots, None, shapes_key="spots") == "table"


def test_a_key_that_is_given_wins():
    sdata = make_spots(images={"other": rgb()}, shapes={"cells": polygons(boxes((1, 1, 9, 9)))})
    assert resolve_image(sdata, "other") == "other"
    assert resolve_shapes(sdata, "cells", table_name="table") == "cells"


def test_several_images_and_no_key_lists_them():
    with pytest.raises(ValueError, match=r"several images: \['image', 'other'\].*image_key="):
        resolve_image(make_spots(images={"other": rgb()}))


def test_a_raster_that_stpredict_wrote_is_no_candidate():
    sdata = make_spots(images={"pixnet": rgb()})
    sdata.attrs["stpredict"] = {"images/pixnet": {"model": "PixNet"}}
    assert resolve_image(sdata) == "image"
    assert resolve_image(sdata, "pixnet") == "pixnet"


def test_of_several_images_the_only_one_in_colour_is_taken():
    maps = Image2DModel.parse(np.zeros((2, 40, 40), np.float16), dims=("c", "y", "x"), c_coords=["GNAS", "SCD"])
    stain = Image2DModel.parse(np.zeros((3, 40, 40), np.uint16), dims=("c", "y", "x"))
    sdata = make_spots(images={"pixnet": maps, "dapi": stain})
    assert resolve_image(sdata) == "image"
    sdata.images["other"] = rgb()
    with pytest.raises(ValueError, match=r"several images: \['dapi', 'image', 'other', 'pixnet'\]"):
        resolve_image(sdata)


def test_several_shapes_and_no_key_lists_them():
    cells = polygons(boxes((1, 1, 9, 9)), ids=["c0"])
    for tables in ({}, {"of_cells": counts_table(["c0"], region="cells")}):  # none annotated, both annotated
        sdata = make_spots(shapes={"cells": cells}, tables=tables)
        if not tables:
            del sdata.tables["table"]
        with pytest.raises(ValueError, match=r"several shapes: \['cells', 'spots'\].*shapes_key="):
            resolve_shapes(sdata)


def test_of_several_shapes_the_only_ones_with_measurements_are_taken():
    sdata = make_spots(shapes={"outline": polygons(boxes((1, 1, 9, 9)), ids=["c0"])})
    assert resolve_shapes(sdata) == "spots"
    predicted = counts_table(["c0"], region="outline")
    predicted.X = predicted.X.toarray().astype(np.float32)
    predicted.layers["ridge"] = predicted.X.copy()
    predicted.var["ridge"] = True
    sdata.tables["outline_ridge"] = predicted
    assert resolve_shapes(sdata) == "spots"


def test_a_table_of_predictions_is_no_candidate_beside_a_measured_one(spots):
    for name in ("first", "second"):
        predicted = spots.tables["table"].copy()
        predicted.X = predicted.X.toarray().astype(np.float32)
        predicted.layers["ridge"] = predicted.X.copy()
        predicted.var["ridge"] = True
        spots.tables[name] = predicted
    assert resolve_table(spots, None, shapes_key="spots") == "table"
    del spots.tables["table"]
    with pytest.raises(ValueError, match=r"several tables annotate the shapes 'spots': \['first', 'second'\]"):
        resolve_table(spots, None, shapes_key="spots")


def test_the_named_table_decides_between_shapes_if_it_annotates_one():
    sdata = make_spots(shapes={"cells": polygons(boxes((1, 1, 9, 9)))})
    assert resolve_shapes(sdata, table_name="table") == "spots"
    with pytest.raises(ValueError, match="several shapes"):
        resolve_shapes(sdata, table_name="no such table")


def test_a_table_of_two_elements_does_not_decide():
    cells = polygons(boxes((1, 1, 9, 9)), ids=["c0"])
    sdata = make_spots(shapes={"cells": cells})
    ids = [*sdata.shapes["spots"].index, "c0"]
    sdata.tables["table"] = counts_table(ids, region=["spots"] * 20 + ["cells"])
    with pytest.raises(ValueError, match="several shapes"):
        resolve_shapes(sdata, table_name="table")


def test_tissue_outlines_are_no_candidates():
    sdata = make_spots(shapes={"tissue": polygons(boxes((1, 1, 99, 99)))})
    assert resolve_shapes(sdata, tissue_key="tissue") == "spots"


@pytest.mark.parametrize(("resolve", "key", "said"), [
    (resolve_image, "imag", r"no image 'imag'. Closest: 'image'. Pass image_key= one of \['image'\]"),
    (resolve_shapes, "spot", r"no shapes 'spot'. Closest: 'spots'. Pass shapes_key= one of \['spots'\]"),
    (lambda sdata, key: resolve_table(sdata, key, shapes_key="spots"), "tabel", "no table 'tabel'. Closest: 'table'"),
])  # fmt: skip
def test_a_missing_key_names_the_closest(spots, resolve, key, said):
    with pytest.raises(ValueError, match=said):
        resolve(spots, key)


def test_a_key_like_no_other_still_lists_what_exists(spots):
    with pytest.raises(ValueError, match=r"^no image 'zzz'. Pass image_key= one of \['image'\].$"):
        resolve_image(spots, "zzz")


def test_an_object_without_image_or_shapes_says_what_it_has():
    with pytest.raises(ValueError, match=r"no H&E image; it has images \[\], .*shapes \['spots'\]"):
        resolve_image(SpatialData(shapes={"spots": circles(square_grid(), 3.0)}))
    with pytest.raises(ValueError, match=r"no shapes to work in; it has images \['image'\].*pp.tile_grid"):
        resolve_shapes(SpatialData(images={"image": rgb()}))


def test_several_tables_of_one_element_are_listed(spots):
    spots.tables["more"] = counts_table(spots.shapes["spots"].index)
    with pytest.raises(ValueError, match=r"several tables annotate the shapes 'spots': \['more', 'table'\]"):
        resolve_table(spots, None, shapes_key="spots")
    assert resolve_table(spots, "more", shapes_key="spots") == "more"


def test_shapes_without_a_table_have_none():
    sdata = make_spots(shapes={"cells": polygons(boxes((1, 1, 9, 9)))})
    assert resolve_table(sdata, None, shapes_key="cells") is None


def test_regions_of_tables(spots):
    table = spots.tables["table"]
    assert regions(table) == ["spots"]
    del table.uns["spatialdata_attrs"]
    assert regions(table) == []


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_levels_and_size_of_an_image(scale_factors):
    sdata = SpatialData(images={"image": rgb(90, 130, scale_factors=scale_factors)})
    levels = image_levels(sdata, "image")
    assert [level.shape for level in levels] == [(3, 90, 130), (3, 45, 65), (3, 22, 32)][: 1 + len(scale_factors or [])]
    assert raster_size(sdata, "image") == (90, 130)


@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_size_of_labels(scale_factors):
    sdata = SpatialData(labels={"tissue": mask_labels(np.ones((40, 60)), scale_factors=scale_factors)})
    assert raster_size(sdata, "tissue") == (40, 60)


@pytest.mark.parametrize(("pixels", "names", "said"), [
    (np.zeros((4, 8, 8), np.uint8), None, r"not RGB.*\(4, 8, 8\).*Drop the alpha channel"),
    (np.zeros((2, 8, 8), np.uint8), ["DAPI", "CD3"], r"not RGB.*\(2, 8, 8\).*\['DAPI', 'CD3'\].*not of stains"),
    (np.zeros((3, 8, 8), np.uint16), None, r"not RGB.*dtype uint16.*Convert it to uint8"),
    (np.zeros((3, 8, 8), np.float32), None, r"not RGB.*dtype float32.*Convert it to uint8"),
    (np.zeros((3, 8, 8), np.uint8), ["b", "g", "r"], r"not RGB.*order red, green, blue"),
])  # fmt: skip
def test_an_image_that_is_not_rgb(pixels, names, said):
    sdata = SpatialData(images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names)})
    with pytest.raises(ValueError, match=said):
        image_levels(sdata, "image")


def test_a_table_with_a_copy_of_its_counts_in_a_layer_is_measured():
    sdata = make_spots(shapes={"outline": polygons(boxes((1, 1, 9, 9)), ids=["c0"])})
    table = sdata.tables["table"]
    table.X = table.X.toarray().astype(np.float32)
    table.layers["counts"] = table.X.copy()  # as scanpy's users keep them
    assert resolve_shapes(sdata) == "spots"
