"""The target against the protocol's formula, and which spots are usable."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from stpredict._spatialdata import check_counts, sparse_target, target, totals, usable
from stpredict.metrics import log1p_cp10k

COUNTS = np.random.default_rng(0).poisson(1.5, (7, 11)).astype(np.float32)
FORMS = {
    "dense": np.asarray,
    "matrix": sp.csr_matrix,
    "array": sp.csr_array,
    "columns": sp.csc_matrix,
    "integers": lambda x: x.astype(np.int64),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_target_is_the_protocols(form):
    columns = np.array([4, 0, 9])
    expected = log1p_cp10k(COUNTS[:, columns], COUNTS.sum(axis=1))  # the denominator: all eleven genes
    found = target(form(COUNTS), columns=columns)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(sparse_target(form(COUNTS), columns=columns).toarray(), expected, rtol=1e-12)
    np.testing.assert_allclose(np.expm1(target(form(COUNTS)).astype(float)).sum(axis=1), 1e4, rtol=1e-6)


def test_the_counts_stay_as_they_are():
    counts = sp.csr_matrix(COUNTS)
    counts[0, 0] = 0.0  # a zero that is stored
    before = counts.copy()
    target(counts)
    sparse_target(counts)
    np.testing.assert_array_equal(counts.toarray(), before.toarray())
    assert counts.nnz == before.nnz


def test_missing_genes_are_nan_never_zero():
    found = target(COUNTS, columns=np.array([2, -1, 5]))
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[:, [0, 2]], target(COUNTS, columns=np.array([2, 5])))


def test_a_spot_without_counts_has_no_value():
    counts = COUNTS.copy()
    counts[3] = 0
    found = target(counts)
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()


def test_as_is_takes_any_finite_values():
    values = np.array([[0.5, -2.0], [0.0, 3.25]])
    np.testing.assert_array_equal(target(values, target="as_is", columns=np.array([1, 0])), values[:, ::-1])
    np.testing.assert_array_equal(target(np.zeros((2, 2)), target="as_is"), 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_as_is_refuses_values_that_are_none(bad):
    values = np.array([[0.5, bad], [0.0, 3.25]])
    with pytest.raises(ValueError, match=r"layer 'norm' has 1 values that are NaN or infinite.*another layer="):
        target(values, target="as_is", what="layer 'norm'")
    np.testing.assert_array_equal(target(values, target="as_is", columns=np.array([0])), values[:, :1])


@pytest.mark.parametrize(("bad", "said"), [
    (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-1.0, "negative"), (0.5, "not whole numbers"),
])  # fmt: skip
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_what_is_no_count_is_refused(bad, said, form):
    counts = COUNTS.copy()
    counts[2, 7] = bad
    with pytest.raises(ValueError, match=rf'table X has 1 values that are {said}.*{bad}.*layer=.*target="as_is"'):
        target(form(counts), columns=np.array([0]), what="table X")  # wherever in the table it is


def test_whole_numbers_are_counts():
    check_counts(COUNTS, what="x")
    check_counts(np.array([[2.0**30]]), what="x")


def test_unknown_target_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown target 'cpm'; there are \['log1p_cp10k', 'as_is'\]"):
        target(COUNTS, target="cpm")


def test_totals_are_summed_in_double_precision():
    many = sp.csr_matrix(np.full((1, 3), 2.0**24, dtype=np.float32))
    assert totals(sp.hstack([many, sp.csr_matrix(np.ones((1, 3), np.float32))])).tolist() == [3 * 2.0**24 + 3]


def check(**changes):
    rows = {"total": np.full(4, 600.0), "on_image": np.ones(4, bool), "tissue_share": np.ones(4)}
    keep, dropped = usable(**(rows | changes))
    return keep.tolist(), dropped


def test_all_is_usable():
    assert check() == ([True] * 4, {})


def test_each_reason_is_counted():
    no = np.array([True, True, False, True])
    assert check(on_image=no) == ([True, True, False, True], {"not wholly on the image": 1})
    assert check(in_tissue=no) == ([True, True, False, True], {"in_tissue is 0 in the table": 1})
    assert check(tissue_share=np.array([1, 0.5, 0.49, 0])) == ([True, True, False, False], {"not on the tissue": 2})
    assert check(total=np.array([500, 499, 0, 1e6])) == ([True, False, False, True], {"fewer than 500 counts": 2})


def test_a_spot_is_counted_under_its_first_reason():
    no = np.array([True, True, False, True])
    keep, dropped = check(on_image=no, total=np.array([600, 3, 3, 600]))
    assert keep == [True, False, False, True]
    assert dropped == {"not wholly on the image": 1, "fewer than 500 counts": 1}


def test_depth_drops_nothing_where_it_is_not_known_and_empty_spots_always():
    assert check(total=None)[1] == {}
    assert check(total=np.array([0, 1, 2, 3]), min_counts=0) == ([False, True, True, True], {"fewer than 0 counts": 1})
