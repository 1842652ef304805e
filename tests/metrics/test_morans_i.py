"""Moran's I against squidpy, and the gap of two of them."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from stpredict import metrics
from stpredict.metrics import _scores


def _grid(n_rows: int = 9, n_columns: int = 8) -> tuple[np.ndarray, sparse.csr_array]:
    """(n, 2) rows and columns, and the four neighbours of each, all of weight 1."""
    cells = np.stack([a.ravel() for a in np.mgrid[:n_rows, :n_columns]], axis=1)
    return cells, sparse.csr_array(abs(cells[:, None] - cells[None]).sum(axis=2) == 1, dtype=np.float64)


def _maps(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = np.sin(cells[:, :1] / 2 + np.arange(3)) + cells[:, 1:] / 5
    return smooth.astype(np.float32), (smooth + rng.normal(size=smooth.shape)).astype(np.float32)


# squidpy 1.8 against pandas 3.1
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values:pandas.errors.Pandas4Warning")
def test_both_terms_equal_squidpy() -> None:
    squidpy = pytest.importorskip("squidpy")
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 100, (80, 2))
    table = AnnData(np.log1p(rng.poisson(2.0, (80, 5))).astype(np.float64), obsm={"spatial": xy})
    table.layers["pred"] = table.X + xy[:, :1] / 30
    far = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    graph = sparse.csr_matrix(((far > 0) & (far < 14)).astype(np.float64))
    table.obsp["spatial_connectivities"] = graph
    assert (np.diff(graph.indptr) == 0).any(), "a spot without neighbours belongs to the test"
    expected = {}
    for layer in (None, "pred"):
        frame = squidpy.gr.spatial_autocorr(
            table, mode="moran", layer=layer, genes=list(table.var_names), n_perms=None, copy=True, n_jobs=1
        )
        expected[layer] = frame["I"].loc[table.var_names].to_numpy()
    gap = metrics.morans_i_gap(table.layers["pred"], table.X, graph)
    np.testing.assert_allclose(gap, expected["pred"] - expected[None], atol=1e-6)
    assert np.abs(gap).max() > 0.1


def test_known_values() -> None:
    cells, graph = _grid(8, 8)
    # rows and columns 0, 2, 4, 6 alone have a value, and no two of these spots are neighbours: Moran's I is 0
    lone = np.rint(np.cos(np.pi / 2 * cells).prod(axis=1))[:, None]
    board = (cells.sum(axis=1) % 2)[:, None].astype(float)
    assert metrics.morans_i_gap(board, lone, graph) == pytest.approx(-1)
    halves = (cells[:, 0] < 4)[:, None].astype(float)
    # only the two rows at the border have a neighbour of the other half: one of 4, at the sides one of 3
    assert metrics.morans_i_gap(halves, lone, graph) == pytest.approx(1 - 2 * 2 * (6 / 4 + 2 / 3) / 64)
    assert metrics.morans_i_gap(halves, board, graph) == pytest.approx(2 - 4 * (6 / 4 + 2 / 3) / 64)


def test_the_sign_says_which_is_smoother() -> None:
    cells, graph = _grid()
    smooth, noisy = _maps(cells)
    assert (metrics.morans_i_gap(smooth, noisy, graph) > 0.2).all()
    np.testing.assert_allclose(metrics.morans_i_gap(noisy, smooth, graph), -metrics.morans_i_gap(smooth, noisy, graph))


def test_what_must_not_change_it() -> None:
    cells, graph = _grid()
    smooth, noisy = (a.astype(float) for a in _maps(cells))
    gap = metrics.morans_i_gap(smooth, noisy, graph)
    np.testing.assert_allclose(metrics.morans_i_gap(-3 * smooth + 1e5, 1e-6 * noisy, graph), gap, atol=1e-9)
    np.testing.assert_allclose(metrics.morans_i_gap(smooth, noisy, 7 * graph), gap, atol=1e-12)
    np.testing.assert_allclose(metrics.morans_i_gap(smooth, noisy, sparse.coo_matrix(graph)), gap, atol=1e-12)
    order = np.random.default_rng(1).permutation(len(cells))
    np.testing.assert_allclose(
        metrics.morans_i_gap(smooth[order], noisy[order], graph[order][:, order]), gap, atol=1e-12
    )


def test_blocks_of_genes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, graph = _grid()
    smooth, noisy = _maps(cells)
    whole = metrics.morans_i_gap(smooth, noisy, graph)
    monkeypatch.setattr(_scores, "BLOCK_VALUES", len(cells))
    np.testing.assert_allclose(metrics.morans_i_gap(smooth, noisy, graph), whole, atol=1e-12)


def test_a_constant_gene_is_nan_on_either_side() -> None:
    cells, graph = _grid()
    smooth, noisy = _maps(cells)
    smooth[:, 0], noisy[:, 2] = 0.1, 4.0
    assert np.isnan(metrics.morans_i_gap(smooth, noisy, graph)).tolist() == [True, False, True]


def test_the_graph_is_left_alone() -> None:
    cells, graph = _grid()
    before = graph.copy()
    metrics.morans_i_gap(*_maps(cells), graph)
    assert (graph != before).nnz == 0


class TestRefuses:
    def test_a_dense_graph(self) -> None:
        cells, graph = _grid()
        with pytest.raises(ValueError, match=r"scipy sparse .*got ndarray of shape \(72, 72\).*squidpy.gr"):
            metrics.morans_i_gap(*_maps(cells), graph.toarray())

    def test_a_graph_of_other_spots(self) -> None:
        cells, graph = _grid()
        smooth, noisy = _maps(cells)
        with pytest.raises(ValueError, match=r"each of the 70 spots, got \(72, 72\).*graph\[keep\]"):
            metrics.morans_i_gap(smooth[:70], noisy[:70], graph)

    def test_no_edges(self) -> None:
        cells, graph = _grid()
        with pytest.raises(ValueError, match="no edges between its 72 spots"):
            metrics.morans_i_gap(*_maps(cells), 0 * graph)

    def test_weights_that_are_none(self) -> None:
        cells, graph = _grid()
        with pytest.raises(ValueError, match="negative or not finite"):
            metrics.morans_i_gap(*_maps(cells), -graph)

    def test_values_that_are_not_finite(self) -> None:
        cells, graph = _grid()
        smooth, noisy = _maps(cells)
        smooth[5, 0] = np.nan
        with pytest.raises(ValueError, match="in 1 of 72 spots"):
            metrics.morans_i_gap(smooth, noisy, graph)
