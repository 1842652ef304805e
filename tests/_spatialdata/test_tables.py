"""Rows and shapes are joined by instance id, never by position."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData

from stpredict._spatialdata import table_rows

from .builders import boxes, circles, counts_table, make_spots, polygons, square_grid


def join(ids_of_shapes, ids_of_table, **obs):
    shapes = circles(square_grid(1, len(ids_of_shapes)), 3.0, ids=ids_of_shapes)
    sdata = SpatialData(shapes={"spots": shapes}, tables={"table": counts_table(ids_of_table, **obs)})
    rows, positions = table_rows(sdata, "table", "spots")
    return rows.tolist(), positions.tolist()


def test_shuffled_rows_find_their_shapes(spots):
    order = np.random.default_rng(0).permutation(20)
    spots.tables["table"] = spots.tables["table"][order].copy()
    rows, positions = table_rows(spots, "table", "spots")
    ids = spots.tables["table"].obs["instance_id"].to_numpy()
    assert rows.tolist() == list(range(20))
    assert ids[rows].tolist() == spots.shapes["spots"].index[positions].tolist()
    assert positions.tolist() == order.tolist()


@pytest.mark.parametrize(("of_shapes", "of_table"), [
    ([7, 3, 5], [5, 7]), ([7, 3, 5], ["5", "7"]), (["7", "3", "5"], [5, 7]), ([7.0, 3.0, 5.0], [5, 7]),
    (np.array([7, 3, 5], np.uint16), np.array([5, 7], np.int32)),
])  # fmt: skip
def test_ids_are_the_same_as_numbers_or_as_text(of_shapes, of_table):
    assert join(of_shapes, of_table) == ([0, 1], [2, 0])


def test_text_that_looks_like_a_number_stays_text():
    assert join(["007", "7"], ["7", "007"]) == ([0, 1], [1, 0])


def test_only_the_rows_of_the_element_are_taken():
    cells = polygons(boxes((1, 1, 9, 9), (11, 1, 19, 9)), ids=["s0", "c1"])
    sdata = make_spots(shapes={"cells": cells})
    sdata.tables["table"] = counts_table(["c1", "s3", "s0", "s1"], region=["cells", "spots", "cells", "spots"])
    assert [each.tolist() for each in table_rows(sdata, "table", "spots")] == [[1, 3], [3, 1]]
    assert [each.tolist() for each in table_rows(sdata, "table", "cells")] == [[0, 2], [1, 0]]


def test_shapes_without_a_row_are_allowed():
    assert join(["a", "b", "c"], ["c"]) == ([0], [2])


def test_ids_that_the_shapes_lack_are_named():
    with pytest.raises(ValueError, match=r"2 of 3 rows of table 'table' name instance ids that shapes 'spots' lack: "
                                         r"\['x', 'y'\]; there are \['a', 'b'\]"):  # fmt: skip
        join(["a", "b"], ["x", "a", "y"])


def test_double_ids_in_the_shapes_are_named():
    sdata = make_spots()
    shapes = sdata.shapes["spots"]
    shapes.index = ["s0", "s0", *shapes.index[2:]]
    sdata.tables["table"] = sdata.tables["table"][2:].copy()
    with pytest.raises(ValueError, match=r"shapes 'spots': instance ids are not unique: \['s0'\]"):
        table_rows(sdata, "table", "spots")


def test_double_ids_in_the_table_are_named(spots):
    spots.tables["table"].obs["instance_id"] = ["s4", "s4", *spots.tables["table"].obs["instance_id"][2:]]
    with pytest.raises(ValueError, match=r"table 'table', obs\['instance_id'\]: instance ids are not unique: \['s4'\]"):
        table_rows(spots, "table", "spots")


def test_ids_that_are_missing_are_said(spots):
    table = spots.tables["table"]
    table.obs["instance_id"] = [None, *table.obs["instance_id"][1:]]
    with pytest.raises(ValueError, match="rows without an instance id"):
        table_rows(spots, "table", "spots")


def test_a_table_of_other_shapes_says_which():
    sdata = make_spots(shapes={"cells": polygons(boxes((1, 1, 9, 9)))})
    with pytest.raises(ValueError, match=r"table 'table' annotates \['spots'\], not 'cells'. Pass shapes_key="):
        table_rows(sdata, "table", "cells")


def test_a_table_of_no_shapes_says_so(spots):
    del spots.tables["table"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="table 'table' annotates no shapes"):
        table_rows(spots, "table", "spots")


def test_a_table_that_lost_its_column_says_so(spots):
    del spots.tables["table"].obs["instance_id"]
    with pytest.raises(ValueError, match=r"table 'table' says that obs\['instance_id'\] names its shapes, but has no"):
        table_rows(spots, "table", "spots")


def test_a_missing_table_names_the_closest(spots):
    with pytest.raises(ValueError, match="no table 'tables'. Closest: 'table'"):
        table_rows(spots, "tables", "spots")
