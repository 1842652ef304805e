"""Gene scales (minimum, mean, standard deviation, range) of the training sections, as buffers of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._section import Section

BEFORE_TRAINING = {"low": 0.0, "mean": 0.0, "spread": 1.0, "span": 1.0}


def measured_expression(sections: Sequence[Section]) -> NDArray[np.float32]:
    """The expression (n, g) of all shapes, section after section."""
    return np.concatenate([section.expression for section in sections])


def depth_weight[Counts: (NDArray[np.float64], Tensor)](total: Counts, half: float) -> Counts:
    """How much shapes count of which so many counts are known (n,): total / (total + half), of endless depth 1.

    The noise of log expression falls as 1 / total, down to what differs between shapes for other reasons.

    Parameters
    ----------
    total : ndarray or Tensor
        (n,) raw counts over all genes.
    half : float
        Counts at which a shape weighs half as much as at endless depth; 0: all weigh the same.
    """
    return total / (total + half)


def depth_weights(sections: Sequence[Section], half: float) -> NDArray[np.float64] | None:
    """The `depth_weight` of all shapes (n,), 1 on average; None where not all sections have counts, or `half` is 0."""
    known = [section.total for section in sections if section.total is not None]
    if not half or len(known) < len(sections):
        return None
    found = depth_weight(np.concatenate(known), half)
    return found / found.mean()


def register_scale(model: nn.Module, n_genes: int, *names: str) -> None:
    """Give a model buffers for the scale of its genes, which then belong to its checkpoint.

    Parameters
    ----------
    model : nn.Module
        Gets a buffer (n_genes,) for each name.
    n_genes : int
        Length of the panel.
    names
        Of "low", "mean", "spread" (standard deviation) and "span" (largest minus least value).
    """
    for name in names:
        model.register_buffer(name, torch.full((n_genes,), BEFORE_TRAINING[name]))


def fit_scale(model: nn.Module, expression: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
    """Set the buffers of `register_scale` to the scale of the genes in `expression`; a gene that is constant has 1.

    Parameters
    ----------
    model : nn.Module
        Whose buffers are set, on the device where they are.
    expression : ndarray of floating
        (n, g) measured values.

    Returns
    -------
    What was measured, by name, whether the model has a buffer for it or not.
    """
    low, high = expression.min(axis=0), expression.max(axis=0)
    found = {"low": low, "mean": expression.mean(axis=0)}
    for name, value in (("spread", expression.std(axis=0)), ("span", high - low)):
        found[name] = np.where(value > 0, value, 1.0)
    scale = {name: value.astype(np.float32) for name, value in found.items()}
    for name, buffer in list(model.named_buffers(recurse=False)):
        if name in scale:
            setattr(model, name, torch.from_numpy(scale[name]).to(buffer.device))
    return scale


def of_panel_or_mean(values: Tensor, index: Tensor) -> Tensor:
    """Each gene's own of the panel's values (n_genes,); the mean of all for a gene that is not in it (index -1)."""
    return torch.where(index >= 0, values[index.clamp_min(0)], values.mean())
