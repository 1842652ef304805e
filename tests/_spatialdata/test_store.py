"""Names that may be written, stores that may be written to, and what is left in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel

from stpredict._spatialdata._store import _results, _transaction
from stpredict._spatialdata._store._element import NewName, NewNames

from .samples import GENES, backed, disk, holds, make_layer, make_sdata, make_table, make_target, memory, predict


def checked_names(sdata: SpatialData, add: Callable[[NewNames], None]) -> None:
    names = NewNames(sdata, overwrite=False)
    add(names)
    names.check()


@pytest.mark.parametrize(
    "key", ["", "a b", "a/b", "é", "µ", "__x", ".", "..", ".x", "_index", "zarr.json", "Zarr.json", 151 * "a", "a:b", 3]
)
def test_names_that_a_store_cannot_hold_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a layer"):
        NewName(key, "layer", frozenset()).check(overwrite=True)


def test_a_key_that_exists_needs_overwrite_and_one_that_differs_by_case_is_never_written() -> None:
    NewName("pixnet", "layer", frozenset({"other"})).check(overwrite=False)
    NewName("pixnet", "layer", frozenset({"pixnet"})).check(overwrite=True)
    with pytest.raises(ValueError, match=r"layer called 'pixnet' already.*overwrite=True"):
        NewName("pixnet", "layer", frozenset({"pixnet"})).check(overwrite=False)
    with pytest.raises(ValueError, match=r"'pixnet' differs from the existing layer 'PixNet' by case alone"):
        NewName("pixnet", "layer", frozenset({"PixNet"})).check(overwrite=True)


@pytest.mark.parametrize("key", ["spots", "SPOTS", "Table"])
def test_an_image_cannot_take_the_name_of_another_kind_of_element(tmp_path: Path, key: str) -> None:
    for sdata in (make_sdata(), backed(tmp_path)):
        with pytest.raises(ValueError, match="unique over all kinds"):
            NewNames(sdata, overwrite=True).element("images", key)


def test_an_element_that_is_only_in_the_store_counts_as_existing(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    predict(read_zarr(sdata.path))
    with pytest.raises(ValueError, match="image called 'pixnet' already"):
        checked_names(sdata, lambda names: names.element("images", "pixnet"))
    with pytest.raises(ValueError, match="layer of table 'table' called 'pixnet' already"):
        checked_names(sdata, lambda names: names.layer("table", "pixnet"))


def test_a_table_that_was_filtered_sorted_or_renamed_in_memory_is_refused(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    stored = disk(tmp_path)
    table = sdata.tables["table"]
    renamed = table.copy()
    renamed.obs_names = [*table.obs_names[:3], "else", *table.obs_names[4:]]
    for changed in (table[:7], table[::-1], table[:, :5], renamed):
        sdata.tables["table"] = changed.copy()
        before = memory(sdata)
        with pytest.raises(ValueError, match=r"(obs|var)_names of table 'table' differ.*sdata.write"):
            checked_names(sdata, lambda names: names.layer("table", "pixnet"))
        entry = _results.TableEntry("table", "pixnet", np.zeros(changed.shape, np.float32))
        with pytest.raises(ValueError, match="differ between the store"):
            _results.commit(sdata, [entry])
        assert memory(sdata) == before
        assert disk(tmp_path) == stored


def test_a_table_that_is_not_in_the_store_is_refused(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    sdata.tables["fresh"] = make_table(sdata).table
    with pytest.raises(ValueError, match=r"not in its store.*write_element\('fresh'\)"):
        checked_names(sdata, lambda names: names.layer("fresh", "other"))


def test_a_store_that_may_only_be_read_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = backed(tmp_path)
    before, stored = memory(sdata), disk(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions do not bind root, who may run the tests
    with pytest.raises(PermissionError, match=r"may only be read.*sdata.write"):
        _results.commit(sdata, [make_layer(sdata)])
    monkeypatch.undo()

    def closed(**options: Any) -> str:
        raise PermissionError("read-only")

    monkeypatch.setattr(_transaction.tempfile, "mkdtemp", closed)
    with pytest.raises(PermissionError, match="cannot write beside the store"):
        _results.commit(sdata, [make_layer(sdata)])
    assert memory(sdata) == before
    assert disk(tmp_path) == stored


def test_a_store_that_is_gone_or_of_the_older_format_is_refused(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    (tmp_path / "slide.zarr" / "zarr.json").rename(tmp_path / "slide.zarr" / ".zgroup")
    with pytest.raises(ValueError, match="older format"):
        _results.commit(sdata, [make_layer(sdata)])
    shutil.rmtree(tmp_path / "slide.zarr")
    with pytest.raises(FileNotFoundError, match="not a folder here"):
        _results.commit(sdata, [make_layer(sdata)])


def test_a_raster_that_others_read_lazily_is_not_replaced(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    predict(sdata)
    part = sdata.images["pixnet"].isel(x=slice(0, 8))
    sdata.images["part"] = Image2DModel.parse(part, c_coords=GENES)
    with pytest.raises(ValueError, match=r"images\['part'\] reads lazily from images\['pixnet'\]"):
        predict(sdata, plus=1.0, overwrite=True)
    assert all(holds(sdata, 0.0))


def test_overwriting_replaces_everything_and_leaves_no_trace(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    predict(sdata)
    before = set(disk(tmp_path))
    predict(sdata, plus=1.0, overwrite=True)
    assert all(holds(sdata, 1.0))
    assert all(holds(read_zarr(sdata.path), 1.0))
    assert set(disk(tmp_path)) == before
    assert read_zarr(sdata.path).attrs["stpredict"]["images/pixnet"] == {"run": 1.0}


def test_what_a_killed_process_left_beside_the_store_is_named_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = backed(tmp_path)
    left = tmp_path / ".slide.zarr.stpredict-4194999-abc"  # above the largest process id
    left.mkdir()
    with make_target(sdata) as target:
        _results.commit(sdata, [target.image({})])
    assert {record.getMessage().split()[0] for record in caplog.records if record.levelname == "WARNING"} == {str(left)}
    assert left.is_dir()
