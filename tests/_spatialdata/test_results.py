"""Results go into the object and its store whole, and come back bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel

from stpredict._spatialdata import NewNames, table_rows
from stpredict._spatialdata._store import _results

from .samples import GENES, RECORD, backed, disk, fill, make_layer, make_sdata, make_table, make_target


@pytest.fixture(params=["memory", "backed"])
def sdata(request: pytest.FixtureRequest, tmp_path: Path) -> SpatialData:
    """The object in memory, and the same read from a store."""
    return backed(tmp_path) if request.param == "backed" else make_sdata()


def test_layer_lands_in_its_own_rows_and_comes_back_bit_for_bit(sdata: SpatialData) -> None:
    _results.commit(sdata, [make_layer(sdata)])
    objects = [sdata] if sdata.path is None else [sdata, read_zarr(sdata.path)]
    for each in objects:
        table = each.tables["table"]
        layer = table.layers["pixnet"]
        assert layer.dtype == np.float32
        number = table.obs["instance_id"].str.removeprefix("spot").astype(int).to_numpy()
        expected = np.full((10, 6), np.nan, np.float32)
        for gene in (1, 3, 4):
            expected[:, gene] = np.where(number == 7, np.nan, 100 * number + gene)
        np.testing.assert_array_equal(layer, expected)
        assert table.var["pixnet"].dtype == bool
        assert table.var["pixnet"].tolist() == [False, True, False, True, True, False]
        np.testing.assert_array_equal(table.var["pixnet_val_pcc"], [np.nan, 0.1, np.nan, 0.3, 0.4, np.nan])
        np.testing.assert_array_equal(table.obs["pixnet_coverage"], np.linspace(0, 1, 10)[number])
        assert each.attrs["stpredict"]["tables/table/layers/pixnet"] == RECORD
        stored = {
            k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in table.uns["stpredict"]["pixnet"].items()
        }
        assert stored == RECORD


def test_everything_at_once_and_written_again_elsewhere(sdata: SpatialData, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(3, 10, 16)).astype(np.float16)
    with make_target(sdata) as target:
        fill(target, values)
        _results.commit(sdata, [make_layer(sdata), make_table(sdata), target.image(RECORD)])
    sdata.write(tmp_path / "again.zarr", update_sdata_path=False)
    for each in [sdata, read_zarr(tmp_path / "again.zarr"), *([read_zarr(sdata.path)] if sdata.path else [])]:
        raster = each.images["pixnet"]
        assert raster.dtype == np.float32
        assert raster.coords["c"].to_numpy().tolist() == GENES
        np.testing.assert_array_equal(raster.to_numpy(), values)
        np.testing.assert_array_equal(each.tables["table"].layers["pixnet"], sdata.tables["table"].layers["pixnet"])
        panel = each.tables["spots_pixnet"]
        np.testing.assert_array_equal(panel.X, np.arange(30, dtype=np.float32).reshape(10, 3))
        np.testing.assert_array_equal(panel.X, panel.layers["pixnet"])
        assert set(each.attrs["stpredict"]) == {
            "tables/table/layers/pixnet", "tables/spots_pixnet/layers/pixnet", "images/pixnet"
        }  # fmt: skip
        assert all(record == RECORD for record in each.attrs["stpredict"].values())


def test_a_layer_that_is_too_wide_says_both_sizes_and_names_table_added() -> None:
    _results.check_layer_size(1000, 18_000, 250, limit_bytes=72_000_000)
    with pytest.raises(ValueError, match=r"72.0 GB, above the limit of 4.0 GB.*250.*1.0 GB.*table_added="):
        _results.check_layer_size(1_000_000, 18_000, 250)


def test_a_view_gets_its_layer_and_the_table_behind_it_does_not() -> None:
    sdata = make_sdata()
    whole = sdata.tables["table"]
    sdata.tables["table"] = view = whole[2:8]
    assert view.is_view
    _results.commit(sdata, [make_layer(sdata)])
    assert sdata.tables["table"] is view
    assert np.isfinite(view.layers["pixnet"]).any()
    assert "pixnet" in view.var
    assert "pixnet" not in whole.layers
    assert "pixnet" not in whole.var
    assert "stpredict" not in whole.uns


def test_rows_of_other_regions_stay_nan(sdata: SpatialData) -> None:
    if sdata.path is None:
        table = sdata.tables["table"]
        table.obs["region"] = pd.Categorical(["spots"] * 6 + ["others"] * 4)
        del table.uns["spatialdata_attrs"]
        sdata.tables["table"] = TableModel.parse(
            table, region=["spots", "others"], region_key="region", instance_key="instance_id"
        )
        _results.commit(sdata, [make_layer(sdata)])
        assert np.isnan(table.layers["pixnet"][6:]).all()
        assert np.isnan(table.obs["pixnet_coverage"][6:]).all()
        assert np.isfinite(table.obs["pixnet_coverage"][:6]).all()


def test_overwriting_takes_away_columns_that_the_new_result_lacks(sdata: SpatialData) -> None:
    _results.commit(sdata, [make_layer(sdata)])
    bare = _results.layer(
        sdata, "table", "pixnet", values=np.ones((10, 1)), join=table_rows(sdata, "table", "spots"),
        columns=np.array([2]), record={},
    )  # fmt: skip
    with pytest.raises(ValueError, match="already"):
        _results.commit(sdata, [bare])
    _results.commit(sdata, [bare], overwrite=True)
    for each in [sdata, *([read_zarr(sdata.path)] if sdata.path else [])]:
        table = each.tables["table"]
        assert list(table.var.columns) == ["pixnet"]
        assert table.var_names[table.var["pixnet"]].tolist() == ["g2"]
        assert list(table.obs.columns) == ["region", "instance_id"]


def test_columns_of_the_user_are_not_taken_without_overwrite(sdata: SpatialData) -> None:
    sdata.tables["table"].var["pixnet"] = 1
    with pytest.raises(ValueError, match="column of var of table 'table' called 'pixnet' already"):
        names = NewNames(sdata, overwrite=False)
        names.layer("table", "pixnet")
        names.check()
    with pytest.raises(ValueError, match="column of var"):
        _results.commit(sdata, [make_layer(sdata)])
    assert list(sdata.tables["table"].var.columns) == ["pixnet"]


def test_a_column_that_differs_by_case_is_refused(sdata: SpatialData) -> None:
    sdata.tables["table"].obs["PixNet_coverage"] = 1.0
    with pytest.raises(ValueError, match="by case alone"):
        _results.commit(sdata, [make_layer(sdata)], overwrite=True)


def test_obsm_entry_and_several_results_side_by_side(sdata: SpatialData) -> None:
    latent = np.arange(40, dtype=np.float32).reshape(10, 4)
    entry = _results.TableEntry("table", "pixnet_latent", latent, place="obsm", record={"model": "PixNet"})
    _results.commit(sdata, [make_layer(sdata), entry])
    _results.commit(sdata, [make_layer(sdata, "ridge", plus=5.0)])
    for each in [sdata, *([read_zarr(sdata.path)] if sdata.path else [])]:
        table = each.tables["table"]
        np.testing.assert_array_equal(table.obsm["pixnet_latent"], latent)
        assert {name for name in table.layers if name is not None} == {"pixnet", "ridge"}
        assert np.nanmax(table.layers["ridge"] - table.layers["pixnet"]) == 5
        assert set(table.uns["stpredict"]) == {"pixnet", "pixnet_latent", "ridge"}
        assert "tables/table/obsm/pixnet_latent" in each.attrs["stpredict"]


def test_a_new_table_follows_the_element_and_annotates_it(sdata: SpatialData) -> None:
    _results.commit(sdata, [make_table(sdata)])
    spots = sdata.shapes["spots"]
    for each in [sdata, *([read_zarr(sdata.path)] if sdata.path else [])]:
        table = each.tables["spots_pixnet"]
        rows, positions = table_rows(each, "spots_pixnet", "spots")
        assert rows.tolist() == positions.tolist() == list(range(10))
        assert table.obs["instance_id"].tolist() == spots.index.tolist()
        np.testing.assert_array_equal(table.obsm["spatial"], np.c_[spots.geometry.x, spots.geometry.y])
        assert table.var["pixnet"].all()
        assert table.X.dtype == table.layers["pixnet"].dtype == np.float32
    assert not np.shares_memory(sdata.tables["spots_pixnet"].X, sdata.tables["spots_pixnet"].layers["pixnet"])


def test_a_new_table_keeps_integer_instance_ids() -> None:
    table = _results.new_table(
        np.zeros((2, 1)),
        key="k",
        genes=["a"],
        region="cells",
        instance_ids=np.array([7, 3]),
        centroids=np.zeros((2, 2)),
    )
    assert table.obs["instance_id"].dtype.kind == "i"
    assert table.obs_names.tolist() == ["7", "3"]


def test_a_new_table_with_twins_is_refused() -> None:
    options: dict[str, Any] = {"key": "k", "region": "cells", "centroids": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="unique, got twice"):
        _results.new_table(np.zeros((2, 2)), genes=["a", "a"], instance_ids=np.arange(2), **options)
    with pytest.raises(ValueError, match="unique, got twice"):
        _results.new_table(np.zeros((2, 2)), genes=["a", "b"], instance_ids=np.zeros(2, int), **options)


def test_replacing_a_table_forgets_what_was_said_of_the_old_one(sdata: SpatialData) -> None:
    _results.commit(sdata, [make_table(sdata)])
    table = make_table(sdata).table
    with pytest.raises(ValueError, match="table called 'spots_pixnet' already"):
        _results.commit(sdata, [_results.TableElement("spots_pixnet", "ridge", table)])
    _results.commit(
        sdata, [_results.TableElement("spots_pixnet", "ridge", table, record={"model": "Ridge"})], overwrite=True
    )
    for each in [sdata, *([read_zarr(sdata.path)] if sdata.path else [])]:
        assert each.attrs["stpredict"] == {"tables/spots_pixnet/layers/ridge": {"model": "Ridge"}}


def test_other_attributes_stay_and_objects_that_share_them_do_not_change(sdata: SpatialData) -> None:
    shared = sdata.attrs
    shared["mine"] = {"a": 1}
    _results.commit(sdata, [make_layer(sdata)])
    assert shared == {"mine": {"a": 1}}
    assert sdata.attrs["mine"] == {"a": 1}


@pytest.mark.parametrize(
    "record",
    [{"a": np.float32(1)}, {"a": (1, 2)}, {"a": float("nan")}, {"a": [1, "b"]}, {"a": [[1]]}, {"a": [{"b": 1}]},
     {"a/b": 1}, {1: 2}, {"a": [None]}, {"a": Path("x")}, {"a": {"b": np.zeros(2)}}],
)  # fmt: skip
def test_records_that_would_not_come_back_are_refused(record: Any) -> None:
    with pytest.raises(TypeError, match=r"record"):
        _results.plain(record)


def test_values_of_a_wrong_shape_or_type_and_joins_that_are_not_unique_are_refused(sdata: SpatialData) -> None:
    with pytest.raises(ValueError, match=r"must be float32 \(10, 6\), got float64"):
        _results.commit(sdata, [_results.TableEntry("table", "k", np.zeros((10, 6)))])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"var\['k'\] must be \(6,\)"):
        _results.commit(
            sdata, [_results.TableEntry("table", "k", np.zeros((10, 6), np.float32), var={"k": np.ones(5)})]
        )
    rows, positions = table_rows(sdata, "table", "spots")
    for join, columns in (((rows[[0, 0]], positions[:2]), [1]), ((rows, positions), [6]), ((rows, positions[:3]), [1])):
        with pytest.raises(ValueError, match="different integers below"):
            _results.layer(sdata, "table", "k", values=np.ones((10, 1)), join=join, columns=np.array(columns))
    with pytest.raises(ValueError, match="same place"):
        _results.commit(sdata, [make_layer(sdata), make_layer(sdata)])


def test_an_index_that_anndata_wrote_into_a_table_does_not_hide_the_layer(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    with pytest.warns(Warning, match="[Cc]onsolidated"):
        zarr.consolidate_metadata(str(sdata.path / "tables" / "table"))
    _results.commit(sdata, [make_layer(sdata)])
    assert "pixnet" in read_zarr(sdata.path).tables["table"].layers


def test_a_store_without_the_groups_gets_them(tmp_path: Path) -> None:
    sdata = backed(tmp_path, image=False, table=False)
    _results.commit(sdata, [make_table(sdata), _raster_element()])
    again = read_zarr(sdata.path)
    assert list(again.tables) == ["spots_pixnet"]
    assert list(again.images) == ["pixnet"]


def _raster_element() -> _results.ImageElement:
    with make_target(make_sdata()) as target:
        fill(target, np.ones((3, 10, 16)))
        return target.image({})


def test_a_store_behind_a_link_and_one_that_was_never_consolidated(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    make_sdata().write(tmp_path / "real" / "slide.zarr", consolidate_metadata=False)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "real" / "slide.zarr")
    sdata = read_zarr(tmp_path / "link.zarr")
    with make_target(sdata) as target:
        fill(target, np.ones((3, 10, 16)))
        _results.commit(sdata, [make_layer(sdata), target.image({})])
    assert "pixnet" in read_zarr(tmp_path / "real" / "slide.zarr").images
    shutil.rmtree(tmp_path / "real" / "slide.zarr")
    assert list((tmp_path / "real").iterdir()) == []


def test_the_table_in_memory_is_what_a_user_holds(sdata: SpatialData) -> None:
    held: ad.AnnData = sdata.tables["table"]
    _results.commit(sdata, [make_layer(sdata)])
    assert sdata.tables["table"] is held
    assert "pixnet" in held.layers


def test_a_new_table_beyond_memory_is_refused_with_its_size():
    from stpredict._spatialdata import check_table_size

    check_table_size(1000, 100)
    with pytest.raises(
        ValueError, match=r"a new table of 1000000 shapes x 1000000 genes needs 8000.0 GB .* Pass fewer"
    ):
        check_table_size(10**6, 10**6)


def _two_samples() -> SpatialData:
    """An object whose table annotates the circles "spots" with its first rows and "more" with the others."""
    sdata = make_sdata()
    table = sdata.tables["table"]
    more = sdata.shapes["spots"].copy()
    both = ad.concat([table, table], index_unique="-", merge="same")
    both.obs["region"] = pd.Categorical(["spots"] * 10 + ["more"] * 10)
    del sdata.tables["table"]
    sdata.shapes["more"] = more
    sdata.tables["table"] = TableModel.parse(
        both, region=["spots", "more"], region_key="region", instance_key="instance_id"
    )
    return sdata


def _sample(sdata: SpatialData, shapes: str, plus: float, **record: Any) -> _results.TableEntry:
    return _results.layer(
        sdata, "table", "pixnet", values=np.full((10, 3), plus), join=table_rows(sdata, "table", shapes),
        columns=np.array([4, 1, 3]), coverage=np.full(10, plus / 10), record={"weights_sha256": "a", **record},
    )  # fmt: skip


@pytest.mark.parametrize("stored", [False, True])
def test_a_table_of_two_samples_keeps_the_rows_of_the_other(tmp_path: Path, stored: bool) -> None:
    sdata = _two_samples()
    if stored:
        sdata.write(tmp_path / "slide.zarr")
        sdata = read_zarr(tmp_path / "slide.zarr")
    late = read_zarr(tmp_path / "slide.zarr") if stored else sdata
    _results.commit(sdata, [_sample(sdata, "spots", 1.0, shapes_digest="one", genes=["g"])])
    # another object of the store has not seen them
    _results.commit(late, [_sample(late, "more", 2.0, shapes_digest="two", genes=["g"])], overwrite=True)
    for each in (late, read_zarr(tmp_path / "slide.zarr")) if stored else (late,):
        table = each.tables["table"]
        assert table.layers["pixnet"][:, 4].tolist() == [1.0] * 10 + [2.0] * 10
        assert table.obs["pixnet_coverage"].tolist() == [0.1] * 10 + [0.2] * 10
        assert table.var["pixnet"].sum() == 3


def test_rows_of_another_model_are_not_mixed_in_and_the_warning_says_so() -> None:
    sdata = _two_samples()
    _results.commit(sdata, [_sample(sdata, "spots", 1.0)])
    with pytest.warns(UserWarning, match=r"10 rows of table 'table', which annotate other shapes, .* are NaN now"):
        entry = _sample(sdata, "more", 2.0, weights_sha256="b")
    _results.commit(sdata, [entry], overwrite=True)
    layer = sdata.tables["table"].layers["pixnet"]
    assert np.isnan(layer[:10]).all()
    assert (layer[10:, 4] == 2.0).all()


def test_a_new_table_has_the_files_that_spatialdata_writes(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    change = make_table(sdata)
    theirs = SpatialData(tables={"spots_pixnet": change.table}, shapes={"spots": sdata.shapes["spots"]})
    with ad.settings.override(auto_shard_zarr_v3=False):
        theirs.write(tmp_path / "theirs")
    _results.commit(sdata, [change])
    one, other = (disk(tmp_path / name / "tables" / "spots_pixnet") for name in ("slide.zarr", "theirs"))
    assert one == other
