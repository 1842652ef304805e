"""Bad input: the message says what to do, and nothing of the object, in memory or on disk, has changed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

RUN = {"device": "cpu", "precision": "32", "progress": False}


def _memory(sdata: SpatialData) -> list:
    tables = {
        name: (list(t.obs), list(t.var), [k for k in t.layers if k is not None], sorted(t.uns), sorted(t.obsm))
        for name, t in sdata.tables.items()
    }
    return [sorted(sdata.images), sorted(sdata.shapes), tables, str(sdata.attrs)]


def _image(pixels, names):
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names, transformations={"global": Identity()})


def _second_image(sdata):
    sdata.images["scan"] = _image(np.zeros((3, 64, 64), np.uint8), ["r", "g", "b"])


def _grey(sdata):
    sdata.images["image"] = _image(np.zeros((1, 64, 64), np.uint8), ["g"])


def _sixteen_bit(sdata):
    sdata.images["image"] = _image(np.zeros((3, 64, 64), np.uint16), ["r", "g", "b"])


def _cells(sdata):
    frame = GeoDataFrame(geometry=[shapely.box(10, 10, 40, 40)])
    sdata.shapes["cells"] = ShapesModel.parse(frame, transformations={"global": Identity()})


def _measured_cells(sdata):
    _cells(sdata)
    table = AnnData(csr_matrix(np.ones((1, 4), np.float32)), obs=pd.DataFrame({"region": ["cells"], "id": [0]}, ["c0"]))
    table.obs["region"] = table.obs["region"].astype("category")
    sdata.tables["of_cells"] = TableModel.parse(table, region="cells", region_key="region", instance_key="id")


def _only_pixels(sdata):
    from spatialdata.transformations import set_transformation

    for element in (sdata.images["image"], sdata.shapes["spots"]):
        set_transformation(element, {"global": Identity()}, set_all=True)


def _far_away(sdata):
    sdata.shapes["spots"].geometry = [shapely.Point(9000 + i, 9000) for i in range(len(sdata.shapes["spots"]))]


def _own_domain(sdata):
    sdata.tables["table"].obs["pixnet_domain"] = 1.0


def _taken(sdata):
    sdata.tables["table"].layers["pixnet"] = np.zeros(sdata.tables["table"].shape, np.float32)


def _taken_image(sdata):
    sdata.images["pixnet"] = _image(np.zeros((3, 64, 64), np.uint8), ["r", "g", "b"])


def _double_ids(sdata):
    obs = sdata.tables["table"].obs
    obs.loc[obs.index[1], "instance_id"] = obs["instance_id"].iloc[0]


def _lost_ids(sdata):
    obs = sdata.tables["table"].obs
    obs.loc[obs.index[1], "instance_id"] = "nobody"


def _fewer_genes(sdata):
    sdata.tables["table"] = sdata.tables["table"][:, ["red", "other"]].copy()


CASES = {
    "several images": (_second_image, {}, r"images.*\['image', 'scan'\].*image_key="),
    "several shapes": (_measured_cells, {}, r"shapes.*\['cells', 'spots'\]|shapes.*\['spots', 'cells'\]"),
    "missing image": (None, {"image_key": "imgae"}, r"no image 'imgae'.*image"),
    "missing shapes": (None, {"shapes_key": "spot"}, r"no shapes.* 'spot'.*spots"),
    "missing table": (None, {"table_name": "tabel"}, r"no table 'tabel'.*table"),
    "no mpp": (_only_pixels, {}, r"(?s)mpp=.*micromet.*(spot|diameter)"),
    "too coarse": (_only_pixels, {"mpp": 3.0}, r"(?s)3.*um.*(coarse|finer|resolution)"),
    "another mpp": (None, {"mpp": 3.0}, r"mpp=3 contradicts.*'micrometers'.*remove_transformation"),
    "all outside": (_far_away, {}, "all 30 shapes of 'spots' lie outside image 'image'"),
    "other shapes": (
        _cells,
        {"shapes_key": "cells", "table_name": "table"},
        r"table 'table' annotates \['spots'\], not 'cells'",
    ),
    "double ids": (_double_ids, {}, r"(?s)table 'table'.*(twice|unique|duplicate)"),
    "lost ids": (_lost_ids, {}, r"name instance ids that shapes 'spots' lack: \['nobody'\]"),
    "unknown genes": (
        None,
        {"genes": ["red", "mauve"]},
        r"genes not in the panel of this PixNet: \['mauve'\] \(1 of 2\)",
    ),
    "genes the table lacks": (_fewer_genes, {}, r"has 1 of the 3 genes to predict; it lacks .*Pass table_added="),
    "grey": (_grey, {"mpp": 1.0}, r"(?s)RGB.*(1|channel)"),
    "sixteen bit": (_sixteen_bit, {"mpp": 1.0}, r"(?s)uint8.*uint16|uint16.*uint8"),
    "key taken": (_taken, {}, r"there is a .*layer.* called 'pixnet' already.*overwrite=True"),
    "column of the domain taken": (_own_domain, {}, "column of obs of table 'table' called 'pixnet_domain' already"),
    "image taken": (
        _taken_image,
        {"image_key": "image", "output": "raster"},
        r"there is .*'pixnet' already.*overwrite=True",
    ),
    "bad key": (None, {"key_added": "org/model"}, "'org/model' cannot be the name"),
    "hidden key": (None, {"key_added": ".pixnet"}, "'.pixnet' cannot be the name"),
    "hidden table": (None, {"table_added": ".new"}, "'.new' cannot be the name of a table"),
    "hidden image": (None, {"output": "raster", "key_added": ".pixnet"}, "'.pixnet' cannot be the name of a"),
    "a name of the store's own": (None, {"key_added": "zarr.json"}, "'zarr.json' cannot be the name"),
    "a name too long": (None, {"key_added": 151 * "a"}, "cannot be the name"),
    "key differs by case": (_taken, {"key_added": "PixNet"}, "differs from the existing .* 'pixnet' by case alone"),
    "no such device": (None, {"device": "cuda:9"}, "device='cuda:9' is not there"),
    "unknown output": (None, {"output": "picture"}, "output='picture' must be one of 'layer'"),
    "two tables": (None, {"table_name": "table", "table_added": "new"}, "pass one of them"),
}


@pytest.mark.parametrize("backed", [False, True], ids=["memory", "store"])
@pytest.mark.parametrize("case", CASES)
def test_predict_refuses_and_changes_nothing(sdata, pixnet, tmp_path, case, backed, files_of):
    import stpredict as stp

    spoil, settings, message = CASES[case]
    if spoil is not None:
        spoil(sdata)
    if backed:
        sdata.write(tmp_path / "s.zarr")
        sdata = read_zarr(tmp_path / "s.zarr")
    files, memory = files_of(tmp_path), _memory(sdata)
    with pytest.raises(ValueError, match=message):
        stp.tl.predict(sdata, pixnet, **(RUN | settings))
    assert _memory(sdata) == memory
    assert files_of(tmp_path) == files


def test_a_failure_in_the_middle_changes_nothing(sdata, pixnet, tmp_path, monkeypatch, files_of):
    from dataclasses import replace

    import stpredict as stp
    from stpredict._inference import _dense

    sdata.write(tmp_path / "s.zarr")
    sdata = read_zarr(tmp_path / "s.zarr")
    monkeypatch.setattr(pixnet, "config", replace(pixnet.config, core_px=256))  # four tiles
    files, memory = files_of(tmp_path / "s.zarr"), _memory(sdata)
    seen = []

    def fail(self, piece):
        seen.append(piece)
        if len(seen) > 2:
            raise OSError("the disk is gone")
        return read(self, piece)

    read = _dense.DenseInference._read_tiles
    monkeypatch.setattr(_dense.DenseInference, "_read_tiles", fail)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        stp.tl.predict(sdata, pixnet, output="both", **RUN)
    assert _memory(sdata) == memory
    assert files_of(tmp_path / "s.zarr") == files
    assert "s.zarr is as it was. 2 finished chunks are kept" in caught.value.__notes__[0]


def test_a_layer_too_large_names_both_sizes(sdata, pixnet, monkeypatch):
    import stpredict as stp
    from stpredict._spatialdata._store import _results

    monkeypatch.setattr(_results.check_layer_size, "__kwdefaults__", {"limit_bytes": 100})
    with pytest.raises(ValueError, match=r"a layer as wide as the table \(30 x 4\) takes .*table_added='\.\.\.'"):
        stp.tl.predict(sdata, pixnet, **RUN)


def test_a_raster_too_large_names_the_ways_out(sdata, pixnet, monkeypatch):
    import psutil

    import stpredict as stp

    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(
        ValueError,
        match=r"(?s)takes .* MB, and memory has .*genes=, a larger raster_mpp=, dtype='float16', or output='latent'",
    ):
        stp.tl.predict(sdata, pixnet, output="raster", **RUN)


def test_a_spot_model_has_no_raster(sdata, ridge):
    import stpredict as stp

    with pytest.raises(ValueError, match="Ridge predicts shapes one by one and has no map; use output='layer'"):
        stp.tl.predict(sdata, ridge, output="raster", **RUN)


def test_an_untrained_model_is_refused(sdata):
    import stpredict as stp

    with pytest.raises(ValueError, match="this Ridge was never trained"):
        stp.tl.predict(sdata, stp.models.Ridge(["red"]), **RUN)
    with pytest.raises(FileNotFoundError, match="no model 'pixnet-of-nobody'"):
        stp.tl.predict(sdata, "pixnet-of-nobody", **RUN)


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.5])
def test_counts_that_are_none_are_refused(sdata, value):
    import stpredict as stp

    sdata.tables["table"].X.data[3] = value
    model = stp.models.Mean(["red"])
    with pytest.raises(ValueError, match=r"(?s)layer=.*target='as_is'|layer=.*target=\"as_is\""):
        stp.tl.train(sdata, model, val=0, progress=False)
    assert model.card is None


def test_an_empty_panel_is_refused(sdata):
    import stpredict as stp

    with pytest.raises(ValueError, match="Mean needs a panel of distinct genes, got 0 names"):
        stp.models.Mean([])
    with pytest.raises(ValueError, match=r"lacks 1 of 2 genes: \['mauve'\]"):
        stp.tl.train(sdata, stp.models.Mean(["red", "mauve"]), val=0, progress=False)
