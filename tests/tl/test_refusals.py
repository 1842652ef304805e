"""Calls that a user gets wrong, over every public function: refused at once, by the name of the argument."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

ROOMS = ("tl", "pp", "pl", "io", "datasets", "metrics", "tables", "models")
NAN = math.nan
ARRAYS = ("log1p_cp10k", "mae", "morans_i_gap", "mse", "pcc", "rvd", "spearman")


class Stranger:
    """An object of no kind that any argument has."""


# what is wrong for an annotation that begins so; an argument that may be None is not given it
WRONG = {
    "bool": ["yes", 2],
    "int": ["3", 1.5, NAN],
    "float": ["1", NAN, math.inf, [1.0, "2"]],
    "str": [5, ["a"], b"a"],
    "Sequence[str]": [5, [1, 2], "abc"],
    "Collection[str]": [5, [1, 2]],
    "Iterable[str]": [5, [1]],
    "Sequence[int]": [5, ["a"]],
    "Sequence[float]": [5, ["a"]],
    "Sequence[Axes]": ["axes", [5]],
    "Sequence[ArrayLike]": [5],
    "Sequence[Model]": [5, [5]],
    "Sequence[SpatialData": [5, [5]],
    "Mapping": [5, ["a"]],
    "Callable": [5],
    "Literal": ["nonsense", 5],
    "SpatialData": [5, Stranger(), {"a": 1}],
    "AnnData": [5],
    "Model": [5, Stranger()],
    "GeneEmbeddings": [5, Stranger()],
    "Client": [5, "localhost:8786"],
    "Axes": [5, "ax"],
    "pd.DataFrame": [5, [1, 2], {"a": 5}],
    "pd.Series": [5],
}
RANGES = {  # values of the right type, and out of range, by name
    "mpp": [0.0, -1.0, 1e-9, 1e9], "raster_mpp": [0.0, -1.0], "batch_size": [0, -1], "max_epochs": [0, -1],
    "lr": [0.0, -1.0], "devices": [0], "num_nodes": [0], "seed": [-1, 2**32], "n_genes": [0, -5], "n_top": [0],
    "n_splits": [0], "n_draws": [0], "min_counts": [-1], "alpha": [-0.1, 1.1], "resolution": [0.0],
    "n_neighbors": [0, 1], "digits": [-1], "timeout_s": [0.0], "max_retries": [-1], "max_tokens": [0],
    "diameter_um": [0.0, -5.0], "pitch_um": [0.0, -5.0], "spot_diameter_um": [0.0], "margin_um": [-1.0],
    "val": [-0.1, 1.5], "level": [-0.1, 1.5],
}  # fmt: skip


def _functions():
    """Every public function and constructor, by its name as a user writes it."""
    import stpredict as stp

    for room in ROOMS:
        for name in getattr(stp, room).__all__:
            value = getattr(getattr(stp, room), name)
            if name == "predict_batch":
                continue  # called in the loss of a model, with what training made
            if inspect.isfunction(value):
                # `unwrap`: without the types that jaxtyping checks in tests alone
                yield f"{room}.{name}", inspect.unwrap(value), inspect.signature(value)
            elif inspect.isclass(value) and hasattr(value, "latent") and name != "Model":
                yield f"{room}.{name}", value, inspect.signature(value)


def _parts(annotation: str) -> list[str]:
    """The alternatives of an annotation, those inside brackets left together."""
    parts, depth = [""], 0
    for letter in annotation:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _wrong_for(name: str, annotation: str) -> list:
    """Values that an argument of this annotation refuses whatever else it takes."""
    parts = _parts(annotation)
    kinds = [next((kind for kind in sorted(WRONG, key=len)[::-1] if part.startswith(kind)), None) for part in parts]
    if "Path" in parts:
        kinds[parts.index("Path")] = "str"
    if any(kind is None and part != "None" for kind, part in zip(kinds, parts, strict=True)):
        return []  # takes what it is given, such as an array, and has tests of its own
    candidates = [value for kind in kinds if kind for value in WRONG[kind]]
    fit = {
        "str": lambda v: isinstance(v, str) and v != "",
        "int": lambda v: isinstance(v, int),
        "float": lambda v: isinstance(v, int | float) and math.isfinite(v),
        "Literal": lambda v: False,
        "bool": lambda v: False,
        "Callable": callable,
        "Mapping": lambda v: isinstance(v, dict),
        "pd.DataFrame": lambda v: False,
    }
    for kind in kinds:
        if kind and kind.startswith(("Sequence[str]", "Collection[str]", "Iterable[str]")):
            candidates = [v for v in candidates if not (isinstance(v, list) and all(isinstance(x, str) for x in v))]
        elif kind == "Sequence[SpatialData":
            candidates = [v for v in candidates if not isinstance(v, list) or v == [5]]
        elif kind in fit:
            candidates = [v for v in candidates if not fit[kind](v)]
    wrong = candidates + RANGES.get(name, [])
    return wrong if "None" in parts else [*wrong, None]


def _dummies(signature: inspect.Signature) -> dict:
    """Arguments of the right types for those that have no default; nothing is done with them."""
    from stpredict import models

    values = {
        "sdata": None, "sdatas": [], "train": [], "test": [], "model": models.Mean(["a"]), "shapes_key": "spots",
        "raster_key": "a", "latent_key": "a", "key": "a", "genes": ["a"], "layer": "a", "gene": "a",
        "name_or_path": "a", "path": "a.zarr", "counts": "a", "image": "a", "spots": "a", "sections": "C2",
        "n_genes": 3, "diameter_um": 50.0, "encoder": "a", "texts": {"a": "b"}, "source": "a", "result": pd.DataFrame(),
        "table": pd.DataFrame(), "frame": pd.DataFrame(), "history": pd.DataFrame(), "results": {"a": pd.DataFrame()},
        "members": [models.Mean(["a"])] * 2, "models": {"a": models.Mean}, "cv": 2, "embeddings": "a",
    }  # fmt: skip
    needed = [p.name for p in signature.parameters.values() if p.default is p.empty]
    return {name: values.get(name, np.zeros((3, 2))) for name in needed}


def _calls():
    found = []
    for name, function, signature in _functions():
        for parameter in signature.parameters.values():
            if isinstance(parameter.annotation, str):
                wrong = _wrong_for(parameter.name, parameter.annotation)
                found += [(name, function, signature, parameter.name, value) for value in wrong]
    return found


@pytest.fixture(scope="module")
def calls():
    return _calls()


def _says(message: str, name: str) -> bool:
    return name in message and "NoneType' object" not in message


def test_every_argument_of_every_public_function_refuses_what_it_cannot_be(calls, make):
    sdata, missed = make(0), []
    for name, function, signature, argument, value in calls:
        given = _dummies(signature)
        given |= {"sdata": sdata} if "sdata" in given else {}
        given |= {"model": "a"} if name == "pp.openai_source" else {}
        given |= {"preds": [], "trues": []} if name == "metrics.pooled_pcc" else {}
        try:
            function(**given | {argument: value})
            missed.append(f"{name}({argument}={value!r}): accepted")
        except (ValueError, FileNotFoundError) as error:
            if not _says(str(error), argument):
                missed.append(f"{name}({argument}={value!r}): {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no refusal
            missed.append(f"{name}({argument}={value!r}): {type(error).__name__} {error}")
    assert not missed, "\n".join(missed)


def test_they_are_many_and_of_every_room(calls):
    assert len(calls) >= 600
    assert {name.split(".")[0] for name, *_ in calls} == set(ROOMS)
    checked = {name for name, *_ in calls}
    alone = {name for name, *_ in _functions()} - checked  # they take arrays alone, or nothing
    assert alone == {f"metrics.{name}" for name in ARRAYS} | {"models.register"}


def _counts(n: int = 3):
    return np.ones((n, 2))


def _unscaled(sdata):
    """The object without the micrometre system that contradicts whatever mpp= is given."""
    from spatialdata.transformations import remove_transformation

    for element in (sdata.images["image"], sdata.shapes["spots"]):
        remove_transformation(element, "micrometers")
    return sdata


FRAME = pd.DataFrame(np.arange(6.0).reshape(3, 2), index=["a", "b", "c"], columns=["x", "y"])
# name -> (function of stp, an object and a trained Ridge; what the message says)
MEANT = {
    "an AnnData": (lambda stp, s, m: stp.tl.predict(s.tables["table"], m), "sdata=an AnnData must be a SpatialData"),
    "a list in a list": (lambda stp, s, m: stp.tl.predict([[s]], m), "sdata=.* must be"),
    "an empty list": (lambda stp, s, m: stp.tl.predict([], m), "nothing to predict"),
    "a store that is not there": (lambda stp, s, m: stp.tl.predict("no.zarr", m), "no store 'no.zarr'"),
    "train: such a store": (lambda stp, s, m: stp.tl.train("no.zarr", m), "no store 'no.zarr'"),
    "train: no section": (lambda stp, s, m: stp.tl.train([], m), "sdatas is an empty list"),
    "train: val without a section": (lambda stp, s, m: stp.tl.train(s, m, val=[]), "val is an empty list"),
    "train: a name": (lambda stp, s, m: stp.tl.train(s, "ridge"), "model='ridge' must be a Model"),
    "embed: such a store": (lambda stp, s, m: stp.tl.embed("no.zarr", m), "no store 'no.zarr'"),
    "evaluate: such a store": (lambda stp, s, m: stp.tl.evaluate(["no.zarr"], "ridge"), "no store 'no.zarr'"),
    "query: such a store": (lambda stp, s, m: stp.tl.query("no.zarr", "a", ["b"]), "no store 'no.zarr'"),
    "aggregate: such a store": (
        lambda stp, s, m: stp.tl.aggregate("no.zarr", "a", shapes_key="b"),
        "no store 'no.zarr'",
    ),
    "gene_panel: such a store": (lambda stp, s, m: stp.pp.gene_panel(["no.zarr"], n_genes=2), "no store 'no.zarr'"),
    "benchmark: such a store": (
        lambda stp, s, m: stp.tl.benchmark(["no.zarr"], {"a": stp.models.Mean}, cv=2, groups_reason="one"),
        "no store 'no.zarr'",
    ),
    "benchmark: no groups": (
        lambda stp, s, m: stp.tl.benchmark([s], {"a": stp.models.Mean}, cv="leave-one-section-out"),
        r"groups= says which patient.*groups_reason=",
    ),
    "benchmark: names": (
        lambda stp, s, m: stp.tl.benchmark([s], ["ridge"], cv="blocks"),
        "models=.* must be a mapping of names, each to a function",
    ),
    "a gene for genes": (lambda stp, s, m: stp.models.Ridge("GNAS"), "genes='GNAS' must be a list"),
    "an unknown gene": (lambda stp, s, m: stp.tl.predict(s, m, genes="rad"), "genes not in the panel.*'rad'"),
    "no genes": (lambda stp, s, m: stp.tl.predict(s, m, genes=[]), "genes= must name at least one"),
    "an unknown model": (lambda stp, s, m: stp.tl.predict(s, "pixnet-her2"), "pixnet-her2st"),
    "an unknown encoder": (
        lambda stp, s, m: stp.models.PixNet(["a"], encoder="mobilenetv2_10"),
        "encoder.*mobilenetv2_100",
    ),
    "an encoder of no name": (lambda stp, s, m: stp.models.PixNet(["a"], encoder="nope"), "encoder"),
    "weights that are a text file": (
        lambda stp, s, m: stp.models.PixNet(["a"], encoder_weights=__file__),
        "encoder_weights|safetensors",
    ),
    "an unknown configuration": (lambda stp, s, m: stp.models.PixNet(["a"], config="huge"), "config"),
    "an absurd mpp": (
        lambda stp, s, m: stp.tl.predict(_unscaled(s), m, mpp=0.002),
        r"512 x 512 px.*um at mpp=0.002.*px at the",
    ),
    "an image that is too coarse": (lambda stp, s, m: stp.tl.predict(_unscaled(s), m, mpp=500.0), "(?s)coarse|finer"),
    "an mpp that a reader contradicts": (lambda stp, s, m: stp.tl.predict(s, m, mpp=0.5), "mpp=0.5 contradicts"),
    "an unknown device": (lambda stp, s, m: stp.tl.predict(s, m, device="gpu"), "device='gpu'"),
    "an unknown precision": (lambda stp, s, m: stp.tl.predict(s, m, precision="8"), "precision='8'"),
    "a map of a model that has none": (lambda stp, s, m: stp.tl.predict(s, m, output="raster"), "no map"),
    "a folder for a name": (lambda stp, s, m: stp.tl.predict(s, m, key_added="a/b"), "'a/b'"),
    "a tissue that is not there": (lambda stp, s, m: stp.tl.predict(s, m, tissue_key="tissue"), "tissue_key"),
    "a table of a layer": (lambda stp, s, m: stp.tl.evaluate(s, "ridge", table_name="tabel"), "table_name.*'table'"),
    "a layer that is not there": (lambda stp, s, m: stp.tl.evaluate(s, "rigde"), "key='rigde'"),
    "scores of no name": (lambda stp, s, m: stp.tl.evaluate(s, "ridge", scores=["r2"]), r"scores=\['r2'\]"),
    "groups of another number": (lambda stp, s, m: stp.tl.evaluate(s, "ridge", groups=["a", "b"]), "groups names 2"),
    "a raster that is not there": (lambda stp, s, m: stp.tl.aggregate(s, "map", shapes_key="spots"), "raster_key"),
    "a latent raster that is none": (lambda stp, s, m: stp.tl.query(s, "image", ["a"]), "'image' is no latent raster"),
    "a grid wider than the image": (lambda stp, s, m: stp.pp.tile_grid(s, diameter_um=9e3), "diameter_um="),
    "a grid of nothing but shapes": (
        lambda stp, s, m: stp.pp.tile_grid(s, diameter_um=5, pitch_um=0.01),
        r"50701 x 50701 .*pitch_um=",
    ),
    "a toy of a country": (lambda stp, s, m: stp.datasets.toy(1, size_um=1e8), "size_um"),
    "more genes than there are": (lambda stp, s, m: stp.pp.gene_panel([s], n_genes=50), "50 genes were asked"),
    "a gene that is not drawn": (lambda stp, s, m: stp.pl.expression(s, None, gene="rad"), "no gene 'rad'"),
    "frames of other spots": (lambda stp, s, m: stp.metrics.pcc(FRAME, FRAME.rename({"a": "z"})), "other spots"),
    "frames of other genes": (
        lambda stp, s, m: stp.metrics.mse(FRAME, FRAME.rename(columns={"x": "z"})),
        "other genes.*'x' in pred and 'z' in true",
    ),
    "frames in another order": (
        lambda stp, s, m: stp.metrics.mae(FRAME, FRAME[["y", "x"]]),
        "the same genes in another order",
    ),
    "arrays of another shape": (lambda stp, s, m: stp.metrics.pcc(_counts(3), _counts(4)), "pred and true"),
    "one dimension": (lambda stp, s, m: stp.metrics.pcc(np.ones(3), np.ones(3)), "pred must be"),
    "texts for numbers": (lambda stp, s, m: stp.metrics.pcc(np.array([["a"]] * 3), np.ones((3, 1))), "pred must hold"),
    "NaN in a prediction": (lambda stp, s, m: stp.metrics.pcc(_counts() * NAN, _counts()), "pred holds NaN"),
    "a sparse matrix": (lambda stp, s, m: stp.metrics.pcc(sparse.eye(3), np.eye(3)), "pred is a sparse"),
    "NaN totals": (lambda stp, s, m: stp.metrics.log1p_cp10k(_counts(2), [NAN, 1]), "totals holds 1 values"),
    "negative totals": (lambda stp, s, m: stp.metrics.log1p_cp10k(_counts(2), [-1, 1]), "totals holds 1 values"),
    "negative counts": (lambda stp, s, m: stp.metrics.log1p_cp10k(-_counts(2), [1, 1]), "counts holds 4 values"),
    "no counts at all": (lambda stp, s, m: stp.metrics.log1p_cp10k(_counts(2), [0, 1]), "1 of 2 spots have no counts"),
    "pixels for a grid": (
        lambda stp, s, m: stp.metrics.ssim(
            _counts(4), _counts(4), np.array([[0, 0], [4000000, 3000000], [1, 1], [5, 5]]), win_size=3
        ),
        "grid spans 4000001 x 3000001 cells",
    ),
    "an even window": (
        lambda stp, s, m: stp.metrics.ssim(_counts(), _counts(), np.eye(3, 2, dtype=int), win_size=4),
        "win_size",
    ),
    "columns that are not there": (lambda stp, s, m: stp.metrics.ceiling(_counts(), [5]), "columns outside"),
    "halves of counts": (lambda stp, s, m: stp.metrics.ceiling(_counts() / 2, [0]), "raw counts"),
    "one array for one a section": (lambda stp, s, m: stp.metrics.pooled_pcc([_counts()], []), "preds and trues"),
    "a folder that is no model": (lambda stp, s, m: stp.models.load(Path(__file__).parent), "tests"),
    "a section of no name": (lambda stp, s, m: stp.datasets.her2st("Z9"), "Z9"),
    "a frame of something else": (lambda stp, s, m: stp.tables.scores(FRAME), "result"),
    "a slide that is not there": (lambda stp, s, m: stp.io.read_image("no.svs"), "no.svs"),
    "a folder without a section": (lambda stp, s, m: stp.io.read_visium("no"), "no"),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANT)
def test_what_was_meant_is_said(case, sdata, ridge):
    import stpredict as stp

    call, message = MEANT[case]
    before = sorted(sdata.tables["table"].layers)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        call(stp, sdata, ridge)
    assert sorted(sdata.tables["table"].layers) == before


def _image(names, dtype=np.uint8):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    systems = {"global": Identity(), "micrometers": Scale([1.0, 1.0], axes=("x", "y"))}
    pixels = np.random.default_rng(0).integers(0, 255, (3, 512, 512)).astype(dtype)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names, transformations=systems)


@pytest.mark.parametrize("names", [["DAPI", "CD3", "CD8"], ["r", "g", "DAPI"], ["H", "E", "DAB"]])
def test_stains_are_not_taken_for_colours(sdata, ridge, names):
    import stpredict as stp

    sdata.images["image"] = _image(names)
    with pytest.raises(ValueError, match="(?s)not RGB.*Channels of these names are stains.*set_channel_names"):
        stp.tl.predict(sdata, ridge, progress=False)


@pytest.mark.parametrize("names", [["R", "G", "B"], ["red", "green", "blue"], [0, 1, 2], ["c1", "c2", "c3"]])
def test_colours_and_numbered_channels_are(sdata, ridge, names):
    import stpredict as stp

    sdata.images["image"] = _image(names)
    stp.tl.predict(sdata, ridge, progress=False)
    assert np.isfinite(sdata.tables["table"].layers["ridge"][:, :3]).all()


@pytest.mark.parametrize("place", [(NAN, NAN), (5.0, NAN), (NAN, 5.0), (math.inf, 5.0), (5.0, -math.inf)])
def test_a_spot_without_a_position_has_no_prediction(sdata, ridge, place):
    import shapely

    import stpredict as stp

    sdata.shapes["spots"].loc["s1", "geometry"] = shapely.Point(*place)
    with pytest.warns(UserWarning, match="1 of 30 shapes have nothing on the image"):
        stp.tl.predict(sdata, ridge, progress=False)
    table = sdata.tables["table"]
    empty = np.isnan(table.layers["ridge"][:, 0])
    assert table.obs["instance_id"][empty].tolist() == ["s1"]


def test_spots_that_all_lack_a_position_are_said_to_lie_outside(sdata, ridge):
    import shapely

    import stpredict as stp

    sdata.shapes["spots"].geometry = [shapely.Point(NAN, NAN)] * 30
    with pytest.raises(ValueError, match="all 30 shapes of 'spots' lie outside image 'image'"):
        stp.tl.predict(sdata, ridge, progress=False)


@pytest.mark.parametrize("corner", [(20.0, NAN), (NAN, 20.0), (math.inf, 20.0)])
def test_a_polygon_without_a_corner_is_named(sdata, ridge, corner):
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    import stpredict as stp

    with np.errstate(invalid="ignore"):
        cells = [shapely.box(10, 10, 40, 40), shapely.Polygon([(10, 10), corner, (20, 20)])]
    frame = GeoDataFrame(geometry=cells, index=["whole", "torn"])
    sdata.shapes["cells"] = ShapesModel.parse(frame, transformations={"global": Identity()})
    with pytest.raises(ValueError, match=r"shapes 'cells': 1 of 2 .*not finite.*\['torn'\]"):
        stp.tl.predict(sdata, ridge, shapes_key="cells", table_added="new", progress=False)


@pytest.mark.parametrize("use", ["shapes_key", "tissue_key"])
def test_labels_below_zero_are_refused(sdata, ridge, use):
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Identity

    import stpredict as stp

    labels = np.zeros((512, 512), np.int32)
    labels[100:200, 100:200], labels[300:310, 300:310] = 1, -1
    sdata.labels["cells"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"global": Identity()})
    keys = {"shapes_key": "spots"} | {use: "cells"}
    with pytest.raises(ValueError, match="100 pixels of labels are below 0, such as -1"):
        stp.tl.predict(sdata, ridge, table_added="new", progress=False, **keys)


def test_chunks_that_a_store_lacks_are_said(sdata, ridge, tmp_path):
    from spatialdata import read_zarr
    from spatialdata.models import Image2DModel

    import stpredict as stp

    sdata.images["image"] = Image2DModel.parse(_image(["r", "g", "b"]), chunks=(3, 128, 128))
    sdata.write(tmp_path / "s.zarr")
    stp.tl.predict(tmp_path / "s.zarr", ridge, progress=False)  # nothing is said of a store that is whole
    lost = sorted(path for path in (tmp_path / "s.zarr" / "images" / "image").rglob("c/0/*/*") if path.is_file())
    assert len(lost) == 16
    for path in lost[:2]:
        path.unlink()
    with pytest.warns(UserWarning, match=r"2 of 16 chunks of image 'image' are not in .*read as black"):
        stp.tl.predict(read_zarr(tmp_path / "s.zarr"), ridge, key_added="again", progress=False)


def test_verbs_take_the_path_of_a_store(sdata, ridge, pixnet, tmp_path):
    from spatialdata import read_zarr

    import stpredict as stp

    path = tmp_path / "s.zarr"
    sdata.write(path)
    model = stp.models.Ridge(["red", "green"])
    stp.tl.train(str(path), model, val=0, progress=False)
    stp.tl.predict(path, pixnet, output="both", progress=False, device="cpu")
    stp.tl.predict(path, pixnet, output="latent", key_added="latent", image_key="image", progress=False, device="cpu")
    stp.tl.embed(path, pixnet, image_key="image", progress=False, device="cpu")
    stp.tl.query(path, "latent", ["red"], model=pixnet, table_added="asked")
    stp.tl.aggregate(str(path), "pixnet", shapes_key="spots", table_name="table", key_added="read")
    scores = stp.tl.evaluate([path], "pixnet", image_key="image")
    assert stp.pp.gene_panel([path], n_genes=2, image_key="image") == stp.pp.gene_panel([sdata], n_genes=2)
    stored = read_zarr(path)
    assert {"pixnet", "read"} <= set(stored.tables["table"].layers)
    assert "X_pixnet" in stored.tables["table"].obsm
    assert list(stored.tables["asked"].var_names) == ["red"]
    assert scores.equals(stp.tl.evaluate(stored, "pixnet", image_key="image"))
