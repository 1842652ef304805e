"""Labels of published tables: against NumPy, in a protocol of their own that no table mixes with ours."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely

RUN = {"n_genes": 3, "device": "cpu", "precision": "32", "progress": False, "groups": None, "groups_reason": "made up"}


def a_section(values, grid):
    from stpredict._section import ImageView, Section

    n = len(values)
    image = ImageView(np.zeros((3, 8, 8), np.uint8), (1.0, 1.0), 1.0)
    points = np.array([shapely.Point(0, 0)] * n, dtype=object)
    ones = np.ones(n)
    genes = tuple(f"g{j}" for j in range(values.shape[1]))
    return Section("s", image, points, ones, np.arange(n), ones, values.astype(np.float32), genes, grid)


def test_panel_totals_and_smoothing_are_those_of_the_counts():
    from stpredict.tl._benchmark._labels import relabelled

    rng = np.random.default_rng(0)
    grid = np.array([(y, x) for y in range(5) for x in range(4) if (y, x) not in ((2, 1), (0, 3))])
    counts = rng.poisson(3.0, (len(grid), 6)).astype(float)
    counts[3, :3] = 0  # nothing of the panel
    own = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, :3]
    section = a_section(own, grid)
    of_panel = counts[:, :3].sum(axis=1, keepdims=True)
    wanted = np.log1p(1e4 * counts[:, :3] / np.where(of_panel > 0, of_panel, 1))
    found = relabelled(section, smooth_labels=False, panel_totals=True).expression
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    smooth = np.array(
        [np.mean([wanted[j] for j in range(len(grid)) if np.abs(grid[i] - grid[j]).max() <= 1], axis=0)
         for i in range(len(grid))]
    )  # fmt: skip
    both = relabelled(section, smooth_labels=True, panel_totals=True)
    np.testing.assert_allclose(both.expression, smooth, rtol=1e-5)


@pytest.fixture
def sections(make):
    made = [make(seed, n=40) for seed in range(3)]
    for name, sdata in zip("abc", made, strict=True):
        sdata.attrs["name"] = name
    return made


def run(sections, **settings):
    import stpredict as stp

    return stp.tl.benchmark(
        sections, {"Ridge": stp.models.Ridge, "Mean": stp.models.Mean}, cv="leave-one-section-out", **RUN | settings
    )


def test_other_labels_are_of_another_protocol(sections, tmp_path):
    import stpredict as stp

    plain, smooth = run(sections, path=tmp_path), run(sections, smooth_labels=True)
    both = run(sections, smooth_labels=True, panel_totals=True)
    named = [result.attrs["protocol"]["protocol"] for result in (plain, smooth, both)]
    assert named == ["stp-2", "stp-2-smooth", "stp-2-panel-smooth"]
    for result, name in zip((plain, smooth, both), named, strict=True):
        assert set(result["protocol"]) == {name}
    with pytest.raises(ValueError, match="results of another protocol: protocol differ"):
        run(sections, path=tmp_path, panel_totals=True)
    mixed = pd.concat([plain, smooth])
    for table in (stp.tables.scores, stp.tables.sections, stp.tables.differences, stp.tables.cost, stp.tables.pooled):
        with pytest.raises(ValueError, match=r"mixes the protocols \['stp-2', 'stp-2-smooth'\]"):
            table(mixed)
    variance = {
        name: result[(result["model"] == "measured") & (result["metric"] == "variance")]["value"].mean()
        for name, result in zip(named, (plain, smooth, both), strict=True)
    }
    assert variance["stp-2-smooth"] < variance["stp-2"]
    known = [r[(r["model"] == "ceiling")]["value"].notna().any() for r in (plain, smooth, both)]
    assert known == [True, False, False]


def test_other_labels_need_counts(sections):
    with pytest.raises(ValueError, match="smooth_labels= and panel_totals= are made of counts per 10,000"):
        run(sections, smooth_labels=True, target="as_is")


def test_groups_of_the_caller_reach_the_models(sections):
    """EGN is told the patients by `groups=`, whatever the objects say of themselves."""
    import stpredict as stp

    seen = []

    class Watching(stp.models.Ridge):
        def prepare(self, some):
            seen.append([section.group for section in some])
            super().prepare(some)

    sections[0].attrs["patient"] = "nobody"
    stp.tl.benchmark(sections, {"Ridge": Watching}, cv="leave-one-section-out", **RUN | {"groups": ["p", "q", "p"]})
    assert seen == [["q"], ["p", "p"]]
    seen.clear()
    stp.tl.benchmark(sections, {"Ridge": Watching}, cv="leave-one-section-out", **RUN)
    assert seen == [[None, None], ["nobody", None], ["nobody", None]]
