"""Names that may be written, and changes that are made whole or not at all, wherever they are interrupted."""

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

from stpredict._sdata import _results, _store, _store_element, _store_raster, _store_table
from stpredict._sdata._store import check_key

from .samples import GENES, backed, fill, make_layer, make_sdata, make_table, make_target

RASTER = np.random.default_rng(1).normal(size=(3, 10, 16)).astype(np.float16)
Change = Callable[..., object]


class Injected(RuntimeError):
    """What a test raises inside a step."""


class Killed(BaseException):
    """Stands for the end of the process: nothing is undone or cleaned up after it."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the n-th step of every journal raise, before or after it has done its work; returns the steps seen."""
    original = _store.Journal.step

    def arm(n: int, error: type[BaseException], *, after: bool = False) -> list[str]:
        seen: list[str] = []

        def step(self: _store.Journal, what: str, do: Change, undo: Change) -> None:
            seen.append(what)

            def broken() -> None:
                if after:
                    do()
                raise error(what)

            original(self, what, broken if len(seen) == n else do, undo)

        monkeypatch.setattr(_store.Journal, "step", step)
        if error is Killed:
            monkeypatch.setattr(_store.Journal, "_back", lambda self, error: False)
            monkeypatch.setattr(_store_raster, "remove", lambda folder: None)
        return seen

    return arm


def disk(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def memory(sdata: SpatialData) -> dict[str, Any]:
    """What an object holds: elements by identity, tables by content."""
    held: dict[str, Any] = {f"{kind}/{name}": id(element) for kind, name, element in sdata.gen_elements()}
    held["attrs"] = (id(sdata.attrs), repr(sdata.attrs))
    for name, table in sdata.tables.items():
        held[f"{name}/frames"] = table.obs.to_csv(), table.var.to_csv(), repr(table.uns)
        for place in ("layers", "obsm"):
            members = getattr(table, place)
            held[f"{name}/{place}"] = {key: np.asarray(members[key]).tobytes() for key in members if key is not None}
    return held


def predict(sdata: SpatialData, *, plus: float = 0.0, overwrite: bool = False) -> None:
    """A layer, a new table and a raster in one change; `plus` tells one run from another."""
    with make_target(sdata, overwrite=overwrite) as target:
        fill(target, RASTER + np.float16(plus))
        _results.commit(sdata, changes(sdata, target, plus=plus), overwrite=overwrite)


def changes(sdata: SpatialData, target: _store_raster.RasterTarget, *, plus: float) -> list[_results.Change]:
    """What a run writes."""
    return [make_layer(sdata, plus=plus), make_table(sdata, plus=plus), target.image({"run": plus})]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores ``fresh`` and ``run0``, and what run 1 would write, built once: most of the time of a change is its building."""
    folder = tmp_path_factory.mktemp("ready")
    backed(folder / "fresh")
    first = backed(folder / "run0")
    predict(first)
    with make_target(first, overwrite=True) as target:
        fill(target, RASTER + np.float16(1.0))
        for change in changes(first, target, plus=1.0):
            (folder / type(change).__name__).mkdir()
            change.build(folder / type(change).__name__)
        shutil.copytree(target.image({}).built, folder / "raster")  # type: ignore[arg-type]
    return folder


@pytest.fixture
def run1(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[SpatialData, bool], None]:
    """Commits run 1 from what was built before."""
    for kind in (_results.Entry, _results.Table, _results.Image):
        source = ready / kind.__name__
        monkeypatch.setattr(kind, "build", lambda self, to, source=source: shutil.copytree(source, to, dirs_exist_ok=True))

    def run(sdata: SpatialData, overwrite: bool) -> None:
        built = None if sdata.path is None else tmp_path / "scratch" / "raster"
        if built is not None:
            shutil.rmtree(built, ignore_errors=True)
            shutil.copytree(ready / "raster", built)
        parsed = Image2DModel.parse(RASTER + np.float16(1.0), dims=("c", "y", "x"), c_coords=GENES)
        image = _results.Image("pixnet", element=None if built else parsed, built=built, record={"run": 1.0})
        new = [make_layer(sdata, plus=1.0), make_table(sdata, plus=1.0), image]
        _results.commit(sdata, new, overwrite=overwrite)

    return run


def holds(sdata: SpatialData, plus: float) -> tuple[bool, bool, bool]:
    """Whether layer, table and raster are whole and of that run."""
    expected = make_layer(sdata, plus=plus).values
    layer = sdata.tables["table"].layers.get("pixnet")
    panel, raster = sdata.tables.get("spots_pixnet"), sdata.images.get("pixnet")
    return (
        layer is not None and np.array_equal(layer, expected, equal_nan=True),
        panel is not None and np.array_equal(panel.X, make_table(sdata, plus=plus).table.X),
        raster is not None and np.array_equal(raster.to_numpy(), RASTER + np.float16(plus)),
    )


Run = Callable[[SpatialData, bool], None]


@pytest.mark.parametrize("place", ["memory", pytest.param("fresh", marks=pytest.mark.slow), "run0"])
def test_an_error_at_any_step_changes_nothing(
    ready: Path, tmp_path: Path, interrupt: Callable[..., list[str]], run1: Run, place: str
) -> None:
    folder = tmp_path / "s"
    if place == "memory":
        sdata = make_sdata()
        predict(sdata)
        folder.mkdir()
    else:
        shutil.copytree(ready / place, folder)
        sdata = read_zarr(folder / "slide.zarr")
    before, stored = memory(sdata), disk(folder)
    for n in range(1, 100):
        # in turns before the step's work and after it, so that a way back has to know whether it happened
        seen = interrupt(n, Injected, after=n % 2 == 0)
        try:
            run1(sdata, place != "fresh")
        except Injected:
            assert memory(sdata) == before, seen[-1]
            assert disk(folder) == stored, seen[-1]
        else:
            break
    assert n == len(seen) + 1
    assert n > {"memory": 8, "fresh": 18, "run0": 26}[place]
    assert all(holds(sdata, 1.0))


def test_an_error_while_a_missing_group_is_made_changes_nothing(
    tmp_path: Path, interrupt: Callable[..., list[str]]
) -> None:
    sdata = backed(tmp_path, table=False)
    before, stored = memory(sdata), disk(tmp_path)
    for n in range(1, 100):
        interrupt(n, Injected)
        try:
            _results.commit(sdata, [make_table(sdata)])
        except Injected:
            assert (memory(sdata), disk(tmp_path)) == (before, stored)
        else:
            break
    assert n > 4
    assert list(read_zarr(sdata.path).tables) == ["spots_pixnet"]


@pytest.mark.parametrize("place", [pytest.param("fresh", marks=pytest.mark.slow), "run0"])
def test_a_process_killed_at_any_step_leaves_a_store_that_opens_with_whole_results_only(
    ready: Path, tmp_path: Path, interrupt: Callable[..., list[str]], run1: Run, place: str
) -> None:
    path = tmp_path / "copy" / "slide.zarr"
    shutil.copytree(ready / place, path.parent)
    sdata = read_zarr(path)
    counts = sdata.tables["table"].X.copy()
    for n in range(1, 100):
        seen = interrupt(n, Killed)
        with pytest.raises(Killed):
            run1(sdata, place == "run0")
        left = read_zarr(path)
        there = "pixnet" in left.tables["table"].layers, "spots_pixnet" in left.tables, "pixnet" in left.images
        whole = zip(holds(left, 0.0), holds(left, 1.0), strict=True)
        assert there == tuple(old or new for old, new in whole), seen[-1]
        np.testing.assert_array_equal(left.tables["table"].X, counts)
        if n % 9 == 4:
            interrupt(0, Injected)
            run1(left, True)
            assert all(holds(read_zarr(path), 1.0)), seen[-1]
        if seen[-1].startswith("set"):
            break  # the store is done, and the steps in memory that follow are lost with the process
        shutil.rmtree(path.parent)
        shutil.copytree(ready / place, path.parent)
    assert n > 10
    assert all(holds(read_zarr(path), 1.0))


def test_a_way_back_that_fails_keeps_what_was_there_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = backed(tmp_path)
    predict(sdata)
    rename = os.rename

    def broken(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "slide.zarr" / "images" / "pixnet":
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        predict(sdata, plus=1.0, overwrite=True)
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith(".slide.zarr.stpredict-")]
    assert str(kept) in "".join(caught.value.__notes__)
    assert [p for p in kept.rglob("zarr.json") if '"omero"' in p.read_text()]


@pytest.mark.parametrize("module", [_store_element, _store_table])
def test_an_error_while_results_are_built_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    sdata = backed(tmp_path)
    before, stored = memory(sdata), disk(tmp_path)

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "read_zarr" if module is _store_element else "write_elem", full)
    with pytest.raises(OSError, match="no space left"):
        predict(sdata)
    assert memory(sdata) == before
    assert disk(tmp_path) == stored


@pytest.mark.parametrize("key", ["", "a b", "a/b", "é", "µ", "__x", ".", "..", "_index", "a:b", 3])
def test_names_that_a_store_cannot_hold_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a layer"):
        check_key(key, [], overwrite=True, what="layer")


def test_a_key_that_exists_needs_overwrite_and_one_that_differs_by_case_is_never_written() -> None:
    check_key("pixnet", [None, "other"], overwrite=False, what="layer")  # type: ignore[list-item]
    check_key("pixnet", ["pixnet"], overwrite=True, what="layer")
    with pytest.raises(ValueError, match=r"layer called 'pixnet' already.*overwrite=True"):
        check_key("pixnet", ["pixnet"], overwrite=False, what="layer")
    with pytest.raises(ValueError, match=r"'pixnet' differs from the existing layer 'PixNet' by case alone"):
        check_key("pixnet", ["PixNet"], overwrite=True, what="layer")


@pytest.mark.parametrize("key", ["spots", "SPOTS", "Table"])
def test_an_image_cannot_take_the_name_of_another_kind_of_element(tmp_path: Path, key: str) -> None:
    for sdata in (make_sdata(), backed(tmp_path)):
        with pytest.raises(ValueError, match="unique over all kinds"):
            make_target(sdata, key, overwrite=True)


def test_an_element_that_is_only_in_the_store_counts_as_existing(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    predict(read_zarr(sdata.path))
    with pytest.raises(ValueError, match="image called 'pixnet' already"):
        make_target(sdata)
    with pytest.raises(ValueError, match="layer of table 'table' called 'pixnet' already"):
        _results.check_layer(sdata, "table", "pixnet", overwrite=False)


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
            _results.check_layer(sdata, "table", "pixnet", overwrite=False)
        entry = _results.Entry("table", "pixnet", np.zeros(changed.shape, np.float32))
        with pytest.raises(ValueError, match="differ between the store"):
            _results.commit(sdata, [entry])
        assert memory(sdata) == before
        assert disk(tmp_path) == stored


def test_a_table_that_is_not_in_the_store_is_refused(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    sdata.tables["fresh"] = make_table(sdata).table
    with pytest.raises(ValueError, match=r"not in its store.*write_element\('fresh'\)"):
        _results.check_layer(sdata, "fresh", "other", overwrite=False)


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

    monkeypatch.setattr(_store.tempfile, "mkdtemp", closed)
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
