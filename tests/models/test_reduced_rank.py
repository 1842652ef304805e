"""Ridge of reduced rank: the full ridge at full rank, the best of its rank, and a planted one is found."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

PENALTIES = (1.0, 10.0, 100.0, 1000.0)


def planted(n=240, f=30, g=20, rank=3, noise=0.5, seed=0):
    """Features (n, f), targets (n, g) of a map of low rank and noise, and the noiseless targets, of three sections."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, f))
    truth = x @ rng.normal(size=(f, rank)) @ rng.normal(size=(rank, g)) / f**0.5
    return x, truth + noise * rng.normal(size=(n, g)), truth, np.arange(n) % 3


def fit(x, y, sections, *, folds=None, penalties=PENALTIES, max_rank=100, weights=None):
    from stpredict.models._reduced_rank import reduced_rank_ridge

    folds = sections if folds is None else folds
    return reduced_rank_ridge(
        x, y, sections=sections, folds=folds, penalties=penalties, max_rank=max_rank, weights=weights
    )


def within(values, sections):
    return values - np.stack([values[sections == s].mean(axis=0) for s in sections])


@pytest.mark.parametrize(("n", "g"), [(240, 20), (24, 20), (24, 50)])
def test_of_full_rank_it_is_scikit_learns_ridge_around_the_means_of_sections(n, g):
    x, y, _, sections = planted(n=n, g=g, rank=20)
    one = np.zeros(n, dtype=int)  # nothing can be left out
    found = fit(x, y, sections, folds=one, penalties=(10.0,))
    expected = Ridge(alpha=10.0, fit_intercept=False).fit(within(x, sections), within(y, sections)).coef_
    np.testing.assert_allclose(found.weight @ found.projection, expected, atol=1e-9)
    assert len(found.projection) == min(n - 3, g, 30)
    np.testing.assert_allclose(np.linalg.norm(found.projection, axis=1), 1)


def test_of_a_lower_rank_it_has_the_least_error_with_the_penalty():
    x, y, _, sections = planted(rank=6)
    found = fit(x, y, sections, folds=np.zeros(len(x), dtype=int), penalties=(10.0,), max_rank=2)
    assert found.projection.shape == (2, 30)
    x, y = within(x, sections), within(y, sections)

    def objective(coefficients):
        return ((y - x @ coefficients.T) ** 2).sum() + 10 * (coefficients**2).sum()

    best = objective(found.weight @ found.projection)
    u, s, v = np.linalg.svd(Ridge(alpha=10.0, fit_intercept=False).fit(x, y).coef_, full_matrices=False)
    assert best < objective(u[:, :2] * s[:2] @ v[:2])  # the full ridge, cut by singular values
    rng = np.random.default_rng(1)
    for _ in range(50):
        changed = [each + 1e-3 * rng.normal(size=each.shape) for each in (found.weight, found.projection)]
        assert best < objective(changed[0] @ changed[1])


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_planted_rank_is_chosen_and_brings_nearer_to_the_truth(rank):
    x, y, truth, sections = planted(rank=rank)
    found = fit(x, y, sections)
    assert len(found.projection) == rank
    errors = [
        np.square(within(x, sections) @ coefficients.T - within(truth, sections)).mean()
        for coefficients in (
            found.weight @ found.projection,
            Ridge(alpha=found.penalty, fit_intercept=False).fit(within(x, sections), within(y, sections)).coef_,
        )
    ]
    assert errors[0] < 0.8 * errors[1]


def test_the_choice_is_that_of_fitting_all_of_them():
    x, y, _, sections = planted(n=90, rank=4, noise=2.0)
    errors = {}
    for penalty in PENALTIES:
        for rank in range(1, 21):
            errors[penalty, rank] = 0.0
            for left in range(3):
                held = sections == left
                one = np.zeros((~held).sum(), dtype=int)
                fitted = fit(x[~held], y[~held], sections[~held], folds=one, penalties=(penalty,), max_rank=rank)
                predicted = within(x, sections)[held] @ (fitted.weight @ fitted.projection).T
                errors[penalty, rank] += np.square(predicted - within(y, sections)[held]).sum()
    found = fit(x, y, sections)
    assert (found.penalty, len(found.projection)) == min(errors, key=errors.__getitem__)


def test_what_differs_between_sections_as_a_whole_is_no_evidence():
    x, y, _, sections = planted()
    moved = fit(x + 5 * sections[:, None], y - 3 * sections[:, None], sections)
    still = fit(x, y, sections)
    np.testing.assert_allclose(moved.weight @ moved.projection, still.weight @ still.projection, atol=1e-9)


def test_blocks_of_one_section_are_held_against_its_mean():
    x, y, _, _ = planted()
    folds = np.arange(len(x)) // 60
    x[:, 0] += 4 * folds  # a gradient over the section, which is evidence
    y += 4 * folds[:, None]
    found = fit(x, y, np.zeros(len(x), dtype=int), folds=folds)
    predicted = (x - x.mean(axis=0)) @ (found.weight @ found.projection).T
    truth = y - y.mean(axis=0)
    assert np.square(predicted - truth).mean() < 0.1 * np.square(truth).mean()


def test_features_that_say_nothing_predict_the_mean():
    _, y, _, sections = planted()
    found = fit(np.zeros((len(y), 5), dtype=np.float32), y, sections)
    assert np.abs(found.weight @ found.projection).max(initial=0) == 0


def test_a_row_that_weighs_twice_is_a_row_that_is_there_twice():
    x, y, _, sections = planted(n=90, rank=3, noise=1.0)
    times = np.random.default_rng(1).integers(1, 4, len(x))
    weighed = fit(x, y, sections, weights=times.astype(np.float64))
    repeated = fit(*(np.repeat(each, times, axis=0) for each in (x, y, sections)))
    assert weighed.penalty == repeated.penalty
    np.testing.assert_allclose(weighed.weight @ weighed.projection, repeated.weight @ repeated.projection, atol=1e-9)
