"""Losses on expression."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-8  # as in the code of a co-author's EGN, EGGN and SGN (methods: PixNet, Loss)


def batch_pcc(
    pred: Float[Tensor, "n g"], true: Float[Tensor, "n g"], weight: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " g"]:
    """Pearson correlation of each gene over the shapes of a batch, differentiable; 0 where a gene is constant."""
    if weight is None:
        pred, true = pred - pred.mean(0), true - true.mean(0)
    else:
        share = (weight / weight.sum())[:, None]
        pred, true = ((v - (share * v).sum(0)) * share.sqrt() for v in (pred, true))
    return (pred * true).sum(0) / (pred.norm(dim=0) * true.norm(dim=0) + EPS)


def mse_pcc(
    pred: Float[Tensor, "n g"], true: Float[Tensor, "n g"], *, pcc_weight: float = 0.5,
    weight: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Mean squared error + `pcc_weight` x (1 - mean over genes of the batch-wise Pearson correlation).

    A batch of one shape has no correlation: the second term is then its constant.

    Parameters
    ----------
    pred, true : Float[Tensor, "n g"]
        Values of the n shapes of a batch, in the same target space.
    pcc_weight : float, default 0.5
        Weight of the second term, at least 0.
    weight : Float[Tensor, " n"], optional
        How much each shape counts in both terms, not all 0; None: all alike.

    Returns
    -------
    Float[Tensor, ""]
        A scalar.

    References
    ----------
    PixNet (arXiv 2503.01347), Loss; eps and weight from the code of EGN / SGN.
    """
    if weight is None:
        loss = torch.nn.functional.mse_loss(pred, true)
    else:
        loss = (weight[:, None] * (pred - true).square()).mean() / weight.mean()
    return loss + pcc_weight * (1 - batch_pcc(pred, true, weight).mean()) if pcc_weight else loss


def strank(
    scores: Float[Tensor, "n g"], counts: Float[Tensor, "n g"], depth: Float[Tensor, " n"] | None = None
) -> Float[Tensor, ""]:
    """Minus the mean over shapes and genes of count x log p, p being how a gene's counts fall on the shapes of a list.

    p of a shape is its depth x exp(score) over the sum of these: scores say how shapes of one section compare, and
    neither a factor nor the depth of a section's counts changes what they should be. A constant added to a gene's
    scores does not change the loss.

    Parameters
    ----------
    scores : Float[Tensor, "n g"]
        Of the n shapes of one section, on the scale of a natural logarithm of a rate.
    counts : Float[Tensor, "n g"]
        Counts, or rates, of the same; not negative.
    depth : Float[Tensor, " n"], optional
        (n,) what a shape's counts are in proportion to; None: all alike, as for rates.

    Returns
    -------
    Float[Tensor, ""]
        A scalar.

    References
    ----------
    STRank, list-wise ("Learning Relative Gene Expression Trends from Pathology Images in Spatial Transcriptomics",
    NeurIPS 2025, arXiv 2512.06612); its depth is the mean count of a shape's genes.
    """
    logits = scores if depth is None else scores + torch.log(depth)[:, None]
    return -(counts * torch.log_softmax(logits, dim=0)).mean()
