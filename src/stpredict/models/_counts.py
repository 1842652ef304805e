"""Rates of counts: what stands between the free rows of a dense head and a likelihood of raw counts.

A map of counts has a channel for the rate of each gene and one for the rate of all RNA. Both are non-negative and add
up over area, so that a shape of any size reads log1p(1e4 x sum of the gene's / sum of all). Genes are fitted by a
negative binomial likelihood of their counts given the shape's total; the total's own map by one of the totals given
those of the section's other shapes in the batch, since how much RNA a section gives up cannot be seen in its picture.

Sources: negative binomial counts given a total, with one dispersion a gene, are those of scVI (Lopez et al., "Deep
generative modeling for single-cell transcriptomics", Nature Methods 2018); rates that add up over area are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from stpredict._link import PER
from stpredict._section import Section
from stpredict.models._samples import Batch, Samples
from stpredict.models._scale import of_panel_or_mean

LEVEL = 1000.0  # rate of all RNA, on average over the training shapes: rates of genes then fit into float16
GAIN = 20.0  # of free rows: a step is to change a rate by per cents; of 5, 10, 20, 40 the best on features of a toy
LEAST_SPREAD = 0.15  # coefficient of variation of totals; depth-equalised counts have .09, her2st .57
JUDGED = 10  # shapes that a section must have for that
DISPERSIONS = (1e-3, 1e1)  # of one over the size of a negative binomial, where it starts
LEVEL_WINDOWS = 64  # of the training sections, by which that is set
DENSEST = 5.0  # of the logarithm of the density of RNA
ROWS = 2**16  # shapes whose counts are held together as float64


class CountRates(nn.Module):
    """Non-negative rows for the rates of genes and, last, of all RNA; and the dispersions of their counts.

    Parameters
    ----------
    n_genes : int
        Length of the panel.
    n_features : int
        Channels of the latent, but for its constant.
    """

    share: Tensor
    level: Tensor

    def __init__(self, n_genes: int, n_features: int) -> None:
        super().__init__()
        self.density = nn.Conv2d(n_features, 1, 1)
        nn.init.zeros_(self.density.weight)
        nn.init.zeros_(self.density.bias)  # type: ignore[arg-type]
        self.total = nn.Parameter(torch.zeros(n_features + 1))
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes + 1))
        self.register_buffer("share", torch.full((n_genes,), 1.0 / PER))
        self.register_buffer("level", torch.tensor(float(n_features + 1)))

    def start(self, sections: Sequence[Section]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Set the share of each gene in all RNA, and the dispersions, to those of the training sections.

        Returns the mean and spread of free rows, (g,) each: 0, a gene's mean share everywhere, and 1.

        Raises ValueError as `check_counts_known` does.
        """
        check_counts_known(sections)
        shares, moments = zip(*(_moments(section) for section in sections), strict=True)
        moment = np.sum(moments, axis=0)
        dispersion = np.clip(moment[0] / np.maximum(moment[1], 1e-12), *DISPERSIONS)
        with torch.no_grad():
            self.share.copy_(torch.from_numpy(np.mean(shares, axis=0)))
            self.log_dispersion.copy_(torch.from_numpy(np.log(dispersion)))
            self.total.zero_()
        return np.zeros(len(self.share), np.float32), np.ones(len(self.share), np.float32)

    def amounts(self, x: Float[Tensor, "b d r c"]) -> Float[Tensor, "b f r c"]:
        """Maps of either sign as amounts that add up over area, f = d + 1, the last of them the density of RNA.

        What is there (softplus(2 x - 2): near 0 where a feature is off) times how much of it there is. The density has
        no gradient to `x`: totals, which nuclei show well, would make features of it that tell no gene from another.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            density = torch.exp(self.density(x.detach()).clamp(-DENSEST, DENSEST))
            return torch.cat([density * F.softplus(2 * x - 2), density], dim=1)

    def rows(self, free: Float[Tensor, "g f"], at: Int[Tensor, " g"]) -> Float[Tensor, "c d"]:
        """Rows of the head on `amounts` and a constant, c = g + 1: of the genes, and of all RNA.

        Parameters
        ----------
        free : Float[Tensor, "g f"]
            Of either sign, the bias last; 0 gives a gene's mean share everywhere.
        at : Int[Tensor, " g"]
            Where the genes stand in the panel; -1: not in it, and the mean share of the panel is taken.
        """
        scale = torch.cat([of_panel_or_mean(self.share, at), self.share.new_ones(1)]) * (LEVEL / self.level)
        rows = scale[:, None] * F.softplus(GAIN * torch.cat([free, self.total[None]]))
        return F.pad(rows, (0, 1))

    def rna(self, latent: Float[Tensor, "b d r c"], row: Float[Tensor, " d"]) -> Float[Tensor, "b 1 r c"]:
        """The map of all RNA, with a gradient to the density alone."""
        density = latent[:, -2:-1]
        return density * (torch.einsum("d,bdrc->brc", row, latent)[:, None] / density).detach()

    def loss(
        self, rates: Float[Tensor, "n c"], rna: Float[Tensor, " n"], batch: Batch, at: Int[Tensor, " g"]
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood of counts and totals, per gene and 10,000 counts.

        So a batch of many small shapes weighs what one of few large ones does, and a shape by its counts. Each section
        has a scale of its own: its total counts over those predicted.

        Parameters
        ----------
        rates : Float[Tensor, "n c"]
            Inside each shape, of the genes and, last, of all RNA.
        rna : Float[Tensor, " n"]
            Mean of the map `rna` inside each shape.
        batch : Batch
            With the "total" and the "area" of each shape.
        at : Int[Tensor, " g"]
            Where its genes stand in the panel.
        """
        total, dispersion = batch.extra["total"], self.log_dispersion.exp()
        share = rates[:, :-1] / rates[:, -1:]
        of_genes = nb_nll(counts_of(batch.measured, total), total[:, None] * share, dispersion[at])
        amount = rna * batch.extra["area"]
        section = torch.from_numpy(np.unique(batch.rows[:, 0], return_inverse=True)[1]).to(total.device)
        measured, predicted = (total.new_zeros(len(total)).index_add(0, section, v) for v in (total, amount))
        of_total = nb_nll(total[:, None], (amount * (measured / predicted)[section])[:, None], dispersion[-1:])
        # a window may lose its shape to rounding: a batch without any says nothing
        return (of_genes + of_total) / (len(at) + 1) / (total.sum().clamp_min(1.0) / PER)

    @torch.no_grad()
    def set_level(self, rna: Callable[[Batch], Tensor], samples: Samples) -> None:
        """Scale all rates so that of all RNA there are `LEVEL` on average over the shapes of some samples.

        The likelihood leaves this open, and members of an ensemble are averaged in these units.

        Parameters
        ----------
        rna : Callable[[Batch], Tensor]
            The mean rate of all RNA (n,) inside each shape.
        samples : Samples
            Of which some are looked at.
        """
        chosen = np.unique(np.linspace(0, len(samples) - 1, LEVEL_WINDOWS).astype(int))
        batches = (samples.collate([samples[int(k)]]).to(self.level.device) for k in chosen)
        self.level *= torch.cat([rna(batch) for batch in batches]).mean() / LEVEL


def log_share(values: Float[Tensor, "n c"]) -> Float[Tensor, "n g"]:
    """log1p of 10,000 times the rates of genes over that of all RNA, which is last."""
    return torch.log1p(PER * values[:, :-1] / values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny))


def nb_nll(counts: Float[Tensor, "n g"], mean: Float[Tensor, "n g"], dispersion: Float[Tensor, " g"]) -> Tensor:
    """Summed negative log-likelihood of negative binomial counts, whose variance is mean + dispersion x mean^2.

    Parameters
    ----------
    counts : Float[Tensor, "n g"]
        Whole numbers; the terms of those that are 0, nearly all of small bins, are not computed.
    mean : Float[Tensor, "n g"]
        Above 0.
    dispersion : Float[Tensor, " g"]
        Above 0; one over the size parameter.
    """
    size = 1 / dispersion
    of_all = size * torch.log1p(mean * dispersion)
    row, gene = torch.nonzero(counts, as_tuple=True)
    k, r, m = counts[row, gene], size[gene], mean[row, gene]
    of_some = torch.lgamma(k + r) - torch.lgamma(r) - torch.lgamma(k + 1) + k * torch.log(m / (r + m))
    return of_all.sum() - of_some.sum()


def counts_of(expression: Float[Tensor, "n g"], total: Float[Tensor, " n"]) -> Float[Tensor, "n g"]:
    """Raw counts from log1p of counts per 10,000, which are known to float32: exact below 500,000."""
    return torch.round(torch.expm1(expression.double()) * total[:, None].double() / PER).float()


def check_counts_known(sections: Sequence[Section]) -> None:
    """Raise ValueError where a section has no raw counts, or counts whose depth was made equal."""
    for section in sections:
        if section.total is None:
            raise ValueError(
                f"link='counts' is fitted to raw counts, and section {section.name!r} has none: its values are taken "
                "as they are (target='as_is'). Train with target='log1p_cp10k' on raw counts (layer=), or with "
                "link='identity'."
            )
        if len(section.total) >= JUDGED:
            spread = float(section.total.std() / section.total.mean())
            if spread < LEAST_SPREAD:
                raise ValueError(
                    f"link='counts' is fitted to raw counts, and those of section {section.name!r} look "
                    f"depth-equalised: the totals of its {len(section.total)} shapes differ by {spread:.0%} (their "
                    f"coefficient of variation), and those of raw counts by more than {LEAST_SPREAD:.0%}. Name the "
                    "layer of raw counts by layer=, or train with link='identity'."
                )


def _moments(section: Section) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share of each gene in the counts (g,); and (2, g + 1) sums whose ratio is the dispersion of genes and total.

    By moments: of counts with the mean m, the variance less m, over m squared.
    """
    assert section.total is not None and section.expression is not None
    n, sums = section.total, np.zeros(section.expression.shape[1])
    for part in _parts(section):
        sums += part[1].sum(axis=0)
    share = np.maximum(sums, 0.5) / n.sum()  # a gene that was never seen may still be there
    moments = np.zeros((2, len(share) + 1))
    for total, counts in _parts(section):
        mean = total[:, None] * share
        moments[0, :-1] += ((counts - mean) ** 2 - mean).sum(axis=0)
        moments[1, :-1] += (mean**2).sum(axis=0)
    mean = section.area * (n.sum() / section.area.sum())
    moments[:, -1] = ((n - mean) ** 2 - mean).sum(), (mean**2).sum()
    return share, moments


def _parts(section: Section) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Totals and counts of some shapes at a time."""
    assert section.total is not None and section.expression is not None
    for k in range(0, len(section.total), ROWS):
        total = section.total[k : k + ROWS]
        expression = torch.from_numpy(section.expression[k : k + ROWS])
        yield total, counts_of(expression, torch.from_numpy(total)).numpy().astype(np.float64)
