"""The graph of a section: edges and layers against what is counted and computed by hand."""

from __future__ import annotations

import numpy as np
import torch


def grid(height, width):
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)


def sources(edges, target):
    return sorted(edges[0][edges[1] == target].tolist())


def test_near_edges_of_a_tiny_grid_by_hand():
    from stpredict.models.sgn import edges

    places = grid(3, 3)  # 0 1 2 / 3 4 5 / 6 7 8
    near, _ = edges(np.zeros((9, 1)), places, n_near=5, n_alike=1)
    expected = {
        0: [1, 3, 4],
        1: [0, 2, 3, 4, 5],
        2: [1, 4, 5],
        4: [0, 1, 3, 5, 7],  # the four at distance 1, then the first of the corners
        5: [1, 2, 4, 7, 8],
        8: [4, 5, 7],
    }
    assert {target: sources(near, target) for target in expected} == expected
    few, _ = edges(np.zeros((9, 1)), places, n_near=2, n_alike=1)
    assert sources(few, 4) == [1, 3]
    gap, _ = edges(np.zeros((3, 1)), np.array([[0, 0], [0, 2], [1, 1]]), n_near=5, n_alike=1)
    assert [sources(gap, target) for target in range(3)] == [[2], [2], [0, 1]]


def test_alike_edges_are_the_least_distances(monkeypatch):
    from stpredict.models import sgn

    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    apart = np.linalg.norm(x[:, None].astype(float) - x, axis=2) + np.diag(np.full(30, np.inf))
    expected = [sorted(row.argsort()[:5].tolist()) for row in apart]
    for rows in (512, 7):
        monkeypatch.setattr(sgn, "DISTANCE_ROWS", rows)
        _, alike = sgn.edges(x, grid(5, 6), n_near=5, n_alike=5)
        assert [sources(alike, target) for target in range(30)] == expected
        assert alike.dtype == np.int64


def test_few_shapes_have_few_neighbours():
    from stpredict.models.sgn import edges

    for n in (1, 2, 4):
        near, alike = edges(np.arange(n)[:, None].astype(float), grid(1, n) * 9, n_near=5, n_alike=5)
        assert near.shape == (2, 0)
        assert alike.shape == (2, n * (n - 1))


def test_ties_go_by_place_and_not_by_the_last_bits_of_a_distance(monkeypatch):
    from stpredict.models import sgn

    monkeypatch.setattr(
        sgn, "DISTANCE_ROWS", 7
    )  # matrix products of equal rows differ in the last bits from block to block
    rng = np.random.default_rng(1)
    kind = rng.permutation(203) % 4  # four kinds of empty patches
    x = rng.normal(size=(4, 976)).astype(np.float32)[kind]
    _, alike = sgn.edges(x, grid(203, 1), n_near=5, n_alike=5)
    for target in range(203):
        same = np.flatnonzero((kind == kind[target]) & (np.arange(203) != target))
        assert sources(alike, target) == same[:5].tolist()


def test_the_order_of_the_shapes_does_not_matter_even_where_distances_tie():
    from stpredict.models.sgn import edges

    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 300)).astype(np.float32)[rng.permutation(37) % 4]
    places = np.concatenate([grid(6, 6), [[0, 0]]])  # two shapes of one place
    known = edges(x, places, n_near=5, n_alike=5)
    order = rng.permutation(37)
    again = edges(x[order], places[order], n_near=5, n_alike=5)
    for one, other in zip(known, again, strict=True):
        assert {tuple(edge) for edge in one.T} == {tuple(edge) for edge in order[other].T}
    assert np.bincount(known[1][1], minlength=37).tolist() == [5] * 37


def test_a_layer_is_the_mean_of_two_sage_means_by_hand():
    from stpredict.models.sgn import GraphLayer, neighbour_mean

    layer = GraphLayer(1, 1)
    with torch.no_grad():
        for module, value in ((layer.own[0], 1.0), (layer.own[1], 3.0), (layer.others[0], 2.0), (layer.others[1], -5)):
            module.weight.fill_(value)
        layer.others[0].bias.fill_(0.5)
        layer.others[1].bias.fill_(1.5)
    x = torch.tensor([[1.0], [2.0], [4.0]])
    near = torch.tensor([[1, 2, 0], [0, 0, 1]])  # 1 and 2 speak to 0, 0 to 1; nobody speaks to 2
    alike = torch.tensor([[2, 0, 1], [0, 1, 2]])
    torch.testing.assert_close(neighbour_mean(x, near), torch.tensor([[3.0], [1.0], [0.0]]))
    # near: x + 2 mean + .5 = 7.5, 4.5, 4.5; alike: 3 x - 5 mean + 1.5 = -15.5, 2.5, 3.5
    expected = torch.tensor([[0.2 * -4.0], [3.5], [4.0]])
    torch.testing.assert_close(layer(x, near, alike), expected)
    assert sum(p.numel() for p in GraphLayer(512, 512).parameters()) == 2 * (2 * 512 * 512 + 512)
