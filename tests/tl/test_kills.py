"""A call that is killed (SIGKILL) at a step of its commit, and the same call after it."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
from spatialdata import read_zarr

RUN = {"device": "cpu", "precision": "32", "progress": False}
PREDICT = ("layer", "raster", "both", "latent")
CALLS = (*PREDICT, "aggregate", "query", "embed")

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def _call(path, pixnet, what, genes=("red", "blue"), **settings):
    """One of the calls that write into a store."""
    import stpredict as stp

    given = {"shapes_key": "spots", "key_added": "r", **settings}
    if what in PREDICT:
        stp.tl.predict(path, pixnet, genes=genes, output=what, **given, **RUN)
    elif what == "aggregate":
        stp.tl.aggregate(read_zarr(path), "map", genes=genes, **given)
    elif what == "query":
        stp.tl.query(read_zarr(path), "latent", genes, model=pixnet, output="both", **given)
    else:
        stp.tl.embed(read_zarr(path), pixnet, **given, **RUN)


def _killed(n, call):
    """Run in a forked process that is killed at its n-th step (0: at none); how many it made, and how it ended."""
    from stpredict._spatialdata._store import _transaction

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            step = _transaction.Transaction.apply_step

            def counted(self, *args):
                nonlocal n
                n -= 1
                if n == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                os.write(write, b".")
                step(self, *args)

            _transaction.Transaction.apply_step = counted
            call()
        except BaseException:  # noqa: BLE001 - nothing of pytest may run in the child
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        made = len(pipe.read())
    return made, os.waitpid(pid, 0)[1]


@pytest.fixture(scope="session")
def stores(make, pixnet, tmp_path_factory):
    """A function of a call and whether it replaces a result: folders of the store before and after an unbroken call."""
    import stpredict as stp

    root, made = tmp_path_factory.mktemp("kills"), {}
    make(7).write(root / "base" / "slide.zarr")
    for key, output in (("map", "raster"), ("latent", "latent")):
        stp.tl.predict(root / "base" / "slide.zarr", pixnet, shapes_key="spots", output=output, key_added=key, **RUN)

    def of(what, old):
        if (what, old) not in made:
            before, after = root / f"{what}-{old}-before", root / f"{what}-{old}-after"
            shutil.copytree(root / "base", before)
            if old:
                _call(before / "slide.zarr", pixnet, what, genes=["green"])
            shutil.copytree(before, after)
            _call(after / "slide.zarr", pixnet, what, overwrite=old)
            made[what, old] = before, after
        return made[what, old]

    return of


def _values(path):
    """What a reader sees, by place."""
    sdata = read_zarr(path)
    table = sdata.tables["table"]
    seen = {f"images/{key}": sdata.images[key].to_numpy() for key in sdata.images}
    for place in ("layers", "obsm"):
        seen |= {f"{place}/{key}": np.asarray(value) for key, value in getattr(table, place).items() if key}
    for axis in ("obs", "var"):
        seen |= {f"{axis}/{name}": column.to_numpy() for name, column in getattr(table, axis).items()}
    seen |= {"uns": sorted(table.uns.get("stpredict", {})), "attrs": sdata.attrs.get("stpredict", {})}
    return seen | {"X": table.X.toarray()}


def _same(one, other):
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _equal(a, b):
    if not isinstance(a, np.ndarray):
        return a == b
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.fixture(autouse=True)
def _one_thread():
    """A forked process computes in one thread, and convolutions round by the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kill(stores, files_of, tmp_path, pixnet):
    """A function of a call, whether it replaces a result, and the step at which it is killed; the steps it made.

    It checks what a reader sees then, and that the same call goes on to the bytes of one that was never killed.
    """

    def check(what, old, n):
        before, after = (each / "slide.zarr" for each in stores(what, old))
        path = tmp_path / f"{what}-{old}-{n}" / "slide.zarr"
        shutil.copytree(before.parent, path.parent)
        made, status = _killed(n, lambda: _call(path, pixnet, what, overwrite=old))
        assert status == (signal.SIGKILL if n else 0)
        seen = _values(path)
        done = _same(seen, _values(after))
        assert done or _same(seen, _values(before)), n
        if what in PREDICT:
            _call(path, pixnet, what, overwrite=old, resume=True)
        else:
            _call(path, pixnet, what, overwrite=old or done)
        assert files_of(path) == files_of(after), n
        assert [each.name for each in path.parent.iterdir()] == ["slide.zarr"]
        shutil.rmtree(path.parent)
        return made

    return check


@pytest.mark.parametrize("n", [4, 20])
def test_a_call_that_is_killed_before_or_after_the_step_that_shows_it_goes_on_to_the_same_bytes(kill, n):
    kill("both", True, n)


@pytest.mark.kills
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("what", CALLS)
def test_every_call_goes_on_wherever_it_is_killed(kill, what, old):
    made = kill(what, old, 0)
    assert made >= 7
    for n in range(1, made + 1):
        kill(what, old, n)
    print(f"\n{what}, {'over an old result' if old else 'new'}: killed at each of {made} steps")
