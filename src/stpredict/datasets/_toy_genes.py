"""The toy's genes: names, and the expression programme of every cell type in its two states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("tumour", "gland", "fibroblast", "lymphocyte", "endothelial")
COMPONENTS = (*(f"{kind}:{state}" for kind in KINDS for state in ("low", "high")), "ambient")
MARKERS = {
    "tumour": "ERBB2 GRB7 FASN SCD GATA3 XBP1 TFF3 AGR2 CCND1 MKI67 TOP2A KRT19 KRT8 EPCAM S100A9 MUC1".split(),
    "gland": "PIGR LTF SLPI KRT7 KRT15 AZGP1 PIP SCGB2A2 MUCL1 ELF5 KIT CLDN4 WFDC2 LCN2".split(),
    "fibroblast": "COL1A1 COL1A2 COL3A1 DCN LUM FN1 SPARC POSTN FAP PDGFRB TAGLN BGN VCAN FBLN1".split(),
    "lymphocyte": "PTPRC CD3D CD3E CD2 MS4A1 CD79A CXCL13 CCL5 GZMB IGKC IGHG1 TRAC CD52 CORO1A".split(),
    "endothelial": "PECAM1 VWF CDH5 CLDN5 KDR ENG PLVAP EMCN EGFL7 AQP1".split(),
}
HOUSEKEEPING = "MT-CO1 MT-CO2 MT-CO3 MT-ND4 MT-CYB RPLP0 RPS18 RPL13 EEF1A1 ACTB TMSB10 B2M".split()
N_GENES_MIN = len(HOUSEKEEPING) + len(KINDS)

HOUSEKEEPING_SHARE = 0.80  # of a cell's RNA, in every type: stands in for the thousands of genes that are not simulated
ABUNDANCE_SD = 0.9  # natural-log scale, like those below
MARKER_EFFECT = (1.2, 2.4)  # range: a marker is 3 to 11 times as high in its own type
TYPE_SD = 0.35  # what every type does to every gene
GENERIC_TYPE_SD = 0.7  # ... and to a gene that is nobody's marker
STATE_SD = 1.6  # log fold between the two states of a type, for the genes that follow it
STATE_SHARE = 0.7  # of genes follow a type's state


def gene_names(n_genes: int) -> list[str]:
    """`n_genes` unique names: housekeeping genes, then markers of the types in turn, then TOY001, TOY002, ..."""
    longest = max(len(symbols) for symbols in MARKERS.values())
    turns = [symbols[i] for i in range(longest) for symbols in MARKERS.values() if i < len(symbols)]
    names = [*HOUSEKEEPING, *turns][:n_genes]
    return [*names, *(f"TOY{i + 1:03d}" for i in range(n_genes - len(names)))]


def profiles(rng: np.random.Generator, n_genes: int) -> NDArray[np.float64]:
    """The share of every gene in the RNA of each component, (n_genes, len(COMPONENTS)); columns sum to 1.

    A type has a programme for its low and one for its high state; a cell in state u expresses (1 - u) low + u high. The
    ambient component is the mean of all programmes, the RNA that has left its cell.
    """
    names = gene_names(n_genes)
    n_house = len(HOUSEKEEPING)
    owner = {name: kind for kind, symbols in MARKERS.items() for name in symbols}
    level = rng.normal(0.0, ABUNDANCE_SD, n_genes)
    effect = rng.normal(0.0, TYPE_SD, (n_genes, len(KINDS)))
    for row, name in enumerate(names):
        if name in owner:
            effect[row, KINDS.index(owner[name])] += rng.uniform(*MARKER_EFFECT)
        elif row >= n_house:
            effect[row] *= GENERIC_TYPE_SD / TYPE_SD
    state = rng.normal(0.0, STATE_SD, effect.shape) * (rng.random(effect.shape) < STATE_SHARE)
    effect[:n_house] *= 0.3  # what every cell needs varies little
    state[:n_house] *= 0.15
    log = level[:, None, None] + effect[:, :, None] + state[:, :, None] * np.array([-0.5, 0.5])
    rate = np.exp(log).reshape(n_genes, -1)
    house = np.arange(n_genes)[:, None] < n_house
    rate /= np.where(
        house, rate[:n_house].sum(axis=0) / HOUSEKEEPING_SHARE, rate[n_house:].sum(axis=0) / (1 - HOUSEKEEPING_SHARE)
    )
    return np.column_stack([rate, rate.mean(axis=1)])
