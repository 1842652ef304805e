"""The transformers of TRIPLEX: against explicit attention matrices and loops over the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SIZES = (2, 2, 2, 0.3)


def attended(block, x, tokens, bias):
    """One block on one sequence: `x` (n, d) asks `tokens` (m, d); `bias` (heads, n, m) is added to the scores."""
    d = x.shape[1]
    q = block.qkv(block.attention_norm(x))[:, :d].unflatten(1, (block.heads, -1)).transpose(0, 1)
    k, v = (
        block.qkv(block.attention_norm(tokens))[:, part].unflatten(1, (block.heads, -1)).transpose(0, 1)
        for part in (slice(d, 2 * d), slice(2 * d, None))
    )
    weight = torch.softmax(q @ k.transpose(1, 2) / (d // block.heads) ** 0.5 + bias, dim=-1)
    x = x + block.out((weight @ v).transpose(0, 1).flatten(1))
    return x + block.mlp(x)


def random_(module):
    """The module with all its parameters drawn anew, those that start at zero too; in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    return module.eval()


def test_neighbours_attend_with_a_bias_of_their_distance():
    from stpredict.models.triplex import NeighbourTower

    tower = random_(NeighbourTower(8, SIZES, side=3))
    assert tower.blocks[0].bias.shape == (2, 9)
    x, there = torch.randn(2, 9, 8), torch.ones(2, 9, dtype=torch.bool)
    there[1, [0, 1, 2, 5]] = False
    with torch.no_grad():
        out = tower(x, there)
        for b in range(2):
            y = x[b]
            for block in tower.blocks:
                bias = torch.zeros(2, 9, 9)
                for i in range(9):
                    for j in range(9):
                        dy, dx = abs(i // 3 - j // 3), abs(i % 3 - j % 3)
                        bias[:, i, j] = block.bias[:, 3 * dy + dx] if there[b, j] else -torch.inf
                y = attended(block, y, y, bias)
            torch.testing.assert_close(out[b], tower.norm(y), atol=1e-5, rtol=1e-5)


def test_fusion_asks_both_sequences_with_the_same_blocks():
    from stpredict.models.triplex import FusionTower

    tower = random_(FusionTower(8, SIZES))
    section, own, around = torch.randn(3, 8), torch.randn(3, 4, 8), torch.randn(3, 9, 8)
    there = torch.rand(3, 9) < 0.6
    there[:, 4] = True
    with torch.no_grad():
        out = tower(section, own, around, there)
        for i in range(3):
            one = other = section[i : i + 1]
            for block in tower.blocks:
                one = attended(block, one, own[i], 0.0)
                other = attended(block, other, around[i][there[i]], 0.0)
            torch.testing.assert_close(out[i], tower.norm((one + other)[0]), atol=1e-5, rtol=1e-5)


def test_the_place_of_a_spot_is_told_by_a_convolution_of_the_grid():
    from stpredict.models.triplex import SectionTower

    tower = random_(SectionTower(6, SIZES))
    place = torch.tensor([[3, 5], [3, 6], [4, 5], [7, 9], [3, 5]])  # two share a place, one is alone
    x = torch.randn(5, 6)
    at = {}
    for row, (i, j) in zip(x, place.tolist(), strict=True):
        at.setdefault((i, j), []).append(row)
    mean = {key: torch.stack(rows).mean(0) for key, rows in at.items()}
    weight = tower.position.weight[:, 0]
    with torch.no_grad():
        found = tower._around(x, place)
        for row, (i, j) in zip(found, place.tolist(), strict=True):
            expected = tower.position.bias.clone()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    expected += weight[:, dy + 1, dx + 1] * mean.get((i + dy, j + dx), torch.zeros(6))
            torch.testing.assert_close(row, expected)
        torch.testing.assert_close(tower._around(x, place + 11), found)


def test_a_section_is_a_block_then_places_then_the_other_blocks():
    from stpredict.models.triplex import SectionTower

    tower = random_(SectionTower(6, SIZES))
    x, place = torch.randn(7, 6), torch.tensor([[i, 2 * i % 5] for i in range(7)])
    with torch.no_grad():
        y = attended(tower.blocks[0], x, x, 0.0)
        y = y + tower._around(y, place)
        y = attended(tower.blocks[1], y, y, 0.0)
        torch.testing.assert_close(tower(x, place), tower.norm(y), atol=1e-5, rtol=1e-5)
        order = torch.randperm(7)
        torch.testing.assert_close(tower(x[order], place[order]), tower(x, place)[order], atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_formula_and_its_gradient_reaches_both_sides():
    from stpredict.models.triplex import fusion_loss

    rng = np.random.default_rng(0)
    fused, true, *branches = (rng.normal(size=(7, 4)) for _ in range(5))
    expected = np.mean((fused - true) ** 2)
    for branch in branches:
        expected += 0.7 * np.mean((branch - true) ** 2) + 0.3 * np.mean((branch - fused) ** 2)
    tensors = [torch.tensor(v, requires_grad=True) for v in (fused, *branches)]
    loss = fusion_loss(tensors[0], tensors[1:], torch.tensor(true))
    assert float(loss.detach()) == pytest.approx(expected)
    loss.backward()
    slope = 2 * (fused - true) + sum(2 * 0.3 * (fused - branch) for branch in branches)
    np.testing.assert_allclose(tensors[0].grad.numpy(), slope / fused.size)
    slope = 2 * 0.7 * (branches[1] - true) + 2 * 0.3 * (branches[1] - fused)
    np.testing.assert_allclose(tensors[2].grad.numpy(), slope / fused.size)
    with_all = fusion_loss(tensors[0], tensors[1:], torch.tensor(true), share=0.0)
    assert float(with_all.detach()) == pytest.approx(sum(np.mean((v - true) ** 2) for v in (fused, *branches)))


def test_heads_that_do_not_divide_are_refused():
    from stpredict.models.triplex import SectionTower

    with pytest.raises(ValueError, match="width 6 cannot have depth 1 and 4 heads"):
        SectionTower(6, (1, 4, 2, 0.0))
    with pytest.raises(ValueError, match="depth 0"):
        SectionTower(6, (0, 2, 2, 0.0))
