"""The panel of the protocol, against the rule written out with dense arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from stpredict import pp

from .builders import make_section

GENES = [f"G{i:02d}" for i in range(30)]


def counts_of(n, seed, *, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(rng.normal(3.0, spread, 30)) * rng.gamma(2.0, 0.5, (n, 30)))


COUNTS = [counts_of(n, seed) for n, seed in ((9, 1), (4, 2), (14, 3))]


@pytest.fixture
def sections():
    """Three sections of 9, 4 and 14 spots; each lists the genes in its own order."""
    out = []
    for i, counts in enumerate(COUNTS):
        order = np.random.default_rng(i).permutation(30)
        out.append(make_section(counts[:, order], np.array(GENES)[order]))
    return out


def log_target(counts):
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def ranked(score):
    return [GENES[i] for i in sorted(range(30), key=lambda i: (-score[i], GENES[i]))]


def test_mean_is_the_mean_of_the_sections_means(sections):
    score = np.mean([log_target(counts).mean(axis=0) for counts in COUNTS], axis=0)
    assert pp.gene_panel(sections, n_genes=7) == ranked(score)[:7]
    assert pp.gene_panel(sections, n_genes=30) == ranked(score)
    pooled = log_target(np.concatenate(COUNTS)).mean(axis=0)
    assert ranked(score) != ranked(pooled)  # the sections do not weigh by their spots


def test_hvg_union_is_the_union_of_the_sections_tops(sections):
    variances = [log_target(counts).var(axis=0) for counts in COUNTS]
    union = {gene for variance in variances for gene in ranked(variance)[:5]}
    panel = pp.gene_panel(sections, n_genes=5, by="hvg_union")
    assert set(panel) == union and 5 < len(panel) <= 15
    assert panel == [gene for gene in ranked(np.mean(variances, axis=0)) if gene in union]


def test_min_spots_keeps_genes_that_are_seen(sections):
    seen = sum((counts > 0).sum(axis=0) for counts in COUNTS)
    whole = pp.gene_panel(sections, n_genes=5, by="hvg_union")
    limit = int(sorted(seen[GENES.index(gene)] for gene in whole)[2]) + 1
    kept = pp.gene_panel(sections, n_genes=5, by="hvg_union", min_spots=limit)
    assert kept == [gene for gene in whole if seen[GENES.index(gene)] >= limit]
    assert 0 < len(kept) < len(whole)


def test_ties_go_by_name():
    counts = np.full((3, 4), 500)
    assert pp.gene_panel([make_section(counts, ["D", "B", "C", "A"])], n_genes=3) == ["A", "B", "C"]


def test_only_common_genes_are_candidates():
    one = make_section([[900, 10, 5], [900, 10, 7]], ["TOP", "A", "B"])
    two = make_section([[900, 10, 5], [900, 10, 7]], ["OTHER", "B", "A"])
    assert pp.gene_panel([one, two], n_genes=2) == ["A", "B"]  # mirror images: a tie
    assert set(pp.gene_panel([one, two], n_genes=2, by="hvg_union")) == {"A", "B"}


def test_spots_that_are_not_usable_do_not_count():
    counts = [[600, 10, 300], [600, 20, 300], [0, 499, 0]]  # the last is shallow
    assert pp.gene_panel([make_section(counts, ["A", "B", "C"])], n_genes=3, min_counts=500) == ["A", "C", "B"]
    # spots of 4 um need 500 x (4 / 55)^2 = 2.6 counts
    assert pp.gene_panel([make_section(counts, ["A", "B", "C"])], n_genes=3) == ["B", "A", "C"]
    flagged = make_section([[600, 0], [0, 900_000]], ["A", "B"], in_tissue=[1, 0])
    assert pp.gene_panel([flagged], n_genes=1) == ["A"]


def test_the_denominator_is_all_genes_of_the_table():
    # without X, A would be the same share of both spots and have no variance
    wide = make_section([[500, 500, 0], [500, 500, 50_000]], ["A", "B", "X"])
    narrow = make_section([[500, 500], [500, 500]], ["A", "B"])
    assert set(pp.gene_panel([wide, narrow], n_genes=2)) == {"A", "B"}
    assert pp.gene_panel([wide], n_genes=1, by="hvg_union") == ["X"]


def test_a_layer_of_counts(sections):
    table = sections[0].tables["table"]
    table.layers["raw"] = table.X.copy()
    table.X.data[:] = 0.5
    assert pp.gene_panel(sections[:1], n_genes=4, layer="raw") == ranked(log_target(COUNTS[0]).mean(axis=0))[:4]
    with pytest.raises(ValueError, match="not whole numbers.*layer="):
        pp.gene_panel(sections[:1], n_genes=4)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"n_genes": 0}, "n_genes=0 must be at least 1"),
    ({"n_genes": 31}, "31 genes were asked, but the 3 sections have only 30 in common"),
    ({"n_genes": 5, "by": "hvg"}, "by='hvg' must be one of 'mean', 'hvg_union'"),
    ({"n_genes": 5, "min_spots": 3}, 'min_spots= belongs to by="hvg_union"'),
    ({"n_genes": 5, "by": "hvg_union", "min_spots": 28}, "the panel is empty: none of .* is seen in 28 spots"),
    ({"n_genes": 5, "min_counts": 1e7}, "no usable spot"),
    ({"n_genes": 5, "table_name": "tables"}, "no table 'tables'"),
])  # fmt: skip
def test_what_is_refused(sections, arguments, said):
    with pytest.raises(ValueError, match=said):
        pp.gene_panel(sections, **arguments)


def test_no_common_gene_is_an_empty_panel():
    one, two = (make_section([[600, 600]], names) for names in (["A", "B"], ["C", "D"]))
    with pytest.raises(ValueError, match=r"the panel is empty: the 2 sections have no gene in common.*\['A', 'B'\]"):
        pp.gene_panel([one, two], n_genes=1)


def test_genes_whose_name_occurs_twice_are_no_candidates():
    with pytest.warns(UserWarning, match="not unique"):
        sdata = make_section([[900, 900, 600]], ["A", "A", "B"])
    assert pp.gene_panel([sdata], n_genes=1, by="mean") == ["B"]


def test_features_that_are_no_genes_are_left_out_of_panels_and_totals(sections):
    plain = pp.gene_panel(sections, n_genes=3, by="mean")
    mixed = []
    for sdata in sections:
        table = sdata.tables["table"]
        wide = AnnData(
            sp.hstack([table.X, sp.csr_matrix(np.full((table.n_obs, 1), 40_000.0))]).tocsr(),
            obs=table.obs, var=pd.DataFrame(index=[*table.var_names, "CD3E.1"]), uns=table.uns,
        )  # fmt: skip
        wide.var["feature_types"] = ["Gene Expression"] * table.n_vars + ["Antibody Capture"]
        sdata.tables["table"] = wide
        mixed.append(sdata)
    with pytest.warns(UserWarning, match=r"features that are no genes by var\['feature_types'\] \(Antibody Capture\)"):
        assert pp.gene_panel(mixed, n_genes=3, by="mean") == plain


@pytest.mark.parametrize("pick", [lambda sections: [], lambda sections: sections[0]], ids=["none", "one object"])
def test_a_list_of_sections_is_needed(sections, pick):
    with pytest.raises(ValueError, match="sdatas.* list"):
        pp.gene_panel(pick(sections), n_genes=1)
