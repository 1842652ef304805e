"""The command line run in this process, and two small toy sections on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SIZE_UM = 500.0


@pytest.fixture(scope="session")
def toys():
    """Two sections of 500 x 500 um with about 20 spots each."""
    import stpredict as stp

    return stp.datasets.toy(2, seed=3, size_um=SIZE_UM, n_genes=30)


@pytest.fixture(scope="session")
def written(toys, tmp_path_factory) -> list[Path]:
    """The two sections as stores; tests work on copies."""
    folder = tmp_path_factory.mktemp("toys")
    paths = [folder / "a.zarr", folder / "b.zarr"]
    for toy, path in zip(toys, paths, strict=True):
        toy.write(path)
        toy.path = None
    return paths


@pytest.fixture
def stores(written, tmp_path) -> list[Path]:
    """The two sections as stores of this test's own."""
    return [Path(shutil.copytree(path, tmp_path / path.name)) for path in written]


@pytest.fixture(scope="session")
def ridge(toys, tmp_path_factory) -> Path:
    """The folder of a Ridge of 12 genes, trained on the first section by the verb."""
    import stpredict as stp

    model = stp.models.Ridge(stp.pp.gene_panel(toys[:1], n_genes=12, shapes_key="spots"))
    stp.tl.train(toys[0], model, shapes_key="spots", progress=False)
    folder = tmp_path_factory.mktemp("model") / "ridge"
    model.save(folder)
    return folder


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `stpredict` with arguments: (status, what it printed, what it said on stderr)."""
    import stpredict.cli

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = stpredict.cli.app.meta([str(a) for a in arguments], result_action="return_value")
        except SystemExit as end:  # of the argument parser
            status = end.code
        said = capsys.readouterr()
        return status or 0, said.out, said.err

    return call
