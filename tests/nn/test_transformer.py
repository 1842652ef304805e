"""Transformer blocks against the formula written out with explicit attention matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def block():
    from stpredict.nn.transformer import TransformerBlock

    torch.manual_seed(0)
    made = TransformerBlock(24, heads=3, head_width=8, mlp_width=40, dropout=0.1).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def by_hand(block, x, seen):
    """One sequence (n, d) in float64; `seen` (n, n) says which keys a query sees."""
    weights = {key: value.double() for key, value in block.state_dict().items()}
    x = x.double()
    normed = F.layer_norm(x, (24,), weights["attention_norm.weight"], weights["attention_norm.bias"])
    q, k, v = (normed @ weights["qkv.weight"].T).reshape(len(x), 3, 3, 8).permute(1, 2, 0, 3)  # (qkv) (heads, n, 8)
    scores = q @ k.transpose(1, 2) / 8**0.5
    shares = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    attended = (shares @ v).transpose(0, 1).reshape(len(x), 24)
    x = x + attended @ weights["out.weight"].T + weights["out.bias"]
    h = F.layer_norm(x, (24,), weights["mlp.0.weight"], weights["mlp.0.bias"])
    h = F.gelu(h @ weights["mlp.1.weight"].T + weights["mlp.1.bias"])
    return x + h @ weights["mlp.4.weight"].T + weights["mlp.4.bias"]


@torch.no_grad()
def test_a_block_is_the_formula(block):
    x = torch.randn(2, 11, 24)
    for sequence, out in zip(x, block(x), strict=True):
        torch.testing.assert_close(
            out.double(), by_hand(block, sequence, torch.ones(11, 11, dtype=bool)), atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_masked_keys_are_not_seen_by_anyone(block):
    x = torch.randn(1, 11, 24)
    keep = torch.arange(11)[None] < 7
    torch.testing.assert_close(block(x, keep)[:, :7], block(x[:, :7]), atol=1e-5, rtol=0)
    louder = x.clone()
    louder[:, 7:] = 100
    torch.testing.assert_close(block(louder, keep)[:, :7], block(x, keep)[:, :7], atol=0, rtol=0)


@torch.no_grad()
def test_split_queries_give_the_same_answer(block, monkeypatch):
    from stpredict.nn import transformer

    x, keep = torch.randn(2, 30, 24), torch.arange(30)[None].repeat(2, 1) < torch.tensor([[30], [22]])
    whole = block(x, keep)
    monkeypatch.setattr(transformer, "QUERY_ROWS", 7)
    torch.testing.assert_close(block(x, keep), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_asked_token_sees_the_context_and_itself_alone(block, monkeypatch):
    from stpredict.nn import transformer

    context, asked = torch.randn(1, 6, 24), torch.randn(1, 5, 24)
    seen = torch.zeros(11, 11, dtype=bool)
    seen[:, :6] = True
    seen |= torch.eye(11, dtype=bool)
    expected = by_hand(block, torch.cat([context, asked], dim=1)[0], seen)[6:]
    torch.testing.assert_close(block.asked(asked, context)[0].double(), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(transformer, "ASKED_ROWS", 2)
    torch.testing.assert_close(block.asked(asked, context)[0].double(), expected, atol=1e-5, rtol=0)
